"""The real loop, short, to be timed.

    python -m benchmarks.loop --config=configs/bench.py
    python -m benchmarks.loop --config=configs/bench.py --config.data.root=/path/to/nih

Without a root: the embedded demo set, one batch of it kept in memory and drawn again and again, so that no input
pipeline is in the way (Grad-CAM's regions are real ones, hence radiomics too). With a root: through the pipeline.
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
