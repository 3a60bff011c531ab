"""A short run of the real training loop, for timing.

    python -m benchmarks.loop --config=configs/bench.py
    python -m benchmarks.loop --config=configs/bench.py --config.data.root=/path/to/nih

Without a root: one batch of the embedded demo set stays in memory and is used in every step, so that the input
pipeline costs no time. Grad-CAM's regions are real ones, so radiomics is measured as usual. With a root: the batches
come through the input pipeline.
"""

from ml_collections import ConfigDict

from kacl_jax import config as defaults


def get_config() -> ConfigDict:
    c = defaults.default()
    c.protocol = "C"
    c.data.root = "phantom"
    c.data.allow_missing = True
    c.model.pretrained = ""
    c.train.epochs = 2
    c.train.batch_size = 32
    c.train.warmup_epochs = 0
    c.train.checkpoint_every = 10
    c.eval.report_images = 0
    return c
