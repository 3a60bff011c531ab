"""Weight files of a network of two convolutions, in PyTorch's two layouts and as safetensors. The oracle is the arrays
that were written, and a folder that appears only if a pickle's code was run."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.finished import ask, row, small_network
from benchmarks.fuzz.judge import Case
from benchmarks.fuzz.scene import Kind, Random, take, write
from benchmarks.fuzz.table_lines import damage
from benchmarks.fuzz.torch_files import Module, to_bytes

Arrays = dict[str, np.ndarray]
LAYOUTS = ("zip", "legacy", "safetensors")
_SUFFIX = {"zip": ".pth", "legacy": ".pt", "safetensors": ".safetensors"}
_OTHER = ("other values of the right shapes",)
_RAN = "code was run"


def small_weights(random: Random, channels: int = 3) -> Arrays:
    """A state dict of the small network, whose values survive half precision."""
    shapes = {"Conv_0.weight": (8, channels, 5, 5), "Conv_1.weight": (16, 8, 5, 5)}
    for number, features in enumerate((8, 16)):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"bn{number}.{leaf}"] = (features,)
    return {
        name: random.normal(size=shape).astype("<f2").astype("<f4")
        for name, shape in shapes.items()
    }


def stored(content: Any, layout: str) -> bytes:
    """The file of `content`. layout: one of `LAYOUTS`."""
    if layout != "safetensors":
        return to_bytes(content, legacy=layout == "legacy")
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(value) for name, value in content.items()})


def _load(spec: str, scale: str, bait: Path) -> Any:
    """What a run gets of it before it reads data."""
    from kacl_jax.models import pretrained

    with small_network():
        try:
            pretrained.check(spec, encoder="resnet18", input_name=scale)
            variables = {"params": {"classifier": {}}, "batch_stats": {}}
            loaded, origin = pretrained.load(
                spec, encoder="resnet18", variables=variables, input_name=scale
            )
        finally:
            if bait.exists():
                return (_RAN,)  # noqa: B012 - worse than any exception
    assert origin is not None
    origin.describe()
    return _layers(loaded["params"]["image_encoder"], loaded["batch_stats"]["image_encoder"])


def _layers(params: Any, statistics: Any) -> Arrays:
    names = {"scale": "weight", "mean": "running_mean", "var": "running_var"}
    return {
        f"{layer}.{'weight' if leaf == 'kernel' else names.get(leaf, leaf)}": np.asarray(
            np.transpose(value, (3, 2, 0, 1)) if leaf == "kernel" else value, np.float32
        )
        for part in (params, statistics)
        for layer, leaves in part.items()
        for leaf, value in leaves.items()
    }


def loaded_case(
    what: str,
    folder: Path,
    data: bytes,
    truth: Arrays | None,
    *,
    layout: str = "zip",
    part: str = "",
    scale: str = "auto",
    may_refuse: bool = True,
    may_differ: bool = False,
) -> Case:
    """A run with this file as its first weights.

    truth: the arrays that may come out; None: the file must be refused. may_differ: other values may, too.
    """
    path = folder / f"weights{_SUFFIX[layout]}"
    write(folder, {path.name: data})

    def question() -> Any:
        loaded = _load(f"{path}{part}", scale, folder / "bait")
        if may_differ and isinstance(loaded, dict) and truth is not None:
            same = all(np.array_equal(loaded[name], truth[name]) for name in truth)
            return truth if same else _OTHER
        return loaded

    truths = [] if truth is None else [truth, *[_OTHER] * may_differ]
    rows = [row(*truths, may_refuse=may_refuse)]
    return Case(f"{layout}, {what}", lambda: ask(question, names=path.name), rows)


def _prefixed(prefix: str, weights: Arrays) -> Arrays:
    return {f"{prefix}{name}": value for name, value in weights.items()}


def _harmless(random: Random, folder: Path, turn: int) -> Case:
    """The encoder behind any prefix, with heads, counters, optimizers and other encoders beside it."""
    layout = take(LAYOUTS, turn)
    scale = str(random.choice(["auto", "xrv"]))
    weights = small_weights(random, 3 if scale == "auto" else 1)
    words = ("module", "backbone", "encoder", "model", "net.0", "é", "x" * 300)
    prefix = "".join(f"{random.choice(words)}." for _ in range(int(random.integers(4))))
    kind = {"f2": "<f2", "f4": "<f4", "f8": "<f8"}[str(random.choice(["f2", "f4", "f8"]))]
    content: Any = {name: v.astype(kind) for name, v in _prefixed(prefix, weights).items()}
    content |= {f"{prefix}fc.weight": np.zeros((3, 16), "f"), "queue": np.zeros((4, 5), "f")}
    content |= {f"{prefix}bn0.num_batches_tracked": np.array(3)}
    part = ""
    if random.random() < 0.3:
        content |= _prefixed("second.one.", small_weights(random, 3 if scale == "auto" else 1))
        # An encoder without a prefix has an empty name.
        part = f":{prefix.removesuffix('.')}"
    if layout != "safetensors":
        wrapper = str(random.choice(["plain", "state_dict", "nested", "checkpoint"]))
        if wrapper == "checkpoint":
            momentum = {i: {"momentum_buffer": np.zeros(2, "f"), "step": i} for i in range(2)}
            content = {
                "epoch": 3,
                "state_dict": OrderedDict(content),
                "optimizer": {"state": momentum, "param_groups": [{"lr": 0.1, "params": [0, 1]}]},
                "args": Module("argparse.Namespace"),
            }
        elif wrapper != "plain":
            content = {"teacher": {"model": content}} if wrapper == "nested" else {wrapper: content}
        if part == ":" and wrapper != "plain":
            part = {"checkpoint": ":state_dict", "nested": ":model"}.get(wrapper, f":{wrapper}")
    data = stored(content, layout)
    return loaded_case(
        f"prefix {prefix!r} {kind}", folder, data, weights,
        layout=layout, part=part, scale=scale, may_refuse=False,
    )  # fmt: skip


def _byte(random: Random, folder: Path, turn: int) -> Case:
    """Bytes are flipped, inserted or deleted, or the end is lost.

    An archive has checksums. The other two have none: another digit in a number gives other weights.
    """
    layout = take(LAYOUTS, turn)
    weights = small_weights(random)
    data = stored(_prefixed("module.", weights), layout)
    end = int(random.choice([200, 2000])) if random.random() < 0.6 else None
    what, data = damage(random, data, turn // len(LAYOUTS), end)
    return loaded_case(what, folder, data, weights, layout=layout, may_differ=layout != "zip")


def _layers_differ(random: Random, folder: Path, turn: int) -> Case:
    """Weights of another network, two encoders, and values that are no weights: each must be refused."""
    layout, weights = take(LAYOUTS, turn), small_weights(random)
    name = str(random.choice(list(weights)))
    value, scale = weights[name], "auto"
    ways: dict[str, Arrays] = {
        "a layer less": {k: v for k, v in weights.items() if k != name},
        "a layer more": weights | {f"{name.split('.')[0]}.1.weight": value},
        "a longer axis": weights | {name: np.concatenate([value, value])},
        "an axis more": weights | {name: value[None]},
        "no axis": weights | {name: np.zeros((), "f")},
        "nothing": weights | {name: value[:0]},
        "whole numbers": weights | {name: value.astype("<i4")},
        "nan": weights | {name: np.full_like(value, np.nan)},
        "infinity": weights | {name: value.astype("<f8") * 1e300},
        "one channel": weights | {"Conv_0.weight": weights["Conv_0.weight"][:, :1]},
        "two channels": weights | {"Conv_0.weight": weights["Conv_0.weight"][:, :2]},
        "two encoders": _prefixed("encoder_q.", weights) | _prefixed("encoder_k.", weights),
        "no layers": {"a.b": value, "c": value},
    }
    way = take(ways, turn // len(LAYOUTS))
    if random.random() < 0.2 and way == "two channels":
        scale = "xrv"
    return loaded_case(
        f"{way}: {name}", folder, stored(ways[way], layout), None, layout=layout, scale=scale
    )


KINDS: dict[str, Kind] = {
    "weights_harmless": _harmless,
    "weights_byte": _byte,
    "weights_layers": _layers_differ,
}
