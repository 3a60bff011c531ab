"""XLA's options: the one for a CPU is taken, or its loss is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace

import jax
import pytest

from kacl_jax.runtime import compilation


@pytest.fixture(autouse=True)
def ask_xla_again() -> Iterator[None]:
    compilation._cpu_options.cache_clear()
    yield
    compilation._cpu_options.cache_clear()


def test_this_jax_takes_the_option_for_a_cpu(caplog: pytest.LogCaptureFixture) -> None:
    """If this fails after a change of the lock: measure `python -m benchmarks.step` with either jax."""
    options = compilation.compiler_options(jax.devices("cpu")[0])
    assert list(options) == ["xla_cpu_experimental_ynn_fusion_type"]
    assert not caplog.records
    assert compilation.compiler_options(SimpleNamespace(platform="gpu")) == {}


def test_an_xla_without_the_option_costs_time_and_not_the_run(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "_EIGEN_CONVOLUTIONS", {"xla_cpu_not_there": "1"})
    device = jax.devices("cpu")[0]
    for _ in range(2):
        options = compilation.compiler_options(device)
        assert jax.jit(lambda: 7, compiler_options=options)() == 7
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for part in (jax.__version__, "twice as long", "requirements.lock", "xla_cpu_not_there"):
        assert part in record.getMessage()
