"""`kacl_jax.sweep` whose points are tiny runs: python tests/tiny_sweep.py --config=… --workdir=…"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import app

from kacl_jax.config import command_line
from kacl_jax.sweep import __main__ as sweep

if __name__ == "__main__":
    sweep.COMMAND = (sys.executable, str(Path(__file__).with_name("tiny_run.py")))
    app.run(sweep.main, flags_parser=command_line.parse)
