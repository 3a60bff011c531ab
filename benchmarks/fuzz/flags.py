"""Values of config keys, as typed: what was typed comes out of the check, or a sentence names the key."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
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
    """The value that the word means, by the key's type; None if it means none."""
    if isinstance(default, bool):
        return {"true": True, "1": True, "false": False, "0": False}.get(word.lower())
    if text_too:
        return int(word) if re.fullmatch("[0-9]+", word) else word
    if isinstance(default, int):
        return int(word) if re.fullmatch("-?[0-9]+", word) else None
    if isinstance(default, float):
        plain = re.fullmatch(r"-?[0-9]+(\.[0-9]+)?(e-?[0-9]+)?", word)
        return float(word) if plain else None
    if isinstance(default, tuple):
        return [int(part) for part in re.findall("[0-9]+", word)] if "," in word else None
    return word


def _is_sane(key: str, value: Any) -> bool:
    if value is None or isinstance(value, str | bool | list):
        return value is not None
    low, high = _LIMITS.get(key, _NUMBERS)
    return low <= value <= high


def _case(
    what: str, folder: Path, words: list[str], key: str, truth: Any, may_refuse: bool = True
) -> Case:
    write(folder, {"mine.py": _CONFIG_FILE})
    truths = [] if truth is None else [(type(truth).__name__, repr(truth))]

    def question() -> Any:
        value = _config(folder / "mine.py", words)[key]
        return type(value).__name__, repr(value)

    return Case(what, lambda: ask(question, names=key), [row(*truths, may_refuse=may_refuse)])


def _value(random: Random, folder: Path, turn: int) -> Case:
    from kacl_jax.config.keys import KEYS

    name = take(KEYS, turn)
    word = str(random.choice(_WORDS))
    value = _parsed(KEYS[name].default, word, KEYS[name].text_too)
    truth = value if _is_sane(name, value) else None
    return _case(f"{name}={word[:40]!a}", folder, [f"--config.{name}={word}"], name, truth)


def _default(random: Random, folder: Path, turn: int) -> Case:
    """A key's own default, typed."""
    from kacl_jax.config.keys import KEYS

    name = take(KEYS, turn)
    default = "phantom" if name == "data.root" else KEYS[name].default
    word = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    truth = list(default) if isinstance(default, tuple) else default
    return _case(
        f"{name}={word[:40]}", folder, [f"--config.{name}={word}"], name, truth, may_refuse=False
    )


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
    return _case(f"{way}: {flag}", folder, [flag], key, None)


KINDS: dict[str, Kind] = {"flag_value": _value, "flag_default": _default, "flag_unknown": _unknown}
