"""The command: `python -m kacl_jax.main --config=configs/nih.py [--workdir=…] [--mode=train|eval|verify]`."""

# This top level imports no jax: a mistyped flag and --help answer at once. --help prints the docstring above.
from __future__ import annotations

if __name__ == "__main__":  # before the slow imports, during which a signal may come
    from kacl_jax.runtime import huge_pages, output, signals

    # The training loop has handlers of its own while it runs.
    signals.exit_on_signals("Stopped. Run the same command again to continue.")
    huge_pages.restart_with_huge_pages()
    output.prepare_streams()

import logging
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict

from kacl_jax.config import command_line
from kacl_jax.config.stored import keep_old_values
from kacl_jax.runtime import connection, output, processes
from kacl_jax.runtime.errors import (
    DONE,
    USER_ERROR,
    InterruptedRunError,
    NonFiniteError,
    UserError,
    exit_code,
)

flags.adopt_module_key_flags(command_line)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "verify"],
    "train: train or resume, then test. eval: test the best checkpoint again. verify: only check the data root.",
)
_TEST_ROOT = flags.DEFINE_string(
    "test_root",
    None,
    "With --mode=eval: another data set, on which the finished run is tested. Its results go to WORKDIR/test_<name>.",
)
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "on", "off"],
    "Train as one of several processes. auto: if jax detects a cluster or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES "
    "and JAX_PROCESS_ID are set. on: refuse to run alone. off: run alone.",
)


def main(argv: list[str]) -> int:
    """Parse, run, and turn what a user must know into one message and an exit code (see `runtime.errors`)."""
    # force=True replaces the handler that absl installed.
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    output.silence_pydicom()
    output.silence_late_answers()
    try:
        if len(argv) > 1:
            raise UserError(
                f"Unknown argument {' '.join(argv[1:])}; options look like --config.fold=1"
            )
        return _run(command_line.config(), command_line.workdir())
    except (UserError, InterruptedRunError, NonFiniteError) as error:
        return command_line.print_error(error, exit_code(error) or USER_ERROR)


def _run(config: ConfigDict, workdir: Path) -> int:
    if kept := keep_old_values(config, [workdir]):
        logging.info(
            "%s was started before these keys existed; it keeps %s", workdir, ", ".join(kept)
        )
    # These imports are slow: a mistyped command must be answered before them.
    if _MODE.value == "verify":
        from kacl_jax.train.verification import verify_run

        return verify_run(config, workdir)
    from kacl_jax.evaluation import terminal_table

    if _TEST_ROOT.value:
        if _MODE.value != "eval":
            raise UserError("--test_root needs --mode=eval, which tests a finished run")
        from kacl_jax.train.external_test import evaluate_elsewhere

        elsewhere, folder = evaluate_elsewhere(config, workdir, Path(_TEST_ROOT.value))
        print(terminal_table.format_table(elsewhere))
        print(f"\nWritten to {folder}: report.html, results.json, predictions.csv, boxes.csv")
        return DONE
    from kacl_jax.train.job import evaluate_only, train_and_evaluate

    job = train_and_evaluate if _MODE.value == "train" else evaluate_only
    with connection.connect_processes(_DISTRIBUTED.value):
        if not processes.is_leader():
            logging.getLogger().setLevel(logging.WARNING)
        results = job(config, workdir)
        if processes.is_leader():
            print(terminal_table.format_table(results))
            print(
                f"\nWritten to {workdir}: report.html (open it in a browser), results.json, predictions.csv, "
                "boxes.csv, run.json"
            )
    return DONE


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
