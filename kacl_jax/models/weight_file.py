"""Finds an encoder among the tensors of a weight file, whatever stands before its layers' names and beside them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from kacl_jax.models.torch_file import TorchFile
from kacl_jax.runtime.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
Needed = Mapping[str, tuple[int | None, ...]]

_NAMES_SHOWN = 3
# torchvision's own DenseNet files are older than its names: denselayer1.norm.1 is denselayer1.norm1 today.
_OLD_DENSE_NAME = re.compile(r"(\bdenselayer\d+\.(?:norm|conv))\.([12]\.)")


class WeightFile:
    """The tensors of a .safetensors file or of one that PyTorch wrote, by name. shapes: name → shape."""

    def __init__(self, path: Path) -> None:
        """Raises UserError if the file is damaged, holds no tensors or names code to run."""
        self.path = path
        with self._as_user_errors():
            if path.suffix == ".safetensors":
                self._content: TorchFile | _SafetensorsFile = _SafetensorsFile(path)
            else:
                self._content = TorchFile(path)
        self.shapes: Shapes = self._content.shapes

    def read(self, names: Collection[str]) -> dict[str, np.ndarray]:
        """Name → array. Raises UserError if the file is damaged."""
        with self._as_user_errors():
            return self._content.read(names)

    @contextmanager
    def _as_user_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a damaged file can raise any exception
            is_torch = self.path.suffix != ".safetensors"
            kind = "a PyTorch file" if is_torch else "safetensors"
            fix = "save it again with torch.save(model.state_dict(), path) or as .safetensors"
            raise UserError(
                f"{self.path} cannot be read as {kind}: {str(error) or type(error).__name__}"
                + (f"; {fix}" if is_torch else "")
            ) from error


class _SafetensorsFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        with safe_open(path, framework="numpy") as file:
            self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    def read(self, names: Collection[str]) -> dict[str, np.ndarray]:
        with safe_open(self._path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in names}


class FoundEncoder(NamedTuple):
    """An encoder's place in a file.

    prefix: what stands before the names of its layers. names: layer's name → tensor's. dropped: what else is in the
    file, by the shortest names that are not part of `prefix`.
    """

    prefix: str
    names: dict[str, str]
    dropped: tuple[str, ...]


def find_encoder(
    file: WeightFile, needed: Needed, *, encoder: str, chosen: str | None
) -> FoundEncoder:
    """The encoder in the file that has the `needed` layers.

    needed: layer → shape, with None for what may have any size.
    chosen: which of several to take: the end of its prefix. None: there must be only one.

    Raises:
      UserError: no encoder or several ones fit.
    """
    names = {
        _OLD_DENSE_NAME.sub(r"\1\2", name): name
        for name in file.shapes
        if not name.endswith("num_batches_tracked")
    }
    prefixes = _prefixes(names, needed)
    if chosen is not None:
        fits = [p for p in prefixes if (f".{p}".endswith(f".{chosen}.") if chosen else not p)]
        if not fits:
            raise UserError(
                f"{file.path} has no layers of {encoder} under {chosen!r}; it has them under: {_listed(prefixes)}"
            )
        prefixes = fits
    problems = {p: _problems(p, names, file.shapes, needed) for p in prefixes}
    fitting = [p for p in prefixes if not problems[p]]
    if len(fitting) > 1:
        raise UserError(
            f"{file.path} holds {len(fitting)} encoders that fit: {_listed(fitting)}. Choose one, for example "
            f"--config.model.pretrained={file.path}:{fitting[0].removesuffix('.')}"
        )
    if not fitting:
        raise UserError(
            f"{file.path} does not fit --config.model.encoder={encoder}; of its layers {len(needed)} are needed: "
            f"{'; '.join(problems[prefixes[0]])}. Nothing was loaded."
        )
    prefix = fitting[0]
    used = {layer: names[prefix + layer] for layer in needed}
    return FoundEncoder(prefix, used, _dropped(prefix, set(names.values()) - set(used.values())))


def _listed(prefixes: Collection[str]) -> str:
    return ", ".join(p.removesuffix(".") or "'' (no prefix)" for p in prefixes)


def _prefixes(names: Collection[str], needed: Needed) -> list[str]:
    """What stands before names of needed layers; first where it does for most of them, then the shortest.

    Only those that do for at least half as many layers as the first: 'layer1.0.' before 'conv1' is none.
    """
    count: Counter[str] = Counter()
    depth = max(layer.count(".") for layer in needed) + 1
    for name in names:
        parts = name.split(".")
        for start in range(max(0, len(parts) - depth), len(parts)):
            if ".".join(parts[start:]) in needed:
                count["".join(f"{part}." for part in parts[:start])] += 1
    most = max(count.values(), default=0)
    listed = sorted(count, key=lambda prefix: (-count[prefix], len(prefix), prefix))
    return [prefix for prefix in listed if 2 * count[prefix] >= most] or [""]


def _problems(prefix: str, names: Mapping[str, str], shapes: Shapes, needed: Needed) -> list[str]:
    """Why the layers after `prefix` are not those that are needed."""
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    own = {layer.split(".")[0] for layer in needed}
    groups = {
        "missing": [layer for layer in needed if prefix + layer not in names],
        "unknown": [n for n in inside if n not in needed and n.split(".")[0] in own],
        "of another shape": [
            f"{layer} {shapes[names[prefix + layer]]} instead of {shape}".replace("None", "any")
            for layer, shape in needed.items()
            if prefix + layer in names and not _fits(shapes[names[prefix + layer]], shape)
        ],
    }
    return [_counted(what, members) for what, members in groups.items() if members]


def _fits(shape: tuple[int, ...], needed: tuple[int | None, ...]) -> bool:
    return len(shape) == len(needed) and all(
        n in (None, size) for size, n in zip(shape, needed, strict=True)
    )


def _counted(what: str, names: list[str]) -> str:
    more = ", …" if len(names) > _NAMES_SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:_NAMES_SHOWN])}{more})"


def _dropped(prefix: str, rest: Collection[str]) -> tuple[str, ...]:
    """The shortest beginnings of these names that are no beginnings of `prefix`, each once, sorted."""
    heads = set()
    for name in rest:
        parts = name.split(".")
        beginnings = (".".join(parts[: end + 1]) for end in range(len(parts)))
        heads.add(next((b for b in beginnings if not prefix.startswith(f"{b}.")), name))
    return tuple(sorted(heads))


def read_encoder(file: WeightFile, found: FoundEncoder) -> dict[str, np.ndarray]:
    """Layer → float32 array. Raises UserError if values are not finite or no floating-point numbers."""
    tensors = file.read(found.names.values())
    arrays = {layer: tensors[name] for layer, name in found.names.items()}
    groups = {
        "not in floating point": [
            layer for layer, array in arrays.items() if not jnp.issubdtype(array.dtype, np.floating)
        ],
        "holding values that are not finite": [
            layer
            for layer, array in arrays.items()
            if jnp.issubdtype(array.dtype, np.floating)
            and not np.isfinite(array.astype(np.float32)).all()
        ],
    }
    problems = [_counted(what, layers) for what, layers in groups.items() if layers]
    if problems:
        raise UserError(f"{file.path} cannot be used: {'; '.join(problems)}. Nothing was loaded.")
    return {layer: array.astype(np.float32, copy=False) for layer, array in arrays.items()}
