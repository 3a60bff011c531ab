"""One of the two loops that benchmarks.vs_torch compares: PyTorch, synchronous. Prints images/s as JSON.

python -m benchmarks.vs_torch.torch_loop ROOT SIZE BATCH

Three times: pyradiomics called as its documentation shows, on the file's own pixels and on those that the network
sees, and the package's own tuned call of it on the latter, which is what kacl_jax measures.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.vs_torch import torch_kacl
from kacl_jax.data.records import read_records
from kacl_jax.radiomics import FEATURE_NAMES, LOG_COLUMNS
from kacl_jax.radiomics.host import Extractor, RadiomicsError

STEPS = 6
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Images(torch.utils.data.Dataset):
    """The images of a root: resized for the network, and as they are in the files."""

    def __init__(self, root: str, size: int) -> None:
        self.size = size
        records = read_records(Path(root), findings=8, allow_missing=True)
        self.paths = [str(Path(root) / "images" / name) for name in records.names]
        self.labels = torch.from_numpy(records.labels.astype(np.float32))
        self.patients = torch.from_numpy(records.patients)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> dict[str, torch.Tensor]:
        file = cv2.imread(self.paths[k], cv2.IMREAD_GRAYSCALE)
        image = cv2.resize(file, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return {
            "image": torch.from_numpy(image)[None],
            "file": torch.from_numpy(file),
            "labels": self.labels[k],
            "patient_id": self.patients[k],
        }


class RunningScaler:
    """z-scores of features: signed log1p of some columns, then running mean and variance."""

    def __init__(self) -> None:
        self.mean, self.var, self.count = np.zeros(len(LOG_COLUMNS)), np.ones(len(LOG_COLUMNS)), 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = np.where(LOG_COLUMNS, np.sign(x) * np.log1p(np.abs(x)), x)
        self.count += 1
        rate = max(0.01, 1 / self.count)
        self.mean += rate * (x.mean(0) - self.mean)
        self.var += rate * (x.var(0) - self.var)
        return np.clip((x - self.mean) / np.sqrt(self.var + 1e-6), -10, 10).astype(np.float32)


def main(root: str, size: int, batch_size: int) -> None:
    loader = torch.utils.data.DataLoader(
        Images(root, size),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        pin_memory=DEVICE == "cuda",
        generator=torch.Generator().manual_seed(0),
    )
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    extractor = Extractor(25.0)

    def tuned(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
        try:
            return extractor.extract(pixels, mask)
        except RadiomicsError:
            return np.zeros(len(FEATURE_NAMES), np.float32)

    documented = torch_kacl.documented_extractor()
    contenders = {
        "documented, file's pixels": (documented, "file"),
        "documented": (documented, "image"),
        "tuned": (tuned, "image"),
    }
    net = torch_kacl.TorchKACL(8, len(FEATURE_NAMES))
    net = net.to(DEVICE, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4, weight_decay=1e-5)
    scaler = RunningScaler()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for step in range(STEPS + 1):
        for name, (extract, key) in contenders.items():
            start = time.perf_counter()
            rows = next(batches)
            pixels = rows[key].numpy().reshape(batch_size, *rows[key].shape[-2:])
            batch = {part: rows[part].to(DEVICE) for part in ("image", "labels", "patient_id")}
            args: Any = (net, optimizer, batch, pixels, extract, scaler)
            torch_kacl.synchronous_step(*args, amp=DEVICE == "cuda")
            if step:
                seconds[name].append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                f"PyTorch, pyradiomics {name}": batch_size / statistics.mean(step_seconds)
                for name, step_seconds in seconds.items()
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
