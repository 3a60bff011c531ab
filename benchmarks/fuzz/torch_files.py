"""Writes what `torch.save` writes, without torch: nested dictionaries and modules of numpy arrays, in both layouts."""

from __future__ import annotations

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

_STORAGES = {
    "<f8": "Double",
    "<f4": "Float",
    "<f2": "Half",
    "<i8": "Long",
    "<i4": "Int",
    "|u1": "Byte",
}
LEGACY_HEAD = (
    0x1950A86A20F9469CFC6C,
    1001,
    {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    },
)


class Module(NamedTuple):
    """A saved `torch.nn.Module`: the name of its class, 'torch.nn.modules.conv.Conv2d', and its parts."""

    class_name: str
    parameters: Mapping[str, np.ndarray] = {}
    buffers: Mapping[str, np.ndarray] = {}
    modules: Mapping[str, Module] = {}


class _Storage(NamedTuple):
    array: np.ndarray
    key: str


class _Names:
    """Makes classes and functions that pickle under names of packages that are not installed."""

    def __init__(self) -> None:
        self.modules: dict[str, types.ModuleType] = {}
        self.module_classes: set[type] = set()

    def make(self, full_name: str, *, function: bool = False) -> Any:
        package, _, name = full_name.rpartition(".")
        parts = package.split(".")
        for end in range(len(parts)):  # an import needs the packages above
            above = ".".join(parts[: end + 1])
            module = self.modules.setdefault(above, types.ModuleType(above))
        if not hasattr(module, name):
            value: Any = (lambda: None) if function else type(name, (), {})
            value.__module__, value.__qualname__ = package, name
            setattr(module, name, value)
        return getattr(module, name)

    def instance(self, module: Module) -> Any:
        """An object whose pickle is that of a module with these parts."""
        kind = self.make(module.class_name)
        self.module_classes.add(kind)
        made = kind()
        made.training = False
        made._parameters = OrderedDict(module.parameters)
        made._buffers = OrderedDict(module.buffers)
        made._non_persistent_buffers_set = set()
        made._backward_hooks = OrderedDict()
        made._modules = OrderedDict((name, self.instance(m)) for name, m in module.modules.items())
        return made


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, names: _Names, legacy: bool) -> None:
        super().__init__(file, protocol=2)
        self.names, self.legacy = names, legacy
        self.storages: dict[str, np.ndarray] = {}
        self.with_source: set[type] = set()

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return NotImplemented
        array = np.ascontiguousarray(value).reshape(value.shape)
        key = str(len(self.storages))
        self.storages[key] = array
        strides = tuple(step // array.itemsize for step in array.strides)
        rebuild = self.names.make("torch._utils._rebuild_tensor_v2", function=True)
        return rebuild, (_Storage(array, key), 0, array.shape, strides, False, OrderedDict())

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, _Storage):
            kind = self.names.make(f"torch.{_STORAGES[value.array.dtype.str]}Storage")
            return ("storage", kind, value.key, "cpu", value.array.size) + (None,) * self.legacy
        is_class = isinstance(value, type) and value in self.names.module_classes
        if self.legacy and is_class and value not in self.with_source:
            self.with_source.add(value)
            return "module", value, "net.py", "class Net: ..."
        return None


def to_bytes(content: Any, *, legacy: bool = False) -> bytes:
    """The file of `content`: dictionaries, lists, numbers, text, arrays and `Module`s.

    legacy: in the layout before PyTorch 1.6.
    """
    names, pickled = _Names(), io.BytesIO()
    pickler = _Pickler(pickled, names, legacy)
    with_instances = _map_modules(content, names)
    names.make("torch._utils._rebuild_tensor_v2", function=True)
    for kind in _STORAGES.values():
        names.make(f"torch.{kind}Storage")
    with mock.patch.dict(sys.modules, names.modules):
        pickler.dump(with_instances)
    if legacy:
        heads = [pickle.dumps(part, 2) for part in LEGACY_HEAD]
        keys = pickle.dumps(list(pickler.storages), 2)
        raws = [a.size.to_bytes(8, "little") + a.tobytes() for a in pickler.storages.values()]
        return b"".join([*heads, pickled.getvalue(), keys, *raws])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickled.getvalue())
        archive.writestr("archive/byteorder", "little")
        for key, array in pickler.storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


def _map_modules(content: Any, names: _Names) -> Any:
    if isinstance(content, Module):
        return names.instance(content)
    if isinstance(content, dict):
        return type(content)((key, _map_modules(value, names)) for key, value in content.items())
    return content
