"""PyTorch's files read without torch: both layouts exactly, hostile and broken ones with a sentence."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.fuzz.torch_files import Module, to_bytes
from kacl_jax.models.weight_file import WeightFile
from kacl_jax.runtime.errors import UserError

GOLDEN = Path(__file__).parent / "golden"


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    file = WeightFile(path)
    return file.read(list(file.shapes))


@pytest.mark.parametrize("name", ["tiny_zip.pth", "tiny_legacy.pth"])
def test_both_formats_that_torch_writes_are_read_exactly(name: str) -> None:
    base = np.arange(24, dtype=np.float32)
    expected = {
        "plain": base,
        "permuted": base.reshape(2, 3, 4).transpose(2, 0, 1),
        "view_a": base[:6].reshape(2, 3),
        "view_b": base[6:24:3],
        "half": base.astype(np.float16),
        "parameter": base.reshape(4, 6),
        "scalar": np.array(7),
        "empty": np.zeros((0, 3), np.float32),
    }
    tensors = read_tensors(GOLDEN / name)
    assert list(tensors) == list(expected)
    for key, value in expected.items():
        assert tensors[key].dtype == value.dtype
        np.testing.assert_array_equal(tensors[key], value, strict=True)


class Payload:
    """A pickle of this makes a folder when it is loaded by a reader that runs code."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data.pkl", tensor_pickle())
        archive.writestr("weights/data/0", bytes(10**6))
    with pytest.raises(UserError, match="the archive is compressed"):
        read_tensors(path)


def write_zip(path: Path, pickled: bytes, storages: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", pickled)
        for key, raw in storages.items():
            archive.writestr(f"weights/data/{key}", raw)
    return path


@pytest.mark.parametrize("form", ["zip", "legacy", "legacy, behind a good head"])
def test_code_in_a_pickle_is_refused_and_never_run(tmp_path: Path, form: str) -> None:
    target, path = tmp_path / "owned", tmp_path / "evil.pth"
    evil = pickle.dumps({"weight": Payload(target)})
    if form == "zip":
        write_zip(path, evil, {})
    else:
        head = (
            b""
            if form == "legacy"
            else b"".join(
                pickle.dumps(part, 2)
                for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
            )
        )
        path.write_bytes(head + evil)
    with pytest.raises(UserError, match=r"needs (posix|nt)\.mkdir.*nothing was run"):
        read_tensors(path)
    assert not target.exists()
    pickle.loads(evil)  # noqa: S301 - shows that the payload is live
    assert target.is_dir()


def tensor_pickle(
    *, offset: int = 0, shape: str = "I6\n", stride: str = "I1\n", storage: str = "FloatStorage"
) -> bytes:
    """{'w': tensor} over a storage '0' of 6 numbers, in pickle's text opcodes."""
    return (
        f"(dS'w'\nctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\n{storage}\nS'0'\n"
        f"S'cpu'\nI6\ntQI{offset}\n({shape}t({stride}tI00\nccollections\nOrderedDict\n(tRtRs."
    ).encode()


def test_the_hand_written_pickle_is_a_good_file(tmp_path: Path) -> None:
    raw = np.arange(6, dtype="<f4").tobytes()
    path = write_zip(tmp_path / "w.pth", tensor_pickle(), {"0": raw})
    np.testing.assert_array_equal(read_tensors(path)["w"], np.arange(6, dtype=np.float32))


@pytest.mark.parametrize(
    "pickled,stored,says",
    [
        (tensor_pickle(offset=1), 24, "reaches past its storage"),
        (tensor_pickle(shape="I2\nI3\n", stride="I100\nI1\n"), 24, "reaches past its storage"),
        (tensor_pickle(offset=-1), 24, "impossible layout"),
        (tensor_pickle(stride="I-1\n"), 24, "impossible layout"),
        (tensor_pickle(stride="I1\nI1\n"), 24, "impossible layout"),
        (tensor_pickle(), 20, "truncated: it has 20 of 24 bytes"),
        (tensor_pickle(shape="I99999999\n", stride="I0\n"), 24, "more numbers than its storage"),
        (tensor_pickle(storage="UntypedStorage"), 24, "torch.UntypedStorage"),
        (tensor_pickle()[:-20], 24, "cannot be read as a PyTorch file"),
        (pickle.dumps({"epoch": 3}), 24, "no tensors"),
        (pickle.dumps([]), 24, "no tensors"),
        (tensor_pickle(shape="S'a'\n"), 24, "'w' is no tensor"),
    ],
)
def test_a_damaged_file_is_a_user_error(
    tmp_path: Path, pickled: bytes, stored: int, says: str
) -> None:
    raw = np.arange(6, dtype="<f4").tobytes()[:stored]
    with pytest.raises(UserError) as caught:
        read_tensors(write_zip(tmp_path / "w.pth", pickled, {"0": raw}))
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["tiny_zip.pth", "tiny_legacy.pth"])
def test_a_file_cut_anywhere_is_a_user_error(tmp_path: Path, name: str) -> None:
    whole = (GOLDEN / name).read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.pth cannot be read"):
            read_tensors(path)


def test_files_that_are_something_else_are_user_errors(tmp_path: Path) -> None:
    page = b"<html>404</html>"
    for name, says in (("w.pth", "a PyTorch file"), ("w.safetensors", "as safetensors")):
        path = tmp_path / name
        path.write_bytes(page)
        with pytest.raises(UserError, match=says):
            read_tensors(path)


def test_numbering_with_gaps_is_refused_before_memory_is_reserved(tmp_path: Path) -> None:
    pickled = tensor_pickle().replace(b"(dS'w'", b"(dr\xff\xff\xff\xffS'w'")
    with pytest.raises(UserError, match="numbering of objects has gaps"):
        read_tensors(write_zip(tmp_path / "w.pth", pickled, {"0": bytes(24)}))


@pytest.mark.parametrize("legacy", [False, True])
def test_modules_and_other_objects_are_read_without_their_classes(
    tmp_path: Path, legacy: bool
) -> None:
    kernel = np.arange(6, dtype="<f4").reshape(2, 3)
    inner = Module("torch.nn.modules.linear.Linear", {"weight": kernel}, {"counter": np.array(3)})
    outer = Module("somewhere.Net", modules={"fc": inner})
    content = {"epoch": 3, "net": outer, "args": Module("argparse.Namespace")}
    (tmp_path / "w.pth").write_bytes(to_bytes(content, legacy=legacy))
    tensors = read_tensors(tmp_path / "w.pth")
    assert list(tensors) == ["net.fc.weight", "net.fc.counter"]
    np.testing.assert_array_equal(tensors["net.fc.weight"], kernel)
