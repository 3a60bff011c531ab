"""A finished run of the tiny network, which all prediction tests apply."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import tiny_run
from same_run import config

from kacl_jax.models.encoders import ENCODERS
from kacl_jax.predict.model import Model, load
from kacl_jax.runtime import devices
from kacl_jax.train import experiment, job


@pytest.fixture(scope="session")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Its maps are centred; the tests' process has four devices, the run used one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "resnet18", tiny_run.tiny_encoder())
        one = jax.devices()[:1]
        patch.setattr(jax, "local_devices", lambda **_: one)
        patch.setattr(
            experiment, "DataParallel", lambda mode: devices.DataParallel(mode, devices=one)
        )
        workdir = tmp_path_factory.mktemp("trained") / "w"
        job.train_and_evaluate(config(root, cam__center="mean", train__epochs=2), workdir)
        yield workdir


@pytest.fixture(scope="session")
def model(run: Path) -> Model:
    return load(run)
