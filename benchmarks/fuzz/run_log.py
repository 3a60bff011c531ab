"""Mutations of metrics.jsonl. A strict parser says which lines must come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.fuzz.finished import Files, ask, row, run_files
from benchmarks.fuzz.judge import Case
from benchmarks.fuzz.run_files import ANY, sort_of
from benchmarks.fuzz.scene import Kind, Random, take, write
from benchmarks.fuzz.table_lines import damage


def _metrics(random: Random, folder: Path, turn: int) -> Case:
    """metrics.jsonl: a line that is none must be refused by its name; a last line that a kill has cut is dropped."""
    lines = run_files()["metrics.jsonl"].splitlines(keepends=True)
    number = int(random.integers(len(lines)))
    content = json.loads(lines[number])
    ways: dict[str, bytes] = {
        "3": b"3\n",
        "[]": b"[]\n",
        "null": b"null\n",
        "text": b"not JSON\n",
        "open": lines[number][:-3] + b"\n",
        "deep": b"[" * 100_000 + b"\n",
        "no UTF-8": lines[number].replace(b'"kind"', b'"k\xff"'),
        "no step": json.dumps({"kind": "val"}).encode() + b"\n",
        "a step of text": json.dumps({**content, "step": "x"}).encode() + b"\n",
        "a step of 1.5": json.dumps({**content, "step": 1.5}).encode() + b"\n",
        "a step of true": json.dumps({**content, "step": True}).encode() + b"\n",
        "no kind": json.dumps({"step": 1}).encode() + b"\n",
        "a kind of 3": json.dumps({**content, "kind": 3}).encode() + b"\n",
        "a text for a number": json.dumps({**content, "nt_xent": "x", "auroc": []}).encode()
        + b"\n",
        "a blank line": lines[number] + b"\n",
        "a zero byte": b"\0" + lines[number],
        "a last line that is cut": b"",
    }
    way = take(ways, turn)
    lines[number] = ways[way]
    cut = b'{"step": 6, "ki' if way == "a last line that is cut" else b""
    if cut:
        lines = run_files()["metrics.jsonl"].splitlines(keepends=True)
    files = {**run_files(), "metrics.jsonl": b"".join(lines) + cut}
    return _log_case(f"line {number} is {way}", folder, files)


def _metrics_byte(random: Random, folder: Path, turn: int) -> Case:
    files = dict(run_files())
    what, files["metrics.jsonl"] = damage(random, files["metrics.jsonl"], turn)
    return _log_case(what, folder, files)


def _log_case(what: str, folder: Path, files: Files) -> Case:
    """Row 0: the lines up to step 5, which are left when the run goes on. Row 1: what a sweep and the page read."""
    write(folder / "run", files)
    lines = _strict_lines(files["metrics.jsonl"])
    kept = None if lines is None else [line for line in lines if line["step"] <= 5]

    def resume() -> Any:
        from kacl_jax.train.log import MetricLog

        write(folder / "resumed", {"metrics.jsonl": files["metrics.jsonl"]})
        log = MetricLog(folder / "resumed", 5)
        log.write(6, "train", {"loss": float("nan")})
        log.close()
        text = (folder / "resumed" / "metrics.jsonl").read_bytes()
        return [json.loads(line) for line in text.splitlines()]

    def show() -> str:
        from kacl_jax.report import figures
        from kacl_jax.runtime import files as texts
        from kacl_jax.sweep import measure

        run = measure.read_files(folder / "run")
        log = texts.read_json_lines(folder / "run" / "metrics.jsonl")
        figures.training_charts(log, run.results.best_step)
        figures.feedback_section(log, run.results.feedback)
        return ANY

    added = {"step": 6, "kind": "train", "loss": None}
    rows = [row() if kept is None else row([*kept, added], may_refuse=_odd(lines))]
    rows.append(row() if kept is None else row(ANY, may_refuse=_odd(lines)))
    return Case(what, lambda: ask(resume, show, names="metrics.jsonl"), rows)


def _strict_lines(data: bytes) -> list[dict[str, Any]] | None:
    """The lines that must come out, or None where the file must be refused."""
    lines = []
    for text in data.split(b"\n")[:-1]:
        try:
            line = json.loads(text.decode("utf-8")) if text else None
        except (ValueError, RecursionError):
            return None
        if line is None and not text:
            continue
        if (
            not isinstance(line, dict)
            or type(line.get("step")) is not int
            or not isinstance(line.get("kind"), str)
        ):
            return None
        lines.append(line)
    return lines


def _odd(lines: list[dict[str, Any]] | None) -> bool:
    """Whether a line has other keys or sorts than a run writes, so that it may be refused."""
    intact = [json.loads(line) for line in run_files()["metrics.jsonl"].splitlines()]
    known = {(key, sort_of(value)) for line in intact for key, value in line.items()}
    seen = {(key, sort_of(value)) for line in lines or () for key, value in line.items()}
    return not seen <= known or len(lines or ()) != len(intact)


KINDS: dict[str, Kind] = {"run_metrics": _metrics, "run_metrics_byte": _metrics_byte}
