"""The command: `python -m kacl_jax.main --config=configs/nih.py [--workdir=…] [--mode=train|eval|verify]`.

Its top level imports no jax: a mistyped flag and --help answer at once.
"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from kacl_jax import config as config_keys
from kacl_jax import hosts, huge_pages, run
from kacl_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The config file, with a variant if it has some: configs/nih.py:semi"
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run leaves everything; default: runs/<config name>"
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "verify"],
    "train: train or go on, then test. eval: test the best checkpoint again. verify: only check the data root.",
)
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "on", "off"],
    "Be one of several processes that train together: auto if jax detects a cluster or JAX_COORDINATOR_ADDRESS, "
    "JAX_NUM_PROCESSES and JAX_PROCESS_ID are set; on: refuse to run alone; off.",
)


def main(argv: list[str]) -> int:
    """Parse, run, and turn what a user must know into one message and an exit code (see `run`)."""
    # absl has put its own handler there.
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    run.stop_at_once()  # before and after training, which listens itself
    try:
        if len(argv) > 1:
            raise UserError(
                f"Not understood: {' '.join(argv[1:])}; options look like --config.fold=1"
            )
        return _run(_config(), _workdir())
    except (UserError, run.InterruptedRunError, run.NonFiniteError) as error:
        return _told(error, run.exit_code(error) or run.USER_ERROR)


def _run(config: ConfigDict, workdir: Path) -> int:
    if _MODE.value == "verify":
        return _verify(config, workdir)
    # Heavy imports wait until the command is known to be sound, and never happen in a worker.
    from kacl_jax import terminal, train

    job = train.train_and_evaluate if _MODE.value == "train" else train.evaluate_only
    with hosts.connected(_DISTRIBUTED.value):
        if not hosts.leads():
            logging.getLogger().setLevel(logging.WARNING)
        found = job(config, workdir)
        if hosts.leads():
            print(terminal.format_table(found))
            print(
                f"\nIn {workdir}: report.html to look at, results.json, predictions.csv, boxes.csv, run.json"
            )
    return run.DONE


def _verify(config: ConfigDict, workdir: Path) -> int:
    """Check the data root completely and print all problems at once, each with its fix."""
    from kacl_jax import experiment
    from kacl_jax.data import verify

    config_keys.check(config, n_devices=1)
    root = experiment.data_root(config, workdir.absolute())
    with tqdm(
        disable=None, unit="image", desc=f"Reading {root}", dynamic_ncols=True, delay=1
    ) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = verify.check(root, findings=config.data.findings, progress=progress)
    print(verify.format_summary(report.summary))
    if report.problems:
        print(verify.format_problems(report.problems))
        return run.USER_ERROR
    print("No problems found.")
    return run.DONE


def _config() -> ConfigDict:
    if _CONFIG.value is None:
        raise UserError("Which config? Give one: --config=configs/demo.py, or configs/nih.py")
    return _CONFIG.value


def _workdir() -> Path:
    if _WORKDIR.value:
        return Path(_WORKDIR.value).expanduser()
    return Path("runs") / Path(_config_name().split(":")[0]).stem


def _config_name() -> str:
    """What was typed after --config=, variant included."""
    flag: Any = flags.FLAGS["config"]
    return flag.config_filename


def _told(error: Exception | str, code: int) -> int:
    print(f"\n{error}", file=sys.stderr)
    return code


def _parse(argv: list[str]) -> list[str]:
    """absl's flags; what was mistyped is told in a sentence instead of a traceback."""
    try:
        _check_config_file(argv)
        return flags.FLAGS(argv)
    except flags.Error as error:
        message = _wrong_value(str(error))
    # ml_collections raises any of these for a key that is not there.
    except (AttributeError, KeyError, TypeError) as error:
        message = _wrong_key(argv, str(error.args[0]))
    except SyntaxError as error:
        message = f"{error.filename}, line {error.lineno}: {error.msg}"
    except UserError as error:
        message = str(error)
    print(message, file=sys.stderr)
    raise SystemExit(run.USER_ERROR)


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


def _wrong_key(argv: list[str], told: str) -> str:
    """told: the key and, perhaps, 'Did you mean "train" instead of "trian"?'; quoted once or twice."""
    if "get_config" in told:
        return "The config file defines no function get_config."
    nearest = re.search(r'Did you mean "(.+)" instead of "(.+)"', told)
    key = nearest[2] if nearest else told.strip("'\"")
    typed = [word.partition("=")[0] for word in argv if word.startswith("--config.")]
    here = [word for word in typed if key in word.split(".")]
    message = f"There is no key {' or '.join(here or typed)}"
    if here and nearest:
        message += f"; did you mean {here[0].replace(key, nearest[1])}?"
    return f"{message}\nAll keys with their defaults are in kacl_jax/config.py."


def _wrong_value(told: str) -> str:
    """told: 'flag --config.train.epochs=two: invalid literal …', or the traceback of a config file's own error."""
    if "Traceback" in told:
        return told.strip().splitlines()[-1].partition(": ")[2]
    wrong = re.match(r"flag --(config\.(\S+?)=.*?): ", told)
    keys = config_keys.flatten(config_keys.default())
    if wrong is None or wrong[2] not in keys:
        return told
    value = keys[wrong[2]]
    return f"--{wrong[1]} must be {_KINDS[type(value)]}, like the default {value!r}."


_KINDS = {bool: "True or False", int: "a whole number", float: "a number", list: "a pair"}


if __name__ == "__main__":
    huge_pages.restart_with_them()
    app.run(main, flags_parser=_parse)
