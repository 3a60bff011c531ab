"""Values of config keys, as typed: what was typed comes out of the check, or a sentence names the key."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.fuzz.finished import ask, row
from benchmarks.fuzz.judge import Case
from benchmarks.fuzz.scene import Kind, Random, take, write

_WORDS = (
    *("0", "1", "-1", "2", "0.5", "1e-9", "1e-300", "1e-400", "1e300", "1e400", "1e38", "3.5e38", "-0.0", "1e6"),
    *("nan", "-nan", "inf", "-inf", "1" + "0" * 23, "9" * 400, "4294967296", "2147483648", "1000000000"),
    *("1000000", "100000", "65536", "", " ", "text", "True", "false", "None", "[1]", "(1, 2)", "1,2", "{}"),
    *("0x10", "1_000", "１２", "1 2", "'1'", "\x00", "é\n", "\udcff", "a" * 10_000, "--", "=", "../..", "$HOME"),
)  # fmt: skip
_CONFIG_FILE = b"""from kacl_jax import config


def get_config():
    c = config.default()
    c.data.root = 'phantom'
    return c
"""
# Beyond these values a run would hang, end with a traceback or take all memory.
_LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "log_every": (1, 2**31),
    "data.image_size": (32, 10_000),
    "data.threads": (1, 10_000),
    "data.shards": (1, 100_000),
    "data.split_seed": (float("-inf"), float("inf")),
    "feedback.workers": (0, 10_000),
    "feedback.timeout_s": (1e-3, 1e7),
    "eval.bootstrap": (1, 1_000_000),
    "eval.batch_size": (1, 10**6),
    "train.batch_size": (1, 10**6),
    "model.projection_dim": (1, 10**6),
    "folds": (2, 10**6),
    "train.epochs": (1, 10**7),
}
_NUMBERS = (-1e38, 3.4e38)  # of any other key: what a float32 holds


def _config(file: Path, words: list[str]) -> Any:
    """The config that the words of a command line give, after the check with which every run begins."""
    from absl import flags
    from ml_collections import config_flags

    from kacl_jax import config as config_keys
    from kacl_jax.config import command_line
    from kacl_jax.runtime.errors import UserError

    values = flags.FlagValues()
    argv = ["main", f"--config={file}", *words]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    text = io.StringIO()
    with (
        mock.patch.object(flags, "FLAGS", values),
        contextlib.redirect_stderr(text),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", DeprecationWarning)  # ml_collections' way to load a file
        try:
            command_line.parse(argv)
        except SystemExit:
            raise UserError(text.getvalue()) from None
    config_keys.check(values.config, n_devices=1)
    return config_keys.flatten(values.config)


def _parsed(default: Any, word: str, text_too: bool) -> Any:
    """The value that the word means, by the key's type and Python's rules for numbers; None if it means none."""
    if isinstance(default, bool):
        return {"true": True, "1": True, "false": False, "0": False}.get(word.lower())
    if isinstance(default, tuple):
        return [int(part) for part in re.findall("[0-9]+", word)] if "," in word else None
    with contextlib.suppress(ValueError, SyntaxError):
        if text_too:
            value = ast.literal_eval(word)
            return value if type(value) in (int, str) else None
        if isinstance(default, int):
            return int(word, 0)
        if isinstance(default, float):
            return float(word)
    return word if text_too or isinstance(default, str) else None


def _is_sane(key: str, value: Any) -> bool:
    if value is None or isinstance(value, str | bool | list):
        return value is not None
    low, high = _LIMITS.get(key, _NUMBERS)
    return low <= value <= high


def _case(
    what: str, folder: Path, key: str, truths: dict[str, Any], may_refuse: bool = True
) -> Case:
    """truths: flag → the value that may come out; None: the flag must be refused."""
    write(folder, {"mine.py": _CONFIG_FILE})

    def question(flag: str) -> Callable[[], Any]:
        return lambda: _seen(_config(folder / "mine.py", [flag])[key])

    rows = [row(*([] if v is None else [_seen(v)]), may_refuse=may_refuse) for v in truths.values()]
    # A rule between keys may name another key of the same name, such as warmup_epochs for epochs.
    named = key.rpartition(".")[2]
    return Case(what, lambda: ask(*map(question, truths), names=named), rows)


def _seen(value: Any) -> tuple[str, str]:
    return type(value).__name__, repr(value)


def _value(random: Random, folder: Path, turn: int) -> Case:
    """Each word as the value of one key."""
    from kacl_jax.config.keys import KEYS

    name = take(KEYS, turn)
    truths = {}
    for word in _WORDS:
        value = _parsed(KEYS[name].default, word, KEYS[name].text_too)
        truths[f"--config.{name}={word}"] = value if _is_sane(name, value) else None
    return _case(name, folder, name, truths)


def _default(random: Random, folder: Path, turn: int) -> Case:
    """A key's own default, typed."""
    from kacl_jax.config.keys import KEYS

    name = take(KEYS, turn)
    default = "phantom" if name == "data.root" else KEYS[name].default
    word = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    truth = list(default) if isinstance(default, tuple) else default
    return _case(name, folder, name, {f"--config.{name}={word}": truth}, may_refuse=False)


def _unknown(random: Random, folder: Path, turn: int) -> Case:
    """A key that does not exist, or one that is a group, or no value: refused by its name."""
    from kacl_jax.config.keys import KEYS

    name = str(random.choice(list(KEYS)))
    place = int(random.integers(len(name)))
    ways = {
        "a letter less": name[:place] + name[place + 1 :],
        "a letter more": f"{name[:place]}x{name[place:]}",
        "upper case": name.upper(),
        "a group": str(random.choice(["data", "train", "loss", "feedback"])),
        "below a value": f"{name}.more",
        "a dot less": name.replace(".", "_"),
        "an inner name": random.choice(["_fields", "__class__", "lock", "items", "seed.real", "data.items"]),
        "no name": "",
    }  # fmt: skip
    way = take(ways, turn)
    key = str(ways[way])
    if key in KEYS:
        key += "y"
    word = str(random.choice(["1", "x", ""]))
    flag = f"--config.{key}={word}" if random.random() < 0.8 else f"--config.{key}"
    return _case(f"{way}: {flag}", folder, key, {flag: None})


KINDS: dict[str, Kind] = {"flag_value": _value, "flag_default": _default, "flag_unknown": _unknown}
