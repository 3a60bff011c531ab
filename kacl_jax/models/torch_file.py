"""Reads PyTorch weight files (.pth) with numpy only, and runs no code from them.

A .pth file is a pickle, and a pickle can name any function to call. The unpickler here allows six names
(a container, two functions that rebuild tensors, three storage types) and raises an error for every other
name before it is called. Two layouts exist: a zip archive (PyTorch ≥ 1.6), and a sequence of pickles
followed by the raw storages.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from kacl_jax.runtime.errors import UserError

_DTYPES = {"FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8"}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


class _Storage(NamedTuple):
    dtype: str
    key: str
    numel: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _TensorUnpickler(pickle.Unpickler):
    """Builds dictionaries and _Tensor records; raises UnpicklingError for every other name."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        # New lambdas for each call, so that attributes which a malicious file sets on one have no effect later.
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *args: _Tensor(*args[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(
                f"it needs {module}.{name}, which plain weights do not need (nothing was run)"
            )
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, numel, *view = pid
        if kind != "storage" or dtype not in _DTYPES.values() or view not in ([], [None]):
            raise pickle.UnpicklingError(f"unknown storage {pid!r}")
        return self.storages.setdefault(str(key), _Storage(dtype, str(key), int(numel)))


def read_pth(path: Path) -> dict[str, np.ndarray]:
    """Name → array (float32, float16 or int64) of a saved state dict, or of its 'state_dict' entry.

    Raises UserError if the file is damaged, holds anything but tensors or names code to run.
    """
    try:
        if zipfile.is_zipfile(path):
            tensors, storages = _read_zip(path)
        else:
            with path.open("rb") as file:
                tensors, storages = _read_legacy(file)
        return {name: _copy_from_storage(tensor, storages) for name, tensor in tensors.items()}
    except Exception as error:  # a damaged pickle can raise any exception
        raise UserError(
            f"{path} cannot be read as a PyTorch state dict: {error}; save it again with "
            f"torch.save(model.state_dict(), path) or as .safetensors"
        ) from error


def _read_zip(path: Path) -> tuple[dict[str, _Tensor], dict[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        # torch.save compresses nothing. A small file that unpacks to gigabytes would fill the memory.
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("the archive is compressed, which torch.save never does")
        members = archive.namelist()
        roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError("the archive has no single data.pkl")
        root = roots[0]
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        with archive.open(f"{root}data.pkl") as file:
            tensors = _state_dict(_TensorUnpickler(file).load())
        keys = {tensor.storage.key for tensor in tensors.values()}
        return tensors, {key: archive.read(f"{root}data/{key}") for key in keys}


def _read_legacy(file: IO[bytes]) -> tuple[dict[str, _Tensor], dict[str, bytes]]:
    if _TensorUnpickler(file).load() != _LEGACY_MAGIC:
        raise ValueError("it does not begin as PyTorch's files do")
    if _TensorUnpickler(file).load() != _LEGACY_PROTOCOL:
        raise ValueError("unknown version of the old format")
    if not _TensorUnpickler(file).load()["little_endian"]:
        raise ValueError("it was written on a big-endian machine")
    unpickler = _TensorUnpickler(file)
    tensors = _state_dict(unpickler.load())
    storages = {}
    for key in _TensorUnpickler(file).load():
        numel = int.from_bytes(file.read(8), "little")
        storages[key] = file.read(numel * np.dtype(unpickler.storages[key].dtype).itemsize)
    return tensors, storages


def _state_dict(value: Any) -> dict[str, _Tensor]:
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict) or not value:
        raise ValueError("it holds no dictionary of tensors")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise ValueError(f"entry {name!r} is no tensor (is this a whole model?)")
        if not isinstance(tensor.storage, _Storage):
            raise ValueError(f"entry {name!r} has no storage")
    return dict(value)


def _copy_from_storage(tensor: _Tensor, storages: dict[str, bytes]) -> np.ndarray:
    """Copies one strided tensor from its storage, after checking that every index is inside."""
    storage, offset, shape, stride = tensor
    flat = np.frombuffer(storages[storage.key], storage.dtype)
    if flat.size != storage.numel:
        raise ValueError(f"it is truncated: it has {flat.size} of {storage.numel} numbers")
    if min((offset, *shape, *stride), default=0) < 0 or len(shape) != len(stride):
        raise ValueError("a tensor has an impossible layout")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if math.prod(shape) and last >= flat.size:
        raise ValueError("a tensor reaches past its storage")
    if math.prod(shape) > flat.size:
        raise ValueError("a tensor has more numbers than its storage")
    steps = [step * flat.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False).copy()
