"""Writes tiny_zip.pth and tiny_legacy.pth: one small state dict in both of PyTorch's file formats.

    pip install torch
    python tests/models/golden/make_tiny_pth.py

The tests know the values: `arange` everywhere, seen through the layouts that a file can hold.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch

HERE = Path(__file__).parent


def state_dict() -> OrderedDict[str, torch.Tensor]:
    base = torch.arange(24, dtype=torch.float32)
    return OrderedDict(
        {
            "plain": base.clone(),
            "permuted": base.clone().reshape(2, 3, 4).permute(2, 0, 1),
            "view_a": base[:6].reshape(2, 3),
            "view_b": base[6:24:3],
            "half": base.clone().half(),
            "parameter": torch.nn.Parameter(base.clone().reshape(4, 6)),
            "scalar": torch.tensor(7),
            "empty": torch.zeros(0, 3),
        }
    )


if __name__ == "__main__":
    torch.save(state_dict(), HERE / "tiny_zip.pth")
    torch.save(state_dict(), HERE / "tiny_legacy.pth", _use_new_zipfile_serialization=False)
