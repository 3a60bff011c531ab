"""Checkpoints come back bit for bit, or are refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kacl_jax.runtime.errors import NonFiniteError, UserError
from kacl_jax.runtime.workdir import has_checkpoint
from kacl_jax.train import checkpoint
from kacl_jax.train.checkpoint import Checkpoints


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "state/params/dense/kernel": random.normal(size=(64, 32)).astype(np.float32),
        "state/step": np.array(seed, np.int32),
        "feedback/ready": random.random(40) < 0.5,
        "feedback/pixels": random.integers(0, 256, 1000).astype(np.uint8),
        "feedback/nothing": np.zeros((0, 4), np.uint8),
        "ids": np.arange(7),
    }


# orbax lets go of some futures and event loops when a read fails in the middle.
ORBAX_LEFTOVERS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
META: dict[str, Any] = {"tally": {"best": None, "auroc": 0.5}, "data": {"next_index": 12}}


def saved(folder: Path, *steps: int, best: int | None = None) -> Checkpoints:
    checkpoints = Checkpoints(folder / "checkpoints")
    for step in steps:
        checkpoints.save(step, arrays(step), META, best=best)
    return checkpoints


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        x.dtype == b[k].dtype and x.shape == b[k].shape and x.tobytes() == b[k].tobytes()
        for k, x in a.items()
    )


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    back = Checkpoints(tmp_path / "checkpoints").restore_latest()
    assert back is not None
    assert back.step == 3
    assert equal(back.arrays, arrays(3))
    assert back.meta == META


def test_a_link_to_a_checkpoint_is_dropped_and_what_it_names_stays(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    elsewhere = (checkpoints.directory / "00000001").rename(tmp_path / "elsewhere")
    (checkpoints.directory / "00000001").symlink_to(elsewhere)
    for step in (2, 3):
        checkpoints.save(step, arrays(), META, best=None)
    assert checkpoints.steps() == [2, 3]
    assert any(elsewhere.iterdir())


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "checkpoints").restore_latest() is None


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    assert saved(tmp_path, 1, 2, 3, 4, 5, best=2).steps() == [2, 4, 5]


def files_of(checkpoints: Checkpoints, step: int) -> list[Path]:
    folder = checkpoints.directory / f"{step:08d}"
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


@ORBAX_LEFTOVERS
def test_no_flipped_byte_is_restored_as_weights(tmp_path: Path) -> None:
    """Any byte of any file: what comes back is the right content of the newest or of the one before."""
    checkpoints = saved(tmp_path, 1, 2)
    random = np.random.default_rng(0)
    caught = 0
    for path in files_of(checkpoints, 2):
        content = path.read_bytes()
        for at in random.integers(0, len(content), 4):
            path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
            again = Checkpoints(checkpoints.directory)
            back = again.restore_latest()
            assert back is not None
            assert equal(back.arrays, arrays(back.step))
            assert (back.step == 1) == bool(again.damaged)
            caught += back.step == 1
        path.write_bytes(content)
    assert caught > 5


@ORBAX_LEFTOVERS
@pytest.mark.parametrize("harm", ["truncated", "missing"])
def test_a_damaged_file_is_named_and_the_previous_checkpoint_taken(
    tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    for path in files_of(checkpoints, 2):
        content = path.read_bytes()
        path.write_bytes(content[:-20])
        if harm == "missing":
            path.unlink()
        back = Checkpoints(checkpoints.directory).restore_latest()
        assert back is not None
        assert equal(back.arrays, arrays(back.step))
        path.write_bytes(content)
    assert "00000002 is damaged" in caplog.text


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), MemoryError()])
def test_what_cannot_be_read_now_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Else the run would go on from an older one, and its next save would delete the newest."""
    checkpoints = saved(tmp_path, 1, 2)

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoints._orbax, "restore", refuse)
    with pytest.raises(UserError, match="00000002 cannot be read now"):
        checkpoints.restore_latest()
    assert checkpoints.steps() == [1, 2]
    assert not checkpoints.damaged


@ORBAX_LEFTOVERS
def test_when_all_are_damaged_nothing_is_made_up(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    for step in (1, 2):
        shutil.rmtree(checkpoints.directory / f"{step:08d}" / "arrays")
    with pytest.raises(UserError, match=r"00000002.*00000001"):
        checkpoints.restore_latest()


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    (checkpoints.directory / "00000002.orbax-checkpoint-tmp").mkdir()
    assert Checkpoints(checkpoints.directory).steps() == [1]
    assert [p.name for p in checkpoints.directory.iterdir()] == ["00000001"]


@ORBAX_LEFTOVERS
def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    shutil.rmtree(checkpoints.directory / "00000002" / "arrays")
    checkpoints.save(2, arrays(2), META, best=None)
    assert equal(checkpoints.restore(2).arrays, arrays(2))


def test_a_failed_save_names_the_path_and_leaves_the_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved(tmp_path, 1)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._orbax, "save", full)
    with pytest.raises(UserError, match=r"00000002 cannot be written.*No space"):
        checkpoints.save(2, arrays(2), META, best=None)
    assert equal(checkpoints.restore(1).arrays, arrays(1))


def test_a_tree_comes_back_by_name_and_a_misfit_is_named() -> None:
    tree = {"a": [np.zeros(3, np.float32), np.ones((2, 2), np.int32)], "b": np.array(True)}
    named = checkpoint.to_arrays(tree, "state")
    back = checkpoint.from_arrays(tree, named, "state")
    np.testing.assert_array_equal(back["a"][1], tree["a"][1])
    other = {**tree, "a": [np.zeros(4, np.float32), tree["a"][1]]}
    with pytest.raises(UserError, match=r"state/a/0 is float32\[3\], expected float32\[4\]"):
        checkpoint.from_arrays(other, named, "state")
    with pytest.raises(UserError, match="state/c is missing"):
        checkpoint.from_arrays({**tree, "c": np.zeros(1)}, named, "state")


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from kacl_jax.runtime import output
from kacl_jax.runtime.errors import UserError
from kacl_jax.train.checkpoint import Checkpoints

output.silence_late_answers()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints = Checkpoints(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0).integers(0, 256, 300_000).astype(np.uint8)
try:
    checkpoints.save(2, {"noise": noise}, {}, best=None)
except UserError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: the error comes from below orbax."""
    checkpoints = saved(tmp_path, 1)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(checkpoints.directory)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "00000002 cannot be written" in done.stdout, done.stderr
    assert "File too large" in done.stdout
    assert "Traceback" not in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    again = Checkpoints(checkpoints.directory)
    assert [p.name for p in again.directory.iterdir()] == ["00000001"]
    back = again.restore_latest()
    assert back is not None
    assert equal(back.arrays, arrays(1))


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    (checkpoints.directory / ".DS_Store").write_text("")
    (checkpoints.directory / "notes").mkdir()
    assert Checkpoints(checkpoints.directory).steps() == [1]
    assert {p.name for p in checkpoints.directory.iterdir()} == {".DS_Store", "notes", "00000001"}


def test_a_damaged_checkpoint_ahead_of_the_run_is_not_one_of_the_last_two(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 4, 6)
    shutil.rmtree(checkpoints.directory / "00000006" / "arrays")
    checkpoints.save(5, arrays(5), META, best=None)
    assert checkpoints.steps() == [4, 5]


def test_a_copy_of_a_checkpoint_is_not_taken_for_another_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    shutil.copytree(checkpoints.directory / "00000002", checkpoints.directory / "00000099")
    back = checkpoints.restore_latest()
    assert back is not None
    assert back.step == 2
    assert "00000099 is a copy of that of step 2" in caplog.text


def test_an_older_checkpoint_does_not_say_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = checkpoint._digest
    monkeypatch.setattr(
        checkpoint, "_digest", lambda arrays, meta, step: digest(arrays, meta, None)
    )
    checkpoints = saved(tmp_path, 1)
    head = next(checkpoints.directory.rglob("head/metadata"))
    content = json.loads(head.read_text())
    del content["step"]
    head.write_text(json.dumps(content))
    monkeypatch.undo()
    assert equal(checkpoints.restore(1).arrays, arrays(1))


def test_numbers_that_are_not_finite_are_neither_saved_nor_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved(tmp_path, 1)
    bad = arrays(2)
    name = next(k for k, a in bad.items() if a.dtype.kind == "f" and a.size)
    bad[name] = np.full_like(bad[name], np.inf)
    with pytest.raises(
        NonFiniteError, match=f"{name} is not finite. The checkpoint of step 1 is there"
    ):
        checkpoints.save(2, bad, {}, best=None)
    assert checkpoints.steps() == [1]
    with monkeypatch.context() as patch:  # as by a version that did not look
        patch.setattr(checkpoint, "_non_finite", lambda arrays: "")
        checkpoints.save(2, bad, {}, best=None)
    back = checkpoints.restore_latest()
    assert back is not None
    assert back.step == 1


def test_files_that_are_no_checkpoints_are_left_alone(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    for name in ("00000007", "notes.txt", "²²²²²²²²", "0.orbax-checkpoint-tmp"):
        (checkpoints.directory / name).write_text("mine")
    again = Checkpoints(checkpoints.directory)
    assert again.steps() == [1]
    assert has_checkpoint(tmp_path)
    again.save(2, arrays(2), {}, best=None)
    shutil.rmtree(checkpoints.directory / "00000001")
    shutil.rmtree(checkpoints.directory / "00000002")
    assert not has_checkpoint(tmp_path)
