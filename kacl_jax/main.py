"""The command: `python -m kacl_jax.main --config=configs/nih.py [--workdir=…] [--mode=train|eval|verify]`.

Its top level imports no jax: a mistyped flag and --help answer at once.
"""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from kacl_jax import run
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


def main(argv: list[str]) -> int:
    """Parse, run, and turn what a user must know into one message and an exit code (see `run`)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Where nothing listens for it (before and after training), SIGTERM is as good as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if len(argv) > 1:
            raise UserError(
                f"Not understood: {' '.join(argv[1:])}; options look like --config.fold=1"
            )
        return _run(_config(), _workdir())
    except run.WorkdirInUseError as error:
        return _told(error, run.WORKDIR_IN_USE)
    except UserError as error:
        return _told(error, run.USER_ERROR)
    except run.InterruptedRunError as error:
        return _told(error, run.INTERRUPTED)
    except KeyboardInterrupt:
        return _told("Stopped; the same command goes on from the last checkpoint.", run.INTERRUPTED)
    except run.NonFiniteError as error:
        return _told(error, run.NON_FINITE)


def _run(config: ConfigDict, workdir: Path) -> int:
    if _MODE.value == "verify":
        return _verify(config, workdir)
    # Heavy imports wait until the command is known to be sound, and never happen in a worker.
    from kacl_jax import results, train

    job = train.train_and_evaluate if _MODE.value == "train" else train.evaluate_only
    found = job(config, workdir)
    print(results.format_table(found))
    print(f"\nIn {workdir}: results.json, predictions.csv, boxes.csv, metrics.jsonl, run.json")
    return run.DONE


def _verify(config: ConfigDict, workdir: Path) -> int:
    """Check the data root completely and print all problems at once, each with its fix."""
    from kacl_jax import experiment
    from kacl_jax.data import verify

    root = experiment.data_root(config, workdir.absolute())
    with tqdm(unit="image", desc=f"Reading {root}", dynamic_ncols=True) as bar:

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
    """The config of the command line; a missing file is found here, not at the first use of a key."""
    if _CONFIG.value is None:
        raise UserError("Which config? Give one: --config=configs/demo.py, or configs/nih.py")
    path = Path(_config_name().split(":")[0])
    if not path.exists():
        known = ", ".join(sorted(str(p) for p in Path("configs").glob("*.py")))
        raise UserError(f"There is no config file {path}; there are: {known or 'none in configs/'}")
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
    """absl's flags, with a typo told as one sentence instead of a traceback."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        message = str(error)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = str(error).strip("'\"")
    print(f"{message}\nAll keys with their defaults are in kacl_jax/config.py.", file=sys.stderr)
    raise SystemExit(run.USER_ERROR)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
