"""The demo set: chest X-rays drawn by a program, in NIH's layout. They are written at the first use.

    python -m kacl_jax.main --config=configs/demo.py

It takes six to ten minutes on two CPU cores. Expect a mean AUROC of about 0.83, and 0.78 of the true boxes overlapped
with an IoU above 0.1. Two machines differ by 0.02 and 0.06 or more.
"""

from ml_collections import ConfigDict

from kacl_jax import config as defaults


def get_config() -> ConfigDict:
    c = defaults.default()
    c.protocol = "C"
    c.data.root = "phantom"
    c.data.image_size = 128
    c.data.box_share = 1.0
    c.model.encoder = "efficientnet_lite0"
    c.model.pretrained = "package"
    c.model.output_stride = 16
    c.train.epochs = 4
    c.train.batch_size = 32
    c.train.learning_rate = 1e-3
    c.train.schedule = "one_cycle"
    c.loss.box_weight = 0.1
    c.cam.threshold = 0.7  # chosen on fold 1
    c.eval.pixel_probe = True
    return c
