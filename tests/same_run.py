"""What of a run must be equal, however often it was interrupted: everything that time has no part in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_run

from kacl_jax.train import checkpoint, clock

TIMES = ("images_per_s", "rois_per_s", *(f"wait_{name}" for name in (*clock.PARTS, "radiomics_s")))


def config(root: Path, **changes: Any) -> Any:
    """`tiny_run.get_config` with changed keys; __ stands for the dot."""
    c = tiny_run.get_config()
    c.data.root = str(root)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def comparable(workdir: Path) -> dict[str, Any]:
    """Everything a finished run left that time has no part in, as bytes or plain values."""
    saved = checkpoint.Checkpoints(workdir / "checkpoints")
    found: dict[str, Any] = {"steps": saved.steps()}
    for step in saved.steps():
        restored = saved.restore(step)
        for name, array in restored.arrays.items():
            group, _, rest = name.partition("/")
            if group == "state" or rest in ("features", "ready", "features_step", "pending_image"):
                found[f"{step} {name}"] = (str(array.dtype), array.shape, array.tobytes())
        restored.meta["tally"].pop("throughput")
        found[f"{step} meta"] = restored.meta
    for name in (
        *("predictions.csv", "predictions_fused.csv", "predictions_control.csv", "boxes.csv"),
        "fusion.json",
        *("calibration.json", "familiarity.json", "training_images.csv"),
    ):
        path = workdir / name
        found[name] = path.read_bytes() if path.exists() else None
    results = json.loads((workdir / "results.json").read_text())
    assert set(results.pop("throughput")) == {"images_per_s", "rois_per_s", "waits"}
    found["results.json"] = json.dumps(results)
    found["metrics.jsonl"] = metric_lines(workdir)
    return found


def metric_lines(workdir: Path, kind: str = "") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in TIMES}
        for line in lines
        if kind in ("", line["kind"])
    ]


def assert_same_run(workdir: Path, other: Path) -> None:
    one, two = comparable(workdir), comparable(other)
    assert one.keys() == two.keys()
    assert not [name for name in one if one[name] != two[name]]
