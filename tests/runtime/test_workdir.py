"""What surrounds a run: lock, files on disk, metric log, signals."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from kacl_jax.runtime import files, huge_pages, provenance, signals, workdir
from kacl_jax.runtime.errors import INTERRUPTED, UserError, WorkdirInUseError
from kacl_jax.runtime.workdir import lock_workdir
from kacl_jax.train.log import MetricLog
from kacl_jax.train.tensorboard import EventFile


def test_a_workdir_is_held_by_one_process_and_freed_by_its_death(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from kacl_jax.runtime.workdir import lock_workdir\n"
        "with lock_workdir(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(WorkdirInUseError, match=str(tmp_path)), lock_workdir(tmp_path):
            pass
        holder.kill()
    with lock_workdir(tmp_path):
        pass


def test_a_workdir_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--workdir"), lock_workdir(tmp_path / "file" / "run"):
        pass


def test_a_file_system_that_cannot_lock_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(workdir.fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"cannot lock files .*--workdir"), lock_workdir(tmp_path):
        pass


def test_damaged_files_of_a_workdir_are_named(tmp_path: Path) -> None:
    for torn in (b"\xff", b"{"):
        (tmp_path / "results.json").write_bytes(torn)
        with pytest.raises(UserError, match=r"results\.json cannot be read"):
            files.read_json(tmp_path / "results.json")
    log = tmp_path / "metrics.jsonl"
    line = b'{"step": 1, "kind": "train"}\n'
    log.write_bytes(line + b'\n{"step"')  # the last line was cut short by a kill
    assert files.read_json_lines(log) == [{"step": 1, "kind": "train"}]
    for torn in (b"\0\0", b"\xff", b"{", b"3", b"[]", b'{"step": 1}', b"[" * 9999):
        log.write_bytes(line + torn + b"\n" + line)
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: not (JSON|an object)"):
            files.read_json_lines(log)
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
            MetricLog(tmp_path, 1)


def test_a_bucket_is_refused_as_a_workdir_and_no_folder_gs_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path("gs://bucket/run"), Path("gs://bucket/run").absolute()):
        with (
            pytest.raises(UserError, match=r"--workdir names a bucket \(bucket/run\)"),
            lock_workdir(path),
        ):
            pass
    assert not list(tmp_path.iterdir())


def test_json_is_valid_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match=str(path)):
        files.write_json(path, {"a": float("nan")})
    assert files.read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
    path.write_text('{"a": ')
    with pytest.raises(UserError, match=r"x\.json"):
        files.read_json(path)


def lines(workdir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_metric_lines_past_the_restored_step_are_cut(tmp_path: Path) -> None:
    log = MetricLog(tmp_path, 0)
    for step in (1, 2, 3, 4):
        log.write(step, "train", {"loss": 1.0 / step, "age": float("nan")})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "ki')  # a kill in the middle of a line
    log = MetricLog(tmp_path, 2)
    log.write(3, "val", {"auroc": 0.7})
    log.close()
    assert [(line["step"], line["kind"]) for line in lines(tmp_path)] == [
        (1, "train"),
        (2, "train"),
        (3, "val"),
    ]
    assert lines(tmp_path)[0]["age"] is None
    assert list((tmp_path / "tensorboard").iterdir())


def test_tensorboards_file_holds_the_same_events_as_tensorboardx_would_write(
    tmp_path: Path,
) -> None:
    events = EventFile(tmp_path / "ours", 5)
    events.add_scalar("train/loss", 0.25, 6)
    events.close()
    theirs = EventsWriter(str(tmp_path / "events"))
    content = next((tmp_path / "ours").iterdir()).read_bytes()
    records = []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        records.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    for record in records[1:]:  # the first one names the version
        theirs.write_event(record)
    theirs.close()
    first = 16 + len(records[0].SerializeToString())
    (ours,) = (tmp_path / "ours").iterdir()
    (other,) = tmp_path.glob("events*")
    assert ours.read_bytes()[first:] == other.read_bytes()[-len(ours.read_bytes()[first:]) :]
    assert [record.step for record in records] == [0, 5, 6]
    assert records[2].summary.value[0].simple_value == 0.25


def test_a_full_disk_under_tensorboards_file_is_a_sentence(tmp_path: Path) -> None:
    log = MetricLog(tmp_path, 0)
    log._events._file.close()
    log._events._file = open("/dev/full", "wb", buffering=0)  # noqa: PTH123, SIM115
    with pytest.raises(UserError, match=r"tensorboard cannot be written .*No space left"):
        log.write(1, "train", {"loss": 1.0})
    log.close()


def test_one_signal_asks_and_a_second_one_ends_at_once() -> None:
    code = (
        "import time; from kacl_jax.runtime import signals\n"
        "with signals.Interrupt().listening() as interrupt:\n"
        "    print('ready', flush=True)\n"
        "    while True:\n"
        "        time.sleep(0.02)\n"
        "        if interrupt.requested: print('asked', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(45) == INTERRUPTED  # without waiting for the sleep's end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_training_stops_wherever_it_comes(number: signal.Signals) -> None:
    """In a garbage collector's callback, too, where Python ignores exceptions."""
    code = (
        "import gc, os; from kacl_jax.runtime import signals\n"
        "signals.exit_on_signals('Stopped')\n"
        f"gc.callbacks.append(lambda *_: os.kill(os.getpid(), {number}))\n"
        "gc.collect()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (INTERRUPTED, "")
    assert done.stderr == "\nStopped\n"


def test_a_signal_during_the_imports_or_while_the_command_starts_itself_again_stops_it(
    tmp_path: Path,
) -> None:
    importing = (
        "import os, runpy, signal, sys\n"
        "class Hook:\n"
        "    def find_spec(name, *_):\n"
        "        if name == 'ml_collections': os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Hook)\n"
        "runpy.run_module('kacl_jax.main', run_name='__main__', alter_sys=True)\n"
    )
    restarting = (
        "import os, platform, signal, sys\n"
        "from kacl_jax.runtime import huge_pages, signals\n"
        "if 'again' in sys.argv: signals.exit_on_signals('Stopped')\n"
        "execv = os.execv\n"
        "def stopped_execv(path, argv):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    execv(path, [path, __file__, 'again'])\n"
        "os.execv = stopped_execv\n"
        "platform.libc_ver = lambda: ('glibc', '')\n"
        "huge_pages.restart_with_huge_pages()\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    for code, tunables in ((importing, f"{huge_pages.TUNABLE}=0"), (restarting, "")):
        (tmp_path / "command.py").write_text(code)
        done = subprocess.run(
            [sys.executable, str(tmp_path / "command.py")],
            capture_output=True, text=True, timeout=60,
            env={**environment, "GLIBC_TUNABLES": tunables, "PYTHONPATH": str(Path.cwd())},
        )  # fmt: skip
        assert done.returncode == INTERRUPTED, done.stderr
        assert done.stderr.strip().startswith("Stopped")


def test_a_program_goes_on_when_nobody_reads_it(tmp_path: Path) -> None:
    """A pipe whose reader has gone, and streams that were closed at the start, as by 2>&-."""
    code = (
        "import sys; from kacl_jax.runtime import output\n"
        "output.prepare_streams()\n"
        f"with open({str(tmp_path / 'file')!r}, 'w') as file:\n"
        "    for k in range(9999): print(k, '\\u2265'); print(k, file=sys.stderr)\n"
        "    print('end', file=file)\n"
    )
    for redirect in ("| true", "2>&1 | true", ">&- 2>&-", "<&- 2>&-"):
        (tmp_path / "file").unlink(missing_ok=True)
        command = (
            f"set -o pipefail; {shlex.quote(sys.executable)} -c {shlex.quote(code)} {redirect}"
        )
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
        assert (done.returncode, "Error" in done.stderr) == (0, False), redirect
        assert (tmp_path / "file").read_text() == "end\n", redirect


def test_signals_go_back_to_who_had_them() -> None:
    before = signal.getsignal(signal.SIGTERM)
    interrupt = signals.Interrupt()
    with interrupt.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
    assert interrupt.requested
    assert signal.getsignal(signal.SIGTERM) is before


def test_provenance_names_versions_and_devices() -> None:
    found = provenance.collect([])
    assert found["packages"]["jax"]
    assert found["packages"]["pyradiomics-bhklab"]
    json.dumps(found)


def test_a_metric_that_cannot_be_written_is_told_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk:
        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

    log = MetricLog(tmp_path, 0)
    with monkeypatch.context() as patch:
        patch.setattr(log, "_lines", FullDisk())
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written .*No space"):
            log.write(1, "train", {"loss": 1.0})
    log.close()
