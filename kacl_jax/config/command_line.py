"""The flags of `kacl_jax.main` and `kacl_jax.sweep`, --config and --workdir, with one clear message per mistake.

This module imports no jax, so that --help and messages about mistyped flags appear at once.
"""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from kacl_jax.config import reference
from kacl_jax.config.keys import KEYS, TYPE_NAMES
from kacl_jax.runtime.errors import USER_ERROR, UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The config file; a variant stands after a colon: configs/nih.py:semi"
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder for all output; default: runs/<config name>[_<variant>]"
)


def config() -> ConfigDict:
    """The config of the config file, with the values from the command line. Raises UserError without --config."""
    if _CONFIG.value is None:
        raise UserError("Which config? Give one: --config=configs/demo.py, or configs/nih.py")
    return _CONFIG.value


def config_name() -> str:
    """The text after --config=, with the variant."""
    flag: Any = flags.FLAGS["config"]
    return flag.config_filename


def workdir() -> Path:
    """The path after --workdir=; without that flag runs/nih_pooled, for example, for configs/nih.py:pooled."""
    if _WORKDIR.value:
        return Path(_WORKDIR.value).expanduser()
    file, _, variant = config_name().partition(":")
    return Path("runs") / "_".join(filter(None, (Path(file).stem, variant)))


def print_error(error: Exception | str, code: int) -> int:
    """Prints the error to stderr and returns `code`, the exit code."""
    print(f"\n{error}", file=sys.stderr)
    return code


def parse(argv: list[str]) -> list[str]:
    """Parses absl's flags. For a mistyped flag or a mistake in the config file, prints one message and exits with 1.

    --help prints absl's list of the flags, then the keys of the config.
    """
    try:
        _check_config_file(argv)
        return flags.FLAGS(argv)
    except SystemExit:  # of --help, after absl's list
        print(f"\n{reference.as_text()}")
        raise
    except flags.Error as error:
        message = _unknown_flag_message(str(error)) or _wrong_value_message(str(error))
    except SyntaxError as error:
        message = f"{error.filename}, line {error.lineno}: {error.msg}"
    # ml_collections raises one of these for an unknown key.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = _unknown_key_message(argv, str(error.args[0]), place_in_config_file(error))
    except (ImportError, NameError, OSError) as error:
        message = f"{place_in_config_file(error)}: {error}"
    except UserError as error:
        message = str(error)
    print(message, file=sys.stderr)
    raise SystemExit(USER_ERROR)


def _check_config_file(argv: list[str]) -> None:
    """Raises UserError for a missing file; ml_collections itself would fail only at the first use of a key."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = word.lstrip("-").partition("=")
        path = Path((value if equals else following).split(":")[0])
        if word.startswith("-") and name == "config" and not path.is_file():
            existing = ", ".join(sorted(str(p) for p in Path("configs").glob("*.py")))
            raise UserError(
                f"There is no config file {path}; choose from: {existing or 'none in configs/'}."
            )


def _unknown_key_message(argv: list[str], error_text: str, place: str) -> str:
    """The message for a key that does not exist.

    error_text: the key, quoted once or twice, sometimes with 'Did you mean "train" instead of "trian"?'.
    place: see `place_in_config_file`.
    """
    if "get_config" in error_text:
        return "The config file defines no function get_config."
    nearest = re.search(r'Did you mean "(.+)" instead of "(.+)"', error_text)
    unknown = re.search(r'Key "(.+?)" does not exist', error_text)
    key = nearest[2] if nearest else unknown[1] if unknown else error_text.strip("'\"")
    typed_keys = [word.partition("=")[0] for word in argv if word.startswith("--config.")]
    matches = [typed for typed in typed_keys if key in typed.split(".")]
    if matches:
        suggestion = f"; did you mean {matches[0].replace(key, nearest[1])}?" if nearest else ""
        message = f"There is no key {' or '.join(matches)}{suggestion}"
    elif place:
        suggestion = f"; did you mean {nearest[1]}?" if nearest else ""
        message = f"{place}: there is no key {key}{suggestion}"
    else:
        message = f"There is no key {' or '.join(typed_keys)}"
    return f"{message}\nAll keys with their defaults are in {reference.PAGE}."


def _unknown_flag_message(error_text: str) -> str:
    """The message for a flag that does not exist but is the last part of a key; '' for any other error."""
    unknown = re.match(r"Unknown command line flag '(.+?)'", error_text)
    keys = [key for key in KEYS if unknown and key.split(".")[-1] == unknown[1]]
    if unknown is None or not keys:
        return ""
    fix = " or ".join(f"--config.{key}=…" for key in keys)
    return f"Unknown command line flag '{unknown[1]}'; the config key of that name is {fix}"


def _wrong_value_message(error_text: str) -> str:
    """The message for a value of the wrong type, or for an error inside the config file.

    error_text: 'flag --config.train.epochs=two: invalid literal …', or the traceback of the config file's error.
    """
    if "Traceback" in error_text:
        cause = error_text.strip().splitlines()[-1].partition(": ")[2]
        return f"{_last_config_line(error_text)}: {cause}"
    flag = re.match(r"flag --(config\.(\S+?)=.*?): ", error_text)
    if flag is None or flag[2] not in KEYS:
        return error_text
    value = KEYS[flag[2]].default
    return f"--{flag[1]} must be {TYPE_NAMES[type(value)]}, like the default {value!r}."


def place_in_config_file(error: Exception) -> str:
    """The line of a config file that caused an error: 'configs/mine.py, line 12'; '' if none did."""
    return _last_config_line("".join(traceback.format_exception(error)))


def _last_config_line(traceback_text: str) -> str:
    """The last line of a config file in a traceback: 'configs/mine.py, line 12', or ''."""
    pattern = r'File "(.+?)", line (\d+), in (?:get_config|get_hyper|<module>)'
    calls = re.findall(pattern, traceback_text)
    return f"{calls[-1][0]}, line {calls[-1][1]}" if calls else ""
