"""Which processes this one belongs to, from environment variables, Slurm, Open MPI or a TPU pod."""

from __future__ import annotations

import os
from typing import Any

from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.jax_private import private_jax

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# The cluster kinds of jax whose detection uses the network only on a TPU.
_CLUSTERS = ("ompi", "slurm", "gcetpu", "gketpu")


def jax_arguments() -> dict[str, Any] | None:
    """The arguments with which jax.distributed.initialize finds the other processes; None for a single process.

    Raises:
      UserError: the environment describes the processes only in part, or wrongly.
    """
    values = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if len(values) == len(VARIABLES):
        return _explicit_arguments(*(values[name] for name in VARIABLES))
    cluster = _cluster()
    if cluster is not None:
        name, n_processes = cluster
        return {"cluster_detection_method": name} if n_processes > 1 else None
    if values:
        absent = " and ".join(name for name in VARIABLES if name not in values)
        raise UserError(
            f"{' and '.join(values)} is set without {absent}; set all three to run as one of several processes, "
            "or none to run alone"
        )
    return None


def _explicit_arguments(address: str, count: str, index: str) -> dict[str, Any] | None:
    n_processes, process_id = (
        _whole_number(name, text) for name, text in zip(VARIABLES[1:], (count, index), strict=True)
    )
    if not 0 <= process_id < n_processes:
        raise UserError(
            f"JAX_PROCESS_ID is {process_id}; it must be 0 … {n_processes - 1}, below JAX_NUM_PROCESSES"
        )
    if n_processes == 1:
        return None
    return {
        "coordinator_address": address,
        "num_processes": n_processes,
        "process_id": process_id,
        "cluster_detection_method": "deactivate",
    }


def _whole_number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{name} is {text!r}; it must be a whole number") from error


def _cluster() -> tuple[str, int] | None:
    """The name of the cluster that jax runs in, and its number of processes."""
    kinds = private_jax().cluster_kinds
    try:
        for kind in kinds:
            if kind.name in _CLUSTERS and kind.is_env_present():
                return kind.name, kind.get_process_count()
    # Detection can raise anything: a variable is not a number, a metadata server does not answer.
    except Exception as error:
        raise UserError(
            f"The program cannot find out whether this is one of several processes ({error}); give --distributed=off "
            f"if it is alone, or set {', '.join(VARIABLES)}"
        ) from error
    return None
