"""A fuzz of all that the program reads, from images to flags: python -m benchmarks.fuzz [cases] [seed]

Each case has a known truth. The counts of each kind: right values · a sentence (a row with a reason, or an error that
the user can read) · and four faults: traceback · crash (signal, hang, too much memory) · wrong (values that are not the
true ones, or rows that are missing, in silence) · lost (a sentence where the values were due). Exit code 1 if there is
a fault. docs/fuzz.md says how to add a kind. `--only KIND:SEED` repeats one case.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.fuzz.child import KINDS
from benchmarks.fuzz.judge import CRASH, FAULTS, RIGHT, SENTENCE

REPO = Path(__file__).resolve().parents[2]
CHILD = "benchmarks.fuzz.child"
# Two turns each.
MANY_WAYS = (
    "box_text",
    "arguments",
    "extract_many_bins",
    "extract_dtypes",
    "extract_arguments",
    "dicom_tag",
    "dicom_bit",
    "table_label_cell",
    "table_box_cell",
    "table_row",
    "table_byte",
    "prepared_byte",
    "own_label_cell",
    "own_box_cell",
    "own_row",
    "own_byte",
    "checkpoint_byte",
    "memo_byte",
    "run_cell",
    "weights_byte",
    "weights_pickle",
)
BATCH = 50
SECONDS = 120  # of a case; the first of a batch may compile
IDLE_SECONDS = 20  # without any processor time: it hangs
MEMORY = 3 << 29  # bytes that a case may add
Report = dict[str, str]


def case_names(cases: int, seed: int, prefix: str = "") -> list[str]:
    """The kinds take turns; sorted by kind, so that the cases of a batch share what they compile.

    prefix: only kinds whose name begins so, or with one of several that have commas between.
    """
    turns = [kind for kind in (*KINDS, *MANY_WAYS) if kind.startswith(tuple(prefix.split(",")))]
    number = Counter(turns[i % len(turns)] for i in range(cases))
    return [f"{kind}:{seed * 1_000_000 + i}" for kind in KINDS for i in range(number[kind])]


def run(names: list[str]) -> list[Report]:
    """The reports of all cases, in their order."""
    batches = [names[start : start + BATCH] for start in range(0, len(names), BATCH)]
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        return [report for reports in pool.map(_run_batch, batches) for report in reports]


def _run_batch(names: list[str]) -> list[Report]:
    """One child after the other until every case has a report.

    A case that hangs or takes too much memory is the one that runs. A signal may be the late effect of an earlier
    case, so all cases up to it run again, each in its own child.
    """
    reports: list[Report] = []
    while len(reports) < len(names):
        rest = names[len(reports) :]
        done = _run_child(rest)
        if len(done) > 1 and done[-1]["text"].startswith("signal"):
            done = [report for name in rest[: len(done)] for report in _run_child([name])]
        reports += done
    return reports


def _run_child(names: list[str]) -> list[Report]:
    """The reports of the cases up to the last one, or to the one that ended the child, which is a crash."""
    with tempfile.TemporaryDirectory() as folder:
        path, errors = Path(folder) / "report", Path(folder) / "stderr"
        path.touch()
        with errors.open("w") as stderr:
            child = subprocess.Popen(
                [sys.executable, "-m", CHILD, str(path), *names],
                cwd=REPO,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={
                    "JAX_COMPILATION_CACHE_DIR": str(REPO / ".jax_cache"),
                    **os.environ,
                    "TMPDIR": folder,
                },
            )
            end = _watch(child, path)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # workers that it left behind
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        reports = [line for line in lines if "verdict" in line]
        text = errors.read_text(errors="replace").strip()
    if len(reports) == len(names):
        return reports
    if not end and child.returncode >= 0:
        raise RuntimeError(f"the fuzz itself failed in {names[len(reports)]}:\n{text}")
    end = end or f"signal {signal.Signals(-child.returncode).name} {text.splitlines()[-1:]}"
    return [*reports, {**lines[-1], "verdict": CRASH, "text": end}]


def _watch(child: subprocess.Popen[bytes], report: Path) -> str:
    """Waits for the child; kills it and says why where a case takes too long or too much memory."""
    size, started, base = -1, 0.0, 0
    busy, processor = time.monotonic(), 0.0
    reason = ""
    while child.poll() is None:
        time.sleep(0.05)
        now = time.monotonic()
        try:
            memory, seconds = _memory(child.pid), _processor_seconds(child.pid)
        except (FileNotFoundError, ProcessLookupError, IndexError):
            continue
        if report.stat().st_size != size:
            size, started, base, busy = report.stat().st_size, now, memory, now
        if seconds > processor + 0.02:
            busy, processor = now, seconds
        if memory - base > MEMORY:
            reason = f"more than {MEMORY >> 20} MiB of memory"
        elif now - busy > IDLE_SECONDS:
            reason = f"hangs: nothing for {IDLE_SECONDS} s"
        elif now - started > SECONDS:
            reason = f"takes more than {SECONDS} s"
        if reason:
            child.kill()
            child.wait()
    return reason


def _memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _processor_seconds(session: int) -> float:
    """Of all processes of a session, so that a process that waits for its workers is not idle."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(") ", 1)[1].split()
        except (OSError, IndexError):
            continue
        if int(fields[3]) == session:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def table(reports: list[Report]) -> Iterator[str]:
    """Markdown: the counts of each kind."""
    columns = (*FAULTS, SENTENCE, RIGHT)
    yield "| kind | cases | " + " | ".join(columns) + " |"
    yield "|---|" + "---|" * (len(columns) + 1)
    counts = Counter((report["kind"], report["verdict"]) for report in reports)
    for kind in KINDS:
        row = [counts[kind, column] for column in columns]
        if sum(row):
            yield f"| {kind} | {sum(row)} | " + " | ".join(map(str, row)) + " |"
    total = [sum(report["verdict"] == column for report in reports) for column in columns]
    yield f"| all | {len(reports)} | " + " | ".join(map(str, total)) + " |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("cases", type=int, nargs="?", default=1000)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument(
        "--kinds", default="", metavar="PREFIX", help="as dicom or memo,run: only these kinds"
    )
    parser.add_argument("--only", metavar="KIND:SEED", help="repeat this case alone")
    flags = parser.parse_args(arguments)
    start = time.monotonic()
    reports = run([flags.only] if flags.only else case_names(flags.cases, flags.seed, flags.kinds))
    faults = [report for report in reports if report["verdict"] in FAULTS]
    for report in reports if flags.only else faults:
        text = " ".join(f"{report['what']} → {report['text']}".split())[:300]
        text = text.encode(errors="backslashreplace").decode()  # a lone surrogate
        print(f"{report['verdict']:9} --only {report['kind']}:{report['seed']}  {text}")
    print("\n" + "\n".join(table(reports)))
    print(f"\n{len(faults)} faults in {len(reports)} cases, {time.monotonic() - start:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
