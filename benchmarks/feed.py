"""What reading images costs: images/s of one core from PNG files and from prepared data, and how long a step waits.

    python -m benchmarks.feed [--small=NIH] [--original=NIH_1024] [--steps=30] [--out=feed.json]

Batches of 32 at 512 px, uint8, on one core; medians over several rounds in which the contenders take turns. The process
is pinned to the core, and images/s are per second of CPU time, so that a busy machine does not change them. The files
are in the page cache.
  PNG 1024    the original files, decoded and halved; a few files, read repeatedly
  PNG 512     decoded
  prepared    what `python -m kacl_jax.prepare --size=512` makes of the PNG 512 files
  Pillow + PyTorch DataLoader    the same files, as their users would write it; left out where torch is not installed
With --steps, the loop then trains on the PNG 512 files and on the prepared data at 224 px, and prints which share of a
step it waited for its batch. The loss is focal only: that is the shortest step, during which the least can be read.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kacl_jax.data.batches import eval_batches
from kacl_jax.data.records import Records, read_records
from kacl_jax.prepare import prepare_root

SIZE, BATCH = 512, 32
STEP_SIZE = 224  # of the loop: images of SIZE px are reduced to it as they are read
_SHARED = Path(__file__).resolve().parents[2] / "shared"
_HAS_TORCH = importlib.util.find_spec("torch") is not None
_TORCH = "Pillow + DataLoader"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=Path, default=_SHARED / "nih")
    parser.add_argument("--original", type=Path, default=_SHARED / "nih_original")
    parser.add_argument("--images", type=int, default=256, help="per contender and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared"
        prepare_root(root=flags.small, out=prepared, size=SIZE, workers=os.cpu_count() or 1)
        roots = {"PNG 1024": flags.original, "PNG 512": flags.small, "prepared": prepared}
        report: dict[str, Any] = {
            "images_per_core_s": time_feeding(roots, flags.images, flags.rounds)
        }
        if flags.steps:
            report["data_wait"] = {
                name: time_waiting(
                    name, roots[name], Path(folder) / name.replace(" ", ""), flags.steps
                )
                for name in ("PNG 512", "prepared")
            }
    if flags.out:
        flags.out.write_text(json.dumps(report, indent=1) + "\n")


def time_feeding(roots: dict[str, Path], images: int, rounds: int) -> dict[str, Any]:
    """Prints and returns images per second of one core, by source and reader."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    contenders: dict[tuple[str, str], Callable[[], Iterator[int]]] = {}
    for source, root in roots.items():
        records = read_records(root)
        ids = np.arange(images) % len(records.names)
        contenders[source, "kacl_jax"] = lambda r=records, i=ids: kacl_batches(r, i)  # type: ignore[misc]
        if _HAS_TORCH and source != "prepared":
            paths = [records.images.paths[i] for i in ids]  # type: ignore[attr-defined]
            contenders[source, _TORCH] = lambda p=paths: pillow_batches(p)  # type: ignore[misc]
    rates: dict[tuple[str, str], list[float]] = {key: [] for key in contenders}
    for round_ in range(rounds + 1):
        for key, batches in contenders.items():
            start = time.process_time()
            assert sum(batches()) == images
            if round_:  # the first round opens files, imports and fills the page cache
                rates[key].append(images / (time.process_time() - start))
    os.sched_setaffinity(0, cores)
    table: dict[str, Any] = {}
    print(f"\n{'images/s of one core':24}{'kacl_jax':>10}{_TORCH:>22}{'ratio':>8}")
    for source in roots:
        kacl_rates = rates[source, "kacl_jax"]
        # Prepared data are compared with the PNG files of the same size.
        torch_rates = rates.get(("PNG 512" if source == "prepared" else source, _TORCH))
        row: dict[str, Any] = {"kacl_jax": statistics.median(kacl_rates)}
        line = f"{source:24}{row['kacl_jax']:10.0f}"
        if torch_rates:
            row[_TORCH] = statistics.median(torch_rates)
            row["ratio"] = statistics.median(
                a / b for a, b in zip(kacl_rates, torch_rates, strict=True)
            )
            line += f"{row[_TORCH]:22.0f}{row['ratio']:8.1f}"
        print(line)
        table[source] = row
    if not _HAS_TORCH:
        print("torch is not installed: no comparison")
    return table


def kacl_batches(records: Records, ids: np.ndarray) -> Iterator[int]:
    """The number of images in each batch, from the loader that training uses."""
    for batch in eval_batches(records, ids, image_size=SIZE, batch_size=BATCH):
        yield int(batch["valid"].sum())


def pillow_batches(paths: list[Path]) -> Iterator[int]:
    """The same from Pillow in a PyTorch Dataset; without worker processes, so that it runs on one core."""
    import torch
    from PIL import Image

    class Files(torch.utils.data.Dataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, k: int) -> torch.Tensor:
            with Image.open(paths[k]) as image:
                grey = image.convert("L")
            if grey.size != (SIZE, SIZE):
                grey = grey.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(grey))[None]

    for batch in torch.utils.data.DataLoader(Files(), batch_size=BATCH):
        yield len(batch)


def time_waiting(name: str, root: Path, workdir: Path, steps: int) -> dict[str, float]:
    """Train so many steps with the command itself, stop it, and read the share of waiting from its log."""
    batch = 16
    command = [
        sys.executable, "-m", "kacl_jax.main", "--config=configs/nih.py:pooled",
        f"--workdir={workdir}", f"--config.data.root={root}", f"--config.data.image_size={STEP_SIZE}",
        f"--config.train.batch_size={batch}", "--config.model.encoder=efficientnet_lite0",
        "--config.model.pretrained=", "--config.model.output_stride=32",
        "--config.loss.focal_weight=1.0", "--config.loss.box_weight=0.0", "--config.log_every=1",
    ]  # fmt: skip
    log = workdir / "metrics.jsonl"
    with subprocess.Popen(command, stdout=sys.stderr) as running:
        while running.poll() is None and len(_train_lines(log)) < steps:
            time.sleep(0.5)
        running.send_signal(signal.SIGTERM)
    lines = _train_lines(log)
    if len(lines) < steps:
        raise SystemExit(f"the run in {workdir} ended after {len(lines)} steps")
    # Left out: the first steps, which wait while files are opened and the step compiles.
    lines = lines[4:steps]
    elapsed_s = [(line["step"] - 2) * batch / line["images_per_s"] for line in lines]
    step_s = np.diff(elapsed_s)
    wait_s = np.diff([line["wait_data_s"] for line in lines])
    report = {
        "step_s": float(step_s.mean()),
        "wait_s": float(wait_s.mean()),
        "median_wait_s": float(np.median(wait_s)),
        "share": float(wait_s.sum() / step_s.sum()),
    }
    print(
        f"{name:24}step {report['step_s']:.2f} s, waited {1e3 * report['wait_s']:.1f} ms (median "
        f"{1e3 * report['median_wait_s']:.1f}): {report['share']:.3%} of a step"
    )
    return report


def _train_lines(log: Path) -> list[dict[str, Any]]:
    complete_lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [line for line in map(json.loads, complete_lines) if line["kind"] == "train"]


if __name__ == "__main__":
    main()
