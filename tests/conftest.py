"""What every test shares: four host devices, a compilation cache, and the real X-rays if present."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compile_fast
import jaxtyping
import pytest
import tiny_run

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / "shared"

# Before jax starts: the step is tested on four host devices, and compiles once per machine.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " " + compile_fast.xla_flags(4)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPO / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# In the tests every call in these folders has its shapes and dtypes checked, except for files whose name is below.
CHECKED_FOLDERS = ("step", "models", "radiomics", "evaluation/metrics")
UNCHECKED = {
    "state",  # jax also builds a TrainState of shardings, of numpy arrays and of nothing
    "boxes",  # of a single box numpy makes a number, no array
    "by_numba",  # numba compiles its functions and needs them bare
    "extraction",  # refuses wrong arguments itself
    "host",  # workers import it: it has no shape types
    "torch_file",  # reads bytes; a zip archive's member is no IO[bytes] at run time
}
MODULES = [
    ".".join(path.relative_to(REPO).with_suffix("").parts)
    for folder in CHECKED_FOLDERS
    for path in (REPO / "kacl_jax" / folder).rglob("*.py")
    if path.stem not in UNCHECKED
]
# Before the package is imported. An int may stand for a float, as for mypy.
jaxtyping.install_import_hook(
    MODULES, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

# Files are shared out between two processes; a long one that came last would run alone.
LONG = {
    "test_in_step_radiomics",
    "test_launch_slurm",
    "test_processes",
    "test_main",
    "test_radiomics_jax",
    "test_step",
    "test_train",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data root of tiny_run.py. A test that changes it makes a copy."""
    return tiny_run.write_root(tmp_path_factory.mktemp("data") / "root")


@pytest.fixture(scope="module")
def run(
    root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """The workdir of a finished run of tiny_run.py's network, whose maps are centred, on one device.

    A module may name more keys of its config: CHANGES, as for `same_run.config`.

    While the module's tests run, this process uses one device, too, and ResNet-18 is that network.
    """
    import jax
    from same_run import config

    from kacl_jax.models.encoders import ENCODERS
    from kacl_jax.runtime import devices
    from kacl_jax.train import experiment, job

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "resnet18", tiny_run.tiny_encoder())
        one = jax.devices()[:1]
        patch.setattr(jax, "local_devices", lambda **_: one)
        patch.setattr(
            experiment, "DataParallel", lambda mode: devices.DataParallel(mode, devices=one)
        )
        workdir = tmp_path_factory.mktemp("trained") / "w"
        changes = getattr(request.module, "CHANGES", {})
        job.train_and_evaluate(
            config(root, cam__center="mean", train__epochs=2, **changes), workdir
        )
        yield workdir


@pytest.fixture(scope="module")
def model(run: Path) -> Any:
    """The network of `run`."""
    from kacl_jax.predict.model import load

    return load(run)


def _shared(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"needs the real X-rays in {path}, which is not there")
    return path


@pytest.fixture(scope="session")
def nih_root() -> Path:
    """1,788 real X-rays at 512 px in NIH's layout."""
    return _shared("nih")


@pytest.fixture(scope="session")
def nih_original_root() -> Path:
    """14 X-rays exactly as NIH published them, 1024 px."""
    return _shared("nih_original")


@pytest.fixture(scope="session")
def odd_root() -> Path:
    """Four real DICOMs, one of them a hip, and a JPEG."""
    return _shared("odd")


@pytest.fixture(scope="session")
def nih_metadata_root() -> Path:
    """The CSVs and lists of all 112,120 images, without images."""
    return _shared("nih_metadata")
