"""One of the two loops that benchmarks.vs_torch compares: kacl_jax's own, asynchronous. Prints images/s as JSON.

python -m benchmarks.vs_torch.jax_loop ROOT SIZE BATCH
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from pathlib import Path

from configs import bench
from kacl_jax.runtime import compilation
from kacl_jax.train import checkpoint, experiment, loop


def main(root: str, size: int, batch_size: int) -> None:
    logging.getLogger().setLevel(logging.WARNING)
    config = bench.get_config()
    config.data.root, config.data.image_size = root, size
    config.train.batch_size, config.train.epochs = batch_size, 3
    config.train.checkpoint_every = 0
    # Beside the image files, so that the step is compiled once for all rounds.
    compilation.use_cache(Path(root) / "compilation_cache")
    with tempfile.TemporaryDirectory() as folder:
        setup = experiment.build_experiment(config, Path(folder))
        counters = loop.train(setup, checkpoint.Checkpoints(Path(folder) / "checkpoints"))
    # The regions of the last steps are measured after the clock has stopped, so their images do not count.
    measured_share = 1 - config.feedback.lag / setup.total_steps
    print(
        json.dumps({"kacl_jax, asynchronous": counters.throughput["images_per_s"] * measured_share})
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
