"""The whole program on a network and a data set so small that a run takes seconds.

    python tests/tiny_run.py --config=tests/tiny_run.py --config.data.root=… --workdir=…

is `kacl_jax.main` with a two-layer image encoder in place of ResNet-18. AT='turn:5:SIGKILL' in the environment
sends that signal to the process itself at that point: 'turn' after step 5 was dispatched, 'saving' while the
checkpoint of step 5 is being written, 'saved' right after, 'fusing' right after fusion.json is written. Where the
folder HOLD has a folder 5, each process leaves a file INDEX.ID there after step 5 and waits until the folder is gone.
HEARTBEAT_S is `connection.HEARTBEAT_S`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

PATIENTS, SIZE = 48, 64


def write_root(root: Path) -> Path:
    """118 phantom images at 64 px."""
    from kacl_jax.data.phantom import demo

    demo.write_phantom(root, patients=PATIENTS, size=SIZE, seed=0)
    return root


def get_config() -> ConfigDict:
    """Protocol C, 12 steps of 12 images in 4 epochs; a checkpoint every 2 steps and at each epoch's end."""
    from kacl_jax import config

    c = config.default()
    c.protocol, c.folds = "C", 2
    c.log_every = 1
    c.data.image_size = SIZE
    c.data.box_share = 1.0
    c.data.val_fraction = 0.2
    c.model.pretrained = ""
    c.model.projection_dim = 8
    c.train.epochs = 4
    c.train.batch_size = 12
    c.train.learning_rate = 3e-3
    c.train.checkpoint_every = 2
    c.feedback.lag = 3
    c.feedback.workers = 1
    c.eval.batch_size = 12
    c.eval.bootstrap = 20
    c.eval.report_images = 0
    return c


def tiny_encoder() -> Any:
    """An entry of `encoders.ENCODERS`: two convolutions, 64 px → 8×8 cells of 16 channels.

    After the first one the map has 16×16 cells of 8 channels: the earlier stage.
    """
    import flax.linen as nn
    import jax.numpy as jnp

    from kacl_jax.models import encoders, layers

    class TinyEncoder(nn.Module):
        output_stride: int
        dtype: Any
        axis_name: str | None

        @nn.compact
        def __call__(self, images: Any, train: bool, part: str = "whole") -> Any:
            x = images.astype(self.dtype)
            for number, (features, stride) in enumerate(((8, 4), (16, 2))):
                if part == ("last", "early")[number]:
                    continue
                names = f"Conv_{number}", f"bn{number}"
                x = nn.Conv(features, (5, 5), strides=stride, use_bias=False, name=names[0])(x)
                norm = layers.batch_norm(
                    names[1],
                    train=train,
                    epsilon=1e-5,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                )
                x = nn.relu(norm(x))
            return x.astype(jnp.float32)

    return encoders.Encoder(TinyEncoder, published_layer=".".join, own_input="imagenet")


def _struck(at: str) -> None:
    """Make the loop send itself a signal where `at` says."""
    from kacl_jax.train import checkpoint, final_evaluation, loop

    point, step, name = at.split(":")
    number = signal.Signals[name]

    def strike() -> None:
        os.kill(os.getpid(), number)

    def around(owner: Any, method: str, delay: float = 0.0) -> None:
        inner = getattr(owner, method)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            here = point == "fusing" or args[1] == int(step)
            if here and delay:
                threading.Timer(delay, strike).start()
            result = inner(*args, **kwargs)
            if here and delay:
                time.sleep(1)  # had the save been faster
            elif here:
                strike()
            return result

        setattr(owner, method, wrapped)

    if point == "turn":
        around(loop.TrainingLoop, "run_step")
    elif point == "saving":
        around(checkpoint.Checkpoints, "save", delay=0.02)
    elif point == "saved":
        around(checkpoint.Checkpoints, "save")
    else:
        around(final_evaluation.fused_file, "write")


def _held(folder: Path) -> None:
    """Make the loop wait after each step that has a folder in `folder`."""
    from kacl_jax.runtime import processes
    from kacl_jax.train import loop

    inner = loop.TrainingLoop.run_step

    def run_step(self: loop.TrainingLoop, step: int) -> None:
        inner(self, step)
        here = folder / str(step + 1)
        if here.exists():
            (here / f"{processes.process_index()}.{os.getpid()}").touch()
            while here.exists():
                time.sleep(0.05)

    loop.TrainingLoop.run_step = run_step  # type: ignore[method-assign]


if __name__ == "__main__":
    from absl import app

    from kacl_jax import main
    from kacl_jax.config import command_line
    from kacl_jax.models.encoders import ENCODERS
    from kacl_jax.runtime import connection

    connection.HEARTBEAT_S = int(os.environ.get("HEARTBEAT_S", connection.HEARTBEAT_S))
    ENCODERS["resnet18"] = tiny_encoder()
    if os.environ.get("AT"):
        _struck(os.environ["AT"])
    if os.environ.get("HOLD"):
        _held(Path(os.environ["HOLD"]))
    app.run(main.main, argv=sys.argv, flags_parser=command_line.parse)
