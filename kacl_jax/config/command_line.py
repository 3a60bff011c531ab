"""What `kacl_jax.main` and `kacl_jax.sweep` are told: --config and --workdir, and a sentence for what was mistyped.

Imports no jax: a mistyped flag and --help answer at once.
"""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from kacl_jax import config as config_keys
from kacl_jax.runtime.errors import USER_ERROR, UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The config file, with a variant if it has some: configs/nih.py:semi"
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run leaves everything; default: runs/<config name>[_<variant>]"
)
_KINDS = {bool: "True or False", int: "a whole number", float: "a number", list: "a pair"}


def config() -> ConfigDict:
    """What the config file gives, with what was typed over it. Raises UserError if none was named."""
    if _CONFIG.value is None:
        raise UserError("Which config? Give one: --config=configs/demo.py, or configs/nih.py")
    return _CONFIG.value


def config_name() -> str:
    """What was typed after --config=, variant included."""
    flag: Any = flags.FLAGS["config"]
    return flag.config_filename


def workdir() -> Path:
    """What was typed after --workdir=, else runs/nih_pooled for configs/nih.py:pooled."""
    if _WORKDIR.value:
        return Path(_WORKDIR.value).expanduser()
    file, _, variant = config_name().partition(":")
    return Path("runs") / "_".join(filter(None, (Path(file).stem, variant)))


def tell(error: Exception | str, code: int) -> int:
    """Print what went wrong; returns the code."""
    print(f"\n{error}", file=sys.stderr)
    return code


def parse(argv: list[str]) -> list[str]:
    """absl's flags; what was mistyped, or is wrong in the config file, is told in a sentence and exits with 1."""
    try:
        _check_config_file(argv)
        return flags.FLAGS(argv)
    except flags.Error as error:
        message = _wrong_value(str(error))
    except SyntaxError as error:
        message = f"{error.filename}, line {error.lineno}: {error.msg}"
    # ml_collections raises any of these for a key that is not there.
    except (AttributeError, KeyError, TypeError) as error:
        message = _wrong_key(argv, str(error.args[0]), place_of(error))
    except (ImportError, NameError, OSError) as error:
        message = f"{place_of(error)}: {error}"
    except UserError as error:
        message = str(error)
    print(message, file=sys.stderr)
    raise SystemExit(USER_ERROR)


def _check_config_file(argv: list[str]) -> None:
    """ml_collections would tell of a missing file at the first use of a key."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = word.lstrip("-").partition("=")
        path = Path((value if equals else following).split(":")[0])
        if word.startswith("-") and name == "config" and not path.is_file():
            known = ", ".join(sorted(str(p) for p in Path("configs").glob("*.py")))
            raise UserError(
                f"There is no config file {path}; there are: {known or 'none in configs/'}."
            )


def _wrong_key(argv: list[str], told: str, place: str) -> str:
    """told: the key and, perhaps, 'Did you mean "train" instead of "trian"?'; quoted once or twice."""
    if "get_config" in told:
        return "The config file defines no function get_config."
    nearest = re.search(r'Did you mean "(.+)" instead of "(.+)"', told)
    absent = re.search(r'Key "(.+?)" does not exist', told)
    key = nearest[2] if nearest else absent[1] if absent else told.strip("'\"")
    typed = [word.partition("=")[0] for word in argv if word.startswith("--config.")]
    here = [word for word in typed if key in word.split(".")]
    if here:
        meant = f"; did you mean {here[0].replace(key, nearest[1])}?" if nearest else ""
        message = f"There is no key {' or '.join(here)}{meant}"
    elif place:
        meant = f"; did you mean {nearest[1]}?" if nearest else ""
        message = f"{place}: there is no key {key}{meant}"
    else:
        message = f"There is no key {' or '.join(typed)}"
    return f"{message}\nAll keys with their defaults are in kacl_jax/config/keys.py."


def _wrong_value(told: str) -> str:
    """told: 'flag --config.train.epochs=two: invalid literal …', or the traceback of a config file's own error."""
    if "Traceback" in told:
        cause = told.strip().splitlines()[-1].partition(": ")[2]
        return f"{_place(told)}: {cause}"
    wrong = re.match(r"flag --(config\.(\S+?)=.*?): ", told)
    keys = config_keys.flatten(config_keys.default())
    if wrong is None or wrong[2] not in keys:
        return told
    value = keys[wrong[2]]
    return f"--{wrong[1]} must be {_KINDS[type(value)]}, like the default {value!r}."


def place_of(error: Exception) -> str:
    """Where in a config file an error comes from: 'configs/mine.py, line 12', or ''."""
    return _place("".join(traceback.format_exception(error)))


def _place(told: str) -> str:
    """The file and line of a traceback's last call from a config file: 'configs/mine.py, line 12'."""
    calls = re.findall(r'File "(.+?)", line (\d+), in (?:get_config|get_hyper|<module>)', told)
    return f"{calls[-1][0]}, line {calls[-1][1]}" if calls else ""
