"""How a process finds the others: by environment variables or as a cluster's, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kacl_jax.runtime import clusters, connection
from kacl_jax.runtime.errors import USER_ERROR, UserError

REPO = Path(__file__).resolve().parents[2]

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
EXPLICIT = {
    "JAX_COORDINATOR_ADDRESS": "first:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}
ALONE = EXPLICIT | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}


def set_only(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    for name in (*SLURM, *EXPLICIT):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)


def found(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> Any:
    set_only(monkeypatch, env)
    return clusters.jax_arguments()


def test_several_processes_are_found_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    explicit = found(monkeypatch, EXPLICIT)
    assert explicit["coordinator_address"] == "first:1234"
    assert (explicit["num_processes"], explicit["process_id"]) == (2, 1)
    assert found(monkeypatch, SLURM) == {"cluster_detection_method": "slurm"}
    assert found(monkeypatch, SLURM | EXPLICIT) == explicit


def test_a_single_machine_goes_on_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also inside a Slurm step of one task, and in a Kubernetes pod, of whose network nothing is asked."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    for env in ({}, SLURM | {"SLURM_NTASKS": "1"}, ALONE):
        assert found(monkeypatch, env) is None


@pytest.mark.parametrize(
    "mode, env, told",
    [
        ("on", {}, "--distributed=on, but neither Slurm"),
        ("on", SLURM | {"SLURM_NTASKS": "1"}, "--distributed=on, but neither Slurm"),
        ("on", ALONE, "--distributed=on, but neither Slurm"),
        (
            "auto",
            {"JAX_NUM_PROCESSES": "2"},
            "JAX_NUM_PROCESSES is set without JAX_COORDINATOR_ADDRESS",
        ),
        ("auto", EXPLICIT | {"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID is 2"),
        ("auto", EXPLICIT | {"JAX_PROCESS_ID": "one"}, "'one'; it must be a whole number"),
        ("auto", SLURM | {"SLURM_NTASKS": "two"}, "cannot find out whether"),
    ],
)
def test_half_a_description_is_refused(
    mode: str, env: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_only(monkeypatch, env)
    with pytest.raises(UserError, match=told), connection.connect_processes(mode):
        pass


def test_a_process_that_stays_alone_says_so() -> None:
    code = (
        "from kacl_jax.runtime import connection; connection.MEETING_S = 2\n"
        "with connection.connect_processes('auto'): print('here')"
    )
    env = (
        os.environ | EXPLICIT | {"JAX_COORDINATOR_ADDRESS": "localhost:9", "PYTHONPATH": str(REPO)}
    )
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == USER_ERROR, done.stderr
    assert "did not find each other" in done.stderr
    assert "here" not in done.stdout


def test_a_jax_without_what_is_needed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the processes wait for each other."""
    import jax
    from jax._src import distributed

    set_only(monkeypatch, EXPLICIT)
    monkeypatch.delattr(distributed, "global_state")
    told = rf"jax {jax.__version__} does not have .*global_state.* install one of jax 0\.10\.2, .*--distributed=off"
    with pytest.raises(UserError, match=told), connection.connect_processes("auto"):
        pass


def test_a_process_says_for_whom_it_waits(capsys) -> None:
    connection._announce({"coordinator_address": "localhost:1234", "num_processes": 3})
    assert capsys.readouterr().err == ("Waiting for 3 processes at localhost:1234, up to 300 s\n")


def test_a_coordinator_that_does_not_exist_is_told_at_once() -> None:
    address = {"coordinator_address": "no-such-host.invalid:1234", "num_processes": 3}
    with pytest.raises(UserError, match=r"no-such-host\.invalid:1234 cannot be resolved"):
        connection._announce(address)
