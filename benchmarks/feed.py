"""What feeding costs: images/s of one core from PNG files and from prepared data, and how long a real step waits.

    python -m benchmarks.feed [--small=NIH] [--original=NIH_1024] [--steps=30] [--out=feed.json]

Batches of 32 at 512 px, uint8, on one core (the process is pinned; images/s are those of a second of CPU time, so that
a busy machine does not change them), contenders interleaved, medians of several rounds; files in the page cache:
  PNG 1024    the original files, decoded and halved; a few files, read again and again
  PNG 512     decoded
  prepared    what `python -m kacl_jax.prepare --size=512` makes of the PNG 512 files
  Pillow + PyTorch DataLoader    the same files, as their users would write it; left out where torch is not installed
With --steps, the loop itself then trains on the PNG 512 files and on the prepared data at 224 px (focal loss only: the
shortest step, so the least time to hide behind), and tells which share of a step it waited for its batch.
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
from kacl_jax.data.nih import Records, read_records
from kacl_jax.prepare import prepare_root

SIZE, BATCH = 512, 32
STEP_SIZE = 224  # of the loop: pictures of SIZE are reduced to it as they are read
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
        found: dict[str, Any] = {"images_per_core_s": feeding(roots, flags.images, flags.rounds)}
        if flags.steps:
            found["data_wait"] = {
                name: waiting(name, roots[name], Path(folder) / name.replace(" ", ""), flags.steps)
                for name in ("PNG 512", "prepared")
            }
    if flags.out:
        flags.out.write_text(json.dumps(found, indent=1) + "\n")


def feeding(roots: dict[str, Path], images: int, rounds: int) -> dict[str, Any]:
    """Prints and returns images per second of one core, by source and reader."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    contenders: dict[tuple[str, str], Callable[[], Iterator[int]]] = {}
    for source, root in roots.items():
        records = read_records(root)
        ids = np.arange(images) % len(records.names)
        contenders[source, "kacl_jax"] = lambda r=records, i=ids: ours(r, i)  # type: ignore[misc]
        if _HAS_TORCH and source != "prepared":
            paths = [records.images.paths[i] for i in ids]  # type: ignore[attr-defined]
            contenders[source, _TORCH] = lambda p=paths: pillow(p)  # type: ignore[misc]
    rates: dict[tuple[str, str], list[float]] = {key: [] for key in contenders}
    for round_ in range(rounds + 1):
        for key, batches in contenders.items():
            start = time.process_time()
            assert sum(batches()) == images
            if round_:  # the first opens, imports and fills the page cache
                rates[key].append(images / (time.process_time() - start))
    os.sched_setaffinity(0, cores)
    table: dict[str, Any] = {}
    print(f"\n{'images/s of one core':24}{'kacl_jax':>10}{_TORCH:>22}{'ratio':>8}")
    for source in roots:
        own = rates[source, "kacl_jax"]
        # Prepared data stand in for the PNG files of the same size.
        theirs = rates.get(("PNG 512" if source == "prepared" else source, _TORCH))
        row: dict[str, Any] = {"kacl_jax": statistics.median(own)}
        line = f"{source:24}{row['kacl_jax']:10.0f}"
        if theirs:
            row[_TORCH] = statistics.median(theirs)
            row["ratio"] = statistics.median(a / b for a, b in zip(own, theirs, strict=True))
            line += f"{row[_TORCH]:22.0f}{row['ratio']:8.1f}"
        print(line)
        table[source] = row
    if not _HAS_TORCH:
        print("torch is not installed: no comparison")
    return table


def ours(records: Records, ids: np.ndarray) -> Iterator[int]:
    """Images in each batch, by the loader that training uses."""
    for batch in eval_batches(records, ids, image_size=SIZE, batch_size=BATCH):
        yield int(batch["valid"].sum())


def pillow(paths: list[Path]) -> Iterator[int]:
    """The same, by Pillow in a PyTorch Dataset; no worker process, so that one core is one core."""
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


def waiting(name: str, root: Path, workdir: Path, steps: int) -> dict[str, float]:
    """Trains that many steps by the command itself, stops it, and reads the share of waiting from its log."""
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
        while running.poll() is None and len(_lines(log)) < steps:
            time.sleep(0.5)
        running.send_signal(signal.SIGTERM)
    lines = _lines(log)
    if len(lines) < steps:
        raise SystemExit(f"the run in {workdir} ended after {len(lines)} steps")
    # The first batches are waited for while files are opened and the step compiles.
    lines = lines[4:steps]
    since = [(line["step"] - 2) * batch / line["images_per_s"] for line in lines]
    took = np.diff(since)
    waits = np.diff([line["wait_data_s"] for line in lines])
    found = {
        "step_s": float(took.mean()),
        "wait_s": float(waits.mean()),
        "median_wait_s": float(np.median(waits)),
        "share": float(waits.sum() / took.sum()),
    }
    print(
        f"{name:24}step {found['step_s']:.2f} s, waited {1e3 * found['wait_s']:.1f} ms (median "
        f"{1e3 * found['median_wait_s']:.1f}): {found['share']:.3%} of a step"
    )
    return found


def _lines(log: Path) -> list[dict[str, Any]]:
    whole = log.read_text().split("\n")[:-1] if log.exists() else []
    return [line for line in map(json.loads, whole) if line["kind"] == "train"]


if __name__ == "__main__":
    main()
