from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from small_root import small_root

from kacl_jax import config as config_keys
from kacl_jax.config.stored import check_config, write_config
from kacl_jax.data.batches import Batch, BrokenFiles, ShardBatches, eval_batches
from kacl_jax.data.records import Records, read_records
from kacl_jax.data.splits import make_split
from kacl_jax.data.verify import check, format_problems
from kacl_jax.images.reader import read_image
from kacl_jax.images.resizing import resize
from kacl_jax.prepare import prepare_root
from kacl_jax.runtime import bucket_files
from kacl_jax.runtime.errors import INTERRUPTED, UserError

SIZE = 16
SHARD = 7 * SIZE * SIZE  # seven images: small_root's 24 make four shards


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 noisy pictures of different sizes, two of them broken."""
    path = small_root().write(tmp_path_factory.mktemp("root"))
    random = np.random.default_rng(0)
    for k, file in enumerate(sorted((path / "images").iterdir())):
        side = (SIZE, 24, 40)[k % 3]
        Image.fromarray(random.integers(0, 256, (side, side), np.uint8)).save(file)
    (path / "images" / "00000003_001.png").write_bytes(b"")
    whole_file = (path / "images" / "00000009_000.png").read_bytes()
    (path / "images" / "00000009_000.png").write_bytes(whole_file[:-20])
    return path


@pytest.fixture(scope="module")
def prepared_root(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`root` prepared at SIZE; read only."""
    out = tmp_path_factory.mktemp("made") / "out"
    prepare_root(root=root, out=out, size=SIZE, workers=2, shard_bytes=SHARD)
    return out


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def batches(records: Records, size: int, **options: Any) -> ShardBatches:
    split = make_split(
        records,
        protocol="C",
        folds=5,
        fold=0,
        val_fraction=0.1,
        box_share=0.5,
        split_seed=0,
        version=2,
    )
    return ShardBatches(records, split, image_size=size, batch_size=3, seed=0, **options)


def assert_equal(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


# ---- the two forms of a root


@pytest.mark.parametrize("shards", [1, 2])
def test_both_forms_of_a_root_give_the_same_batches(
    root: Path, prepared_root: Path, shards: int
) -> None:
    """Training over several epochs and evaluation, with broken files left out."""
    seen = {}
    for form in (root, prepared_root):
        records = read_records(form, image_size=SIZE)
        options: dict[str, Any] = {"on_error": "skip", "shard": shards - 1, "shards": shards}
        source = batches(records, SIZE, **options)
        train = [next(source) for _ in range(15)]
        broken = BrokenFiles()
        ids = np.random.default_rng(1).permutation(24)
        evaluation = list(
            eval_batches(
                records, ids, image_size=SIZE, batch_size=5, on_error="skip", broken=broken
            )
        )
        seen[form] = train, evaluation, source.get_state(), list(broken.as_dict())
    (train, evaluation, state, broken), other = seen[root], seen[prepared_root]
    assert_equal(train, other[0])
    assert_equal(evaluation, other[1])
    assert np.unique(train[0]["image"]).size > 50  # pictures, not flat grey
    assert (state, broken) == other[2:]
    assert [Path(path).name for path in broken] == ["00000003_001.png", "00000009_000.png"]


def test_both_forms_are_the_same_data_set(root: Path, prepared_root: Path) -> None:
    one, other = (read_records(form, image_size=SIZE) for form in (root, prepared_root))
    assert one.checksums == other.checksums
    assert one.names.tolist() == other.names.tolist()
    assert batches(one, SIZE).steps_per_epoch == batches(other, SIZE).steps_per_epoch
    hashes = {
        make_split(
            r, protocol="B", folds=5, fold=1, val_fraction=0.1, box_share=1, split_seed=0, version=2
        ).hash
        for r in (one, other)
    }
    assert len(hashes) == 1


def test_a_broken_file_stops_training_in_both_forms(root: Path, prepared_root: Path) -> None:
    error_texts = []
    for form in (root, prepared_root):
        records = read_records(form, image_size=SIZE)
        with pytest.raises(UserError) as caught:
            list(eval_batches(records, np.arange(24), image_size=SIZE, batch_size=4))
        error_texts.append(str(caught.value))
    assert all(
        f"{root}/images/00000003_001.png: is empty (zero bytes)" in text for text in error_texts
    )
    assert "prepare again" in error_texts[1]


def test_another_image_size_is_another_data_set(
    root: Path, prepared_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="kacl_jax"):
        records = read_records(prepared_root, image_size=SIZE)
        assert "resized again" not in caplog.text
        shrunk = read_records(prepared_root, image_size=12)
    assert "prepared at 16 px and are resized again to 12 px" in caplog.text

    config = config_keys.flatten(config_keys.default())

    def settle(records: Records) -> None:
        (tmp_path / "run").mkdir(exist_ok=True)
        check_config(tmp_path / "run", config, records.checksums)
        write_config(tmp_path / "run", config, records.checksums)

    settle(read_records(root, image_size=SIZE))
    settle(records)  # a run may go on with the other form
    with pytest.raises(UserError, match="images prepared at 16 px"):
        settle(shrunk)
    twice = resize(resize(read_image(root / "images" / "00000001_001.png"), SIZE), 12)
    np.testing.assert_array_equal(shrunk.images.read(1, 12), twice)


def test_files_that_had_the_size_already_are_the_same_data_at_every_size(tmp_path: Path) -> None:
    root = small_root().write(tmp_path / "root", size=24)
    prepare_root(root=root, out=tmp_path / "out", size=24, workers=1)
    one, other = (read_records(form, image_size=16) for form in (root, tmp_path / "out"))
    assert one.checksums == other.checksums
    for i in (0, 7, 23):
        np.testing.assert_array_equal(one.images.read(i, 16), other.images.read(i, 16))


def test_missing_images_are_missing_in_both_forms(tmp_path: Path) -> None:
    root = small_root().write(tmp_path / "root")
    (root / "images" / "00000005_001.png").unlink()
    options = {"root": root, "out": tmp_path / "out", "size": SIZE, "workers": 1}
    with pytest.raises(UserError, match="of 24 images 1 are missing"):
        prepare_root(**options)
    prepare_root(**options, allow_missing=True)
    with pytest.raises(UserError, match="of 24 images 1 are missing: 00000005_001"):
        read_records(tmp_path / "out")
    one, other = (read_records(f, allow_missing=True) for f in (root, tmp_path / "out"))
    assert one.missing == other.missing == ("00000005_001.png",)
    assert one.names.tolist() == other.names.tolist()
    assert other.images.read(22, SIZE)[0, 0] == 23  # small_root's numbering, one gone


def test_real_xrays_are_kept_bit_for_bit(nih_original_root: Path, tmp_path: Path) -> None:
    manifest = prepare_root(root=nih_original_root, out=tmp_path / "out", size=512, workers=2)
    original = read_records(nih_original_root)
    prepared = read_records(tmp_path / "out")
    assert (manifest.images, manifest.resized) == (14, 14)
    for i, path in enumerate(original.images.paths):  # type: ignore[attr-defined]
        np.testing.assert_array_equal(prepared.images.read(i, 512), resize(read_image(path), 512))


def test_tensorflow_datasets_reads_what_was_prepared(root: Path, prepared_root: Path) -> None:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(prepared_root / "chest_xray14" / "1.0.0")
    source = builder.as_data_source("images")
    names = [record["name"].decode() for record in source]
    assert names == (prepared_root / "images.txt").read_text().split()
    assert len(names) == builder.info.splits["images"].num_examples == 22
    for k in (0, 6, 7, 21):  # across the seams of the shards
        expected = resize(read_image(root / "images" / names[k]), SIZE)
        np.testing.assert_array_equal(source[k]["image"][..., 0], expected)
    assert (
        len(list((prepared_root / "chest_xray14" / "1.0.0").glob("*.array_record-*-of-00004"))) == 4
    )


# ---- interrupted, repeated, refused

_CHILD = """
import os, signal, sys
from kacl_jax import prepare
from kacl_jax.data.prepared import builder
from kacl_jax.runtime import bucket_files

root, out, shard_bytes, where = sys.argv[1:]
prepare.prepare_root.__kwdefaults__["shard_bytes"] = int(shard_bytes)

def dying(owner, name, calls, number=signal.SIGKILL):
    real, count = getattr(owner, name), 0
    def replaced(*args, **options):
        nonlocal count
        count += 1
        if count == calls:
            os.kill(os.getpid(), number)
        return real(*args, **options)
    setattr(owner, name, replaced)

if where == "while decoding":
    dying(builder, "read_grey8", 12)
elif where == "gently":
    dying(builder, "read_grey8", 5, signal.SIGTERM)
elif where == "while packing":
    dying(bucket_files, "link_or_copy", 3)
elif where == "before the manifest":
    dying(prepare.Manifest, "to_json", 1)
code = prepare.main([f"--root={root}", f"--out={out}", "--size=16", "--workers=1"])
assert not {"tensorflow", "jax"} & set(sys.modules)
sys.exit(code)
"""


def child(root: Path, out: Path, where: str) -> subprocess.CompletedProcess[str]:
    arguments = [
        sys.executable,
        "-W",
        "error",
        "-c",
        _CHILD,
        str(root),
        str(out),
        str(SHARD),
        where,
    ]
    return subprocess.run(arguments, capture_output=True, text=True)


def test_a_killed_preparation_goes_on_to_the_same_bytes(
    root: Path, prepared_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed = child(root, out, "while decoding")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    parts = sorted(path.name for path in (out / "prepare").glob("*.json"))
    assert parts == ["00000.json", "job.json"]  # one part is whole, the second is not there
    with pytest.raises(UserError, match=r"not finished.*run the same"):
        read_records(out)
    first = (out / "prepare" / "00000.array_record").stat().st_ino
    assert list((out / "prepare").glob("draft-*"))
    stopped = child(root, out, "gently")
    assert stopped.returncode == INTERRUPTED, stopped.stderr
    assert "Run the same command again to resume" in stopped.stderr
    assert not list((out / "prepare").glob("draft-*"))  # what the killed one left is gone
    for where in ("while packing", "before the manifest"):
        assert child(root, out, where).returncode == -signal.SIGKILL
    done = child(root, out, "nowhere")
    assert done.returncode == 0, done.stderr
    assert "Resuming: 24 of 24 images are finished" in done.stderr
    assert content(out) == content(prepared_root)
    (first_shard, *_) = sorted((out / "chest_xray14" / "1.0.0").glob("*.array_record-*"))
    assert first_shard.stat().st_ino == first  # the part that the killed run had finished


def test_a_part_that_rotted_meanwhile_is_made_again(
    root: Path, prepared_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert child(root, out, "while packing").returncode == -signal.SIGKILL
    spoil(out / "prepare" / "00001.array_record")
    (out / "prepare" / "00002.array_record").unlink()
    prepare_root(root=root, out=out, size=SIZE, workers=3, shard_bytes=SHARD)
    assert content(out) == content(prepared_root)


def test_a_finished_set_is_left_alone_and_another_job_refused(
    root: Path, prepared_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {path: path.stat().st_mtime_ns for path in prepared_root.rglob("*")}
    with caplog.at_level(logging.INFO, logger="kacl_jax"):
        prepare_root(root=root, out=prepared_root, size=SIZE, workers=1)
    assert "already prepared" in caplog.text
    with pytest.raises(UserError, match="was prepared at 16 px, not at 20 px; give another folder"):
        prepare_root(root=root, out=prepared_root, size=20, workers=1)
    other = tmp_path / "other"
    shutil.copytree(root, other)
    with pytest.raises(UserError, match=f"was prepared from {root}, not from {other}"):
        prepare_root(root=other, out=prepared_root, size=SIZE, workers=1)
    with pytest.raises(UserError, match="holds other files"):
        prepare_root(root=root, out=root, size=SIZE, workers=1)
    with pytest.raises(UserError, match="is already prepared"):
        prepare_root(root=prepared_root, out=tmp_path / "out", size=SIZE, workers=1)
    assert {path: path.stat().st_mtime_ns for path in prepared_root.rglob("*")} == before


def test_changed_tables_are_another_job(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "root")
    prepare_root(root=tmp_path / "root", out=tmp_path / "out", size=SIZE, workers=1)
    table = tmp_path / "root" / "Data_Entry_2017.csv"
    table.write_text(table.read_text().replace("M,PA", "F,PA"))
    with pytest.raises(
        UserError, match=r"prepared when Data_Entry_2017\.csv of .* had other contents"
    ):
        prepare_root(root=tmp_path / "root", out=tmp_path / "out", size=SIZE, workers=1)


def test_a_small_disk_is_told_before_anything_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=24_000_000))
    with pytest.raises(UserError, match=r"needs 0\.1 GB more, but its disk has only 0\.0 GB left"):
        prepare_root(root=root, out=tmp_path / "out", size=2000, workers=1)
    assert not list(tmp_path.iterdir())
    prepare_root(root=root, out=tmp_path / "out", size=SIZE, workers=1)


def test_two_preparations_of_one_folder_do_not_mix(root: Path, tmp_path: Path) -> None:
    import fcntl

    out = tmp_path / "out"
    assert child(root, out, "while decoding").returncode == -signal.SIGKILL
    with (out / "prepare" / "job.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is preparing"):
            prepare_root(root=root, out=out, size=SIZE, workers=1, shard_bytes=SHARD)


# ---- damage


def spoil(path: Path, at: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


@pytest.fixture
def damaged(prepared_root: Path, tmp_path: Path) -> Path:
    """A copy of `prepared_root`, to be damaged."""
    return Path(shutil.copytree(prepared_root, tmp_path / "copy"))


def shard(root: Path, k: int) -> Path:
    return root / "chest_xray14" / "1.0.0" / f"chest_xray14-images.array_record-{k:05d}-of-00004"


def test_a_sound_set_verifies(prepared_root: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = check(prepared_root, progress=lambda done, of: seen.append((done, of)))
    (problem,) = report.problems  # the two files that were broken already
    assert "00000003_001.png is empty (zero bytes) (when the data were prepared" in str(problem)
    assert problem.count == 2
    assert seen[-1] == (22, 22)
    summary = json.loads(json.dumps(report.summary))
    assert (summary["images_prepared"], summary["record_files"]) == (22, 4)
    assert summary["prepared_size"] == SIZE == 16
    assert summary["sizes"] == {"16x16": 8, "24x24": 7, "40x40": 7}  # of the original files


def test_flipped_bits_are_named_and_never_seen(damaged: Path, prepared_root: Path) -> None:
    """Wherever the bit is: verify names the file, and reading gives the right picture or an error."""
    truth = read_records(prepared_root).images
    good = shard(prepared_root, 2).read_bytes()
    used = np.flatnonzero(np.frombuffer(good, np.uint8))  # the rest of the file is padding
    refused = []
    for at in used[:: len(used) // 20]:
        spoilt = bytearray(good)
        spoilt[at] ^= 1
        shard(damaged, 2).write_bytes(spoilt)
        error_text = format_problems(check(damaged).problems)
        assert "with another sha256: " + shard(Path(), 2).as_posix() in error_text
        images = read_records(damaged).images
        for i in (15, 18):
            try:
                pixels = images.read(i, SIZE)
            except UserError as error:
                refused.append(str(error))
            else:
                np.testing.assert_array_equal(pixels, truth.read(i, SIZE))
    assert len(refused) > 3
    assert all(shard(damaged, 2).name in text for text in refused)


def test_every_damaged_file_is_told_when_the_set_is_opened(damaged: Path) -> None:
    shard(damaged, 1).write_bytes(shard(damaged, 1).read_bytes()[:-1])
    shard(damaged, 3).unlink()
    with (damaged / "images.txt").open("a") as file:
        file.write("more.png\n")
    with pytest.raises(UserError) as caught:
        read_records(damaged)
    error_text = str(caught.value)
    assert "2 problem(s)" in error_text
    assert "images.txt: is missing or damaged" in error_text
    assert "00001-of-00004 (" in error_text
    assert "00003-of-00004 (it is missing)" in error_text


def test_a_damaged_manifest_and_other_text_files_are_told(damaged: Path) -> None:
    table = damaged / "test_list.txt"
    table.write_text(table.read_text() + "\n")
    assert "test_list.txt: has changed since" in format_problems(check(damaged).problems)
    manifest = damaged / "manifest.json"
    text = manifest.read_text()
    for wrong in (text[:-9], text.replace('"format": 1', '"format": 2'), "[]", "{}"):
        manifest.write_text(wrong)
        with pytest.raises(UserError, match=r"manifest\.json (is damaged|has format 2)"):
            read_records(damaged)


def test_every_flipped_digit_of_the_manifest_is_told(damaged: Path) -> None:
    """As `resized`, which decides whether these are the data of the PNG files."""
    manifest = damaged / "manifest.json"
    text = manifest.read_text()
    for wrong in (text.replace('"resized": 14', '"resized": 10'), text.replace("16", "17")):
        assert wrong != text
        manifest.write_text(wrong)
        with pytest.raises(UserError, match="its content does not match its digest"):
            read_records(damaged)
    manifest.write_bytes(text.encode().replace(b"numpy", b"n\xfcmpy").replace(b"tensor", b"t\xfc"))
    with pytest.raises(UserError, match=r"manifest\.json is damaged \(it is not UTF-8 text\)"):
        read_records(damaged)


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
def test_the_description_of_the_records_is_checked(damaged: Path, file: str) -> None:
    """Without it a run used to end inside tensorflow-datasets."""
    path = damaged / "chest_xray14/1.0.0" / file
    content = path.read_bytes()
    for state in (content.replace(b"1", b"2"), b"{", None):
        path.unlink()
        if state is not None:
            path.write_bytes(state)
        with pytest.raises(UserError, match=rf"{file}: is missing or damaged"):
            read_records(damaged)
        assert f"{file}: is missing or damaged" in format_problems(check(damaged).problems)
        path.write_bytes(content)


def test_a_set_of_an_older_version_is_read(damaged: Path, prepared_root: Path) -> None:
    """It has neither a digest nor the facts of the original files; its damage shows when the records are opened."""
    path = damaged / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"], manifest["files"]
    path.write_text(json.dumps(manifest))
    (damaged / "image_facts.csv").unlink()
    one, other = read_records(damaged), read_records(prepared_root)
    assert one.checksums == other.checksums
    np.testing.assert_array_equal(one.images.read(1, SIZE), other.images.read(1, SIZE))
    report = check(damaged)
    assert {problem.what for problem in report.problems} == {"a file cannot be read"}
    assert "prepare the data again" in report.summary["sizes"]
    features = damaged / "chest_xray14/1.0.0/features.json"
    features.write_text("{")
    with pytest.raises(UserError, match=r"1\.0\.0 is damaged"):
        read_records(damaged).images.read(1, SIZE)
    assert "cannot be read" in format_problems(check(damaged).problems)


def test_an_unfinished_set_that_is_damaged_is_told(root: Path, tmp_path: Path) -> None:
    job = tmp_path / "out/prepare/job.json"
    job.parent.mkdir(parents=True)
    for content in (b"{", b"[1]", b"\xff", b'{"root": 1}'):
        job.write_bytes(content)
        with pytest.raises(UserError, match=r"job\.json is damaged"):
            prepare_root(root=root, out=tmp_path / "out", size=SIZE, workers=1)


# ---- buckets


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> str:
    """A gs:// path whose objects are in memory."""
    import fsspec
    from etils.epath import backend
    from fsspec.implementations.memory import MemoryFileSystem

    class Bucket(MemoryFileSystem):
        protocol = ("gs", "gcs")
        store: ClassVar[dict[str, Any]] = {}
        pseudo_dirs: ClassVar[list[str]] = [""]
        cachable = False

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return super()._strip_protocol(str(path).removeprefix("gs://"))

    local = fsspec.filesystem("file")
    monkeypatch.setattr(
        backend.fsspec_backend,
        "_get_filesystem",
        lambda name: local if name == "file" else Bucket(),
    )
    return "gs://bucket/nih"


def test_a_bucket_gets_the_same_bytes(
    root: Path, prepared_root: Path, bucket: str, tmp_path: Path
) -> None:
    prepare_root(root=root, out=bucket, size=SIZE, workers=2, shard_bytes=SHARD)
    out = bucket_files.open_folder(bucket, "--out")
    files = {
        str(path).removeprefix(f"{bucket}/"): path.read_bytes()
        for path in [*out.glob("*"), *out.glob("*/*/*")]
        if path.is_file()
    }
    assert files == content(prepared_root)


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="the driver is there")
def test_a_bucket_without_its_driver_is_told(root: Path) -> None:
    with pytest.raises(UserError, match=r"--out=gs://b/nih needs a package.*gcsfs"):
        prepare_root(root=root, out="gs://b/nih", size=SIZE, workers=1)


def test_a_path_of_no_known_kind_is_told(root: Path) -> None:
    with pytest.raises(UserError, match="--out=floppy://b cannot be opened"):
        prepare_root(root=root, out="floppy://b", size=SIZE, workers=1)


def test_a_root_in_a_bucket_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--root=gs://b/nih: .* copy them there first"):
        prepare_root(root="gs://b/nih", out=tmp_path / "out", size=SIZE, workers=1)
    assert not (tmp_path / "out").exists()
