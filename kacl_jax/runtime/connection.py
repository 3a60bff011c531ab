"""Connects the processes that train one network, for the time of a block.

This file imports jax only inside functions.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from kacl_jax.runtime import clusters, process_end, processes
from kacl_jax.runtime.errors import UserError
from kacl_jax.runtime.jax_private import private_jax

HEARTBEAT_S = 60  # a process that gives no sign of life for so long counts as lost
MEETING_S = 300  # all processes must start within this time


@contextmanager
def connect_processes(mode: str) -> Iterator[None]:
    """Connect to the other processes of this run for the time of the block. With a single process, do nothing.

    If a process of several leaves the block by an exception, it does not return: it and all others end with its exit
    code.

    Args:
      mode: 'auto' connects where the environment describes several processes, 'on' also refuses to run alone, 'off'
        never connects. The environment describes them by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
        JAX_PROCESS_ID, or as Slurm, Open MPI or a TPU pod.

    Raises:
      UserError: the description is incomplete, there is none under 'on', the installed jax cannot connect, or the
        other processes did not start.
    """
    arguments = None if mode == "off" else clusters.jax_arguments()
    if arguments is None:
        if mode == "on":
            raise UserError(
                f"--distributed=on, but neither Slurm, Open MPI, a TPU pod nor {', '.join(clusters.VARIABLES)} "
                "describe more than one process; set the three variables in each, or use --distributed=off"
            )
        yield
        return
    import jax

    state = _initialise(arguments)
    monitor = process_end.ProcessMonitor(state, HEARTBEAT_S)
    try:
        _open_channels(state.client)
        yield
        processes.barrier()
    except BaseException as error:
        monitor.end(error)
    monitor.close()
    jax.distributed.shutdown()


def _initialise(arguments: dict[str, Any]) -> Any:
    """Connect; return jax's state of the connection."""
    import jax

    state = private_jax().distributed_state
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # jax's preemption service would take SIGTERM away from `signals.Interrupt`.
    jax.config.update("jax_enable_preemption_service", False)
    process_end.abort_handler.install()
    _announce(arguments)
    try:
        jax.distributed.initialize(
            **arguments, initialization_timeout=MEETING_S, heartbeat_timeout_seconds=HEARTBEAT_S
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{process_end.NOT_CONNECTED} ({error})") from error
    return state


def _announce(arguments: dict[str, Any]) -> None:
    """Say for whom this process waits. Raises UserError if the coordinator's name is none."""
    address = arguments.get("coordinator_address")
    if address is None:
        print(f"Waiting for the other processes, up to {MEETING_S} s", file=sys.stderr, flush=True)
        return
    host, _, port = address.rpartition(":")
    try:
        socket.getaddrinfo(host.strip("[]"), port)
    except OSError as error:
        raise UserError(
            f"The coordinator's address {address} cannot be resolved ({error.strerror}); set "
            "JAX_COORDINATOR_ADDRESS to HOST:PORT of process 0"
        ) from error
    text = f"Waiting for {arguments['num_processes']} processes at {address}, up to {MEETING_S} s"
    print(text, file=sys.stderr, flush=True)


def _open_channels(store: Any) -> None:
    """Run both kinds of collectives once while all processes are at the same place.

    When processes first use a group of devices together, gloo waits 30 s for the others; later it waits as long as
    needed. 30 s are too few if one process compiles the train step while another finds it in its cache.
    """
    import jax
    from jax.experimental import multihost_utils

    from kacl_jax.runtime.devices import all_devices

    found = all_devices()
    store.wait_at_barrier("kacl_jax/met", MEETING_S * 1000)
    multihost_utils.sync_global_devices("kacl_jax")
    mesh = jax.sharding.Mesh(np.array(found), ("all",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
    ones = jax.make_array_from_callback((mesh.size,), everywhere, lambda _: np.ones(1, np.float32))
    jax.block_until_ready(jax.jit(lambda x: x.sum())(ones))
