"""Reads the tensors of PyTorch files (.pth) with numpy only, and runs no code from them.

A .pth file is a pickle, and a pickle can name any function to call. The unpickler here knows the few names that
tensors need. Every other name becomes a `_StandIn`, which keeps the parts of a saved module and does nothing; a file
that wants to call one is refused. Two layouts exist: a zip archive (PyTorch ≥ 1.6), and a sequence of pickles followed
by the raw storages.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16).name,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MEMO_OPCODES = ("PUT", "BINPUT", "LONG_BINPUT")


class _Storage(NamedTuple):
    dtype: str
    key: str
    numel: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _NotCallable(type):
    """The type of stand-ins for names that plain weights do not need."""

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise pickle.UnpicklingError(
            f"it needs {cls.__name__}, which plain weights do not need (nothing was run)"
        )


class _StandIn:
    """What an object of an unknown class becomes: its attributes, without their class. It cannot be called."""

    attributes: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> _StandIn:
        instance = object.__new__(cls)
        instance.attributes = {}
        return instance

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}

    def __setitem__(self, key: Any, value: Any) -> None:
        """The items of a container that is no weight."""

    def extend(self, values: Any) -> None:
        """The same for a list."""

    append = extend

    def children(self) -> dict[Any, Any]:
        """Parameters, buffers and submodules, if it was a module."""
        parts = (self.attributes.get(name) for name in ("_parameters", "_buffers", "_modules"))
        return {
            name: child for part in parts if isinstance(part, dict) for name, child in part.items()
        }


class _TensorUnpickler(pickle.Unpickler):
    """Builds dictionaries, stand-ins and _Tensor records; raises UnpicklingError for every call of another name."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        # New objects for each call, so that attributes which a malicious file sets on one have no effect later.
        def build(*args: Any) -> _Tensor:
            return _Tensor(*args[:4])

        def nothing(*_: Any) -> _StandIn:
            return _StandIn()

        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("collections", "defaultdict"): lambda *_: defaultdict(),
            ("torch._utils", "_rebuild_tensor"): build,
            ("torch._utils", "_rebuild_tensor_v2"): build,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
            # what training programs save beside the weights
            ("torch", "Size"): lambda *args: tuple(*args),
            ("torch", "device"): nothing,
            ("builtins", "set"): nothing,
            ("__builtin__", "set"): nothing,
            ("numpy", "dtype"): nothing,
            ("numpy.core.multiarray", "scalar"): nothing,
            ("numpy._core.multiarray", "scalar"): nothing,
            ("_codecs", "encode"): nothing,
        }
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        return allowed.get((module, name)) or _NotCallable(f"{module}.{name}", (_StandIn,), {})

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # a class with its source code, in old files
            return pid[1]
        kind, dtype, key, _location, numel, *view = pid
        if kind != "storage" or dtype not in _DTYPES.values() or view not in ([], [None]):
            raise pickle.UnpicklingError(f"unknown storage {pid!r}")
        return self.storages.setdefault(str(key), _Storage(dtype, str(key), int(numel)))


class TorchFile:
    """The tensors of a file by name, read on demand.

    A name joins the keys of nested dictionaries and the names of modules and parameters with dots:
    'state_dict.layer1.0.conv1.weight'. What stands twice in a file has its first name only.
    """

    def __init__(self, path: Path) -> None:
        """Raises any exception for a file that is damaged, names code to run or is no PyTorch file."""
        self._path = path
        self._in_archive = zipfile.is_zipfile(path)
        self._places: dict[str, int] = {}  # of each storage in an old file
        with path.open("rb") as file:
            content = self._load_archive(file) if self._in_archive else self._load_pickles(file)
        self._tensors: dict[str, _Tensor] = {}
        for name, tensor in _named_tensors(content):
            if name in self._tensors:
                raise ValueError(f"it holds two tensors called {name}")
            self._tensors[name] = tensor
        if not self._tensors:
            raise ValueError("it holds no tensors")
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, names: Collection[str]) -> dict[str, np.ndarray]:
        """Name → a copy of its array. Raises any exception for a file that is damaged."""
        by_storage = defaultdict(list)
        for name in names:
            by_storage[self._tensors[name].storage].append(name)
        arrays: dict[str, np.ndarray] = {}
        with self._path.open("rb") as file:
            read_raw = self._raw_reader(file)
            for storage, sharing in by_storage.items():
                raw, size = read_raw(storage), storage.numel * np.dtype(storage.dtype).itemsize
                if len(raw) != size:
                    raise ValueError(f"it is truncated: it has {len(raw)} of {size} bytes")
                numbers = np.frombuffer(raw, storage.dtype)
                arrays |= {name: _strided(self._tensors[name], numbers) for name in sharing}
        return {name: arrays[name] for name in names}

    def _load_archive(self, file: IO[bytes]) -> Any:
        with zipfile.ZipFile(file) as archive:
            # torch.save compresses nothing. A small file that unpacks to gigabytes would fill the memory.
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("the archive is compressed, which torch.save never does")
            members = archive.namelist()
            roots = [
                name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")
            ]
            if len(roots) != 1:
                raise ValueError("the archive has no single data.pkl")
            self._root = roots[0]
            order = f"{self._root}byteorder"
            if order in members and archive.read(order) != b"little":
                raise ValueError("it was written on a big-endian machine")
            return _unpickle(io.BytesIO(archive.read(f"{self._root}data.pkl")))[0]

    def _load_pickles(self, file: IO[bytes]) -> Any:
        if _unpickle(file)[0] != _LEGACY_MAGIC:
            raise ValueError("it does not begin as PyTorch's files do")
        if _unpickle(file)[0] != _LEGACY_PROTOCOL:
            raise ValueError("unknown version of the old format")
        if not _unpickle(file)[0]["little_endian"]:
            raise ValueError("it was written on a big-endian machine")
        content, storages = _unpickle(file)
        end = file.seek(0, io.SEEK_CUR)
        for key in _unpickle(file)[0]:
            if key not in storages:
                raise ValueError(f"none of its tensors has the numbers {key!r}")
            self._places[key] = file.tell()
            numel = int.from_bytes(file.read(8), "little")
            end = file.seek(numel * np.dtype(storages[key].dtype).itemsize, io.SEEK_CUR)
        if end > self._path.stat().st_size:
            raise ValueError(f"it is truncated: it should have {end} bytes")
        return content

    def _raw_reader(self, file: IO[bytes]) -> Callable[[_Storage], bytes]:
        if self._in_archive:
            archive = zipfile.ZipFile(file)
            return lambda storage: archive.read(f"{self._root}data/{storage.key}")

        def read_raw(storage: _Storage) -> bytes:
            file.seek(self._places[storage.key])
            numel = int.from_bytes(file.read(8), "little")
            return file.read(numel * np.dtype(storage.dtype).itemsize)

        return read_raw


def _unpickle(file: IO[bytes]) -> tuple[Any, dict[str, _Storage]]:
    """The next pickle's object, and its storages by their keys."""
    start = file.tell()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        # A number far beyond the objects so far would make the unpickler reserve gigabytes.
        if opcode.name in _MEMO_OPCODES and int(argument or 0) > number:
            raise pickle.UnpicklingError("its numbering of objects has gaps")
    file.seek(start)
    unpickler = _TensorUnpickler(file)
    return unpickler.load(), unpickler.storages


def _named_tensors(content: Any) -> Iterator[tuple[str, _Tensor]]:
    """Every tensor once, with its place in nested dictionaries and modules, in the file's order."""
    seen: set[int] = set()
    rest: list[tuple[str, Any]] = [("", content)]
    while rest:
        name, value = rest.pop()
        if isinstance(value, _Tensor):
            yield name, _checked(name, value)
        elif isinstance(value, dict | _StandIn) and id(value) not in seen:
            seen.add(id(value))
            children = value if isinstance(value, dict) else value.children()
            inside = [
                (f"{name}.{key}" if name else str(key), child)
                for key, child in children.items()
                if isinstance(key, str | int) and isinstance(child, dict | _StandIn | _Tensor)
            ]
            rest += reversed(inside)


def _checked(name: str, tensor: _Tensor) -> _Tensor:
    """The tensor, if its parts are of the right types."""
    storage, offset, shape, stride = tensor
    numbers = (
        (offset, *shape, *stride)
        if isinstance(shape, tuple) and isinstance(stride, tuple)
        else ("",)
    )
    if not isinstance(storage, _Storage) or not all(type(number) is int for number in numbers):
        raise ValueError(f"entry {name!r} is no tensor")
    return tensor


def _strided(tensor: _Tensor, numbers: np.ndarray) -> np.ndarray:
    """Copies one strided tensor from its storage's numbers, after checking that every index is inside."""
    _, offset, shape, stride = tensor
    if min((offset, *shape, *stride), default=0) < 0 or len(shape) != len(stride):
        raise ValueError("a tensor has an impossible layout")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if math.prod(shape) and last >= numbers.size:
        raise ValueError("a tensor reaches past its storage")
    if math.prod(shape) > numbers.size:
        raise ValueError("a tensor has more numbers than its storage")
    steps = [step * numbers.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False).copy()
