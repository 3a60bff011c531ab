"""The shapes and dtypes in signatures: the tests check them in every call, a run never does."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import typing

import conftest
import jax.numpy as jnp
import jaxtyping
import pytest

from kacl_jax.step import losses


def printed(code: str) -> str:
    """By a Python of its own, as a run has it."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_in_the_tests_a_wrong_shape_is_refused() -> None:
    """One label for all findings: jax would broadcast it, and the loss would be plausible and wrong."""
    with pytest.raises(jaxtyping.TypeCheckError, match="labels"):
        losses.focal_loss(jnp.zeros((2, 3)), jnp.ones((2, 1)), alpha=0.25, gamma=2.0)


def test_in_a_run_nothing_is_checked() -> None:
    code = """
import sys, jax.numpy as jnp
from kacl_jax.step import losses
loss = losses.focal_loss(jnp.zeros((2, 3)), jnp.ones((2, 1)), alpha=0.25, gamma=2.0)
print(loss.shape, "beartype" in sys.modules)"""
    assert printed(code) == "(2, 3) False"


def test_every_annotation_can_be_evaluated() -> None:
    """The checker takes one that names something unknown for `Any`, without a word."""
    for name in conftest.MODULES:
        module = importlib.import_module(name)
        members = [x for x in vars(module).values() if getattr(x, "__module__", "") == name]
        for member in members:
            functions = vars(member).values() if inspect.isclass(member) else [member]
            for function in filter(inspect.isfunction, functions):
                typing.get_type_hints(inspect.unwrap(function))


def test_worker_processes_start_without_the_time_that_the_types_cost() -> None:
    code = "import sys, kacl_jax.feedback.worker; print('jaxtyping' in sys.modules)"
    assert printed(code) == "False"
