"""Several processes that train one network: how they connect, exchange messages and end.

Process 0 is the leader: it holds the workdir's lock, and it alone writes tables, metrics and checkpoints. It sends what
it reads there to the others, so that they need no shared disk. A function whose docstring says "all call it" returns
only after all processes have called it.
No process outlives another. A process that fails tells the others why, and all end with its exit code. If a process is
killed, jax's heartbeats stop, and the others end in a state that can be resumed.
This file imports jax only inside functions.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import numpy as np

from kacl_jax.runtime.errors import INTERRUPTED, USER_ERROR, UserError, exit_code

HEARTBEAT_S = 60  # a process that gives no sign of life for so long counts as lost
MEETING_S = 300  # all processes must start within this time
_FAREWELL_S = 10.0  # how long process 0 stays so that all can read why one ended
_POLL_S = 0.5
_ENDED = "kacl_jax/ended/"

_ENV = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# The cluster kinds of jax whose detection uses the network only on a TPU.
_CLUSTERS = ("ompi", "slurm", "gcetpu", "gketpu")

_process = (0, 1)  # index and number of processes


class Message(NamedTuple):
    """What one process sends: `meta`, anything that JSON can hold, and named arrays."""

    meta: Any
    arrays: dict[str, np.ndarray]


def process_index() -> int:
    """The number of this process, 0 … process_count() − 1."""
    return _process[0]


def process_count() -> int:
    return _process[1]


def is_leader() -> bool:
    return process_index() == 0


# ---- messages --------------------------------------------------------------------------------------------------


def gather(meta: Any = None, arrays: dict[str, np.ndarray] | None = None) -> list[Message]:
    """The messages of all processes, ordered by process. All call it, and all get them."""
    message = Message(meta, arrays or {})
    if process_count() == 1:
        return [message]
    from jax.experimental import multihost_utils

    mine = _pack(message)
    with _transfers():
        sizes = multihost_utils.process_allgather(np.array([len(mine)]))[:, 0]
        padded = np.zeros(_next_power_of_two(sizes.max()), np.uint8)
        padded[: len(mine)] = mine
        gathered = multihost_utils.process_allgather(padded)
    return [_unpack(row[:size]) for row, size in zip(gathered, sizes, strict=True)]


def broadcast(read: Callable[[], Message]) -> Message:
    """The message that `read` returns. Only process 0 calls `read`. All call this, and all get the message."""
    if process_count() == 1:
        return read()
    from jax.experimental import multihost_utils

    content = _pack(read()) if is_leader() else np.zeros(0, np.uint8)
    with _transfers():
        size = int(multihost_utils.broadcast_one_to_all(np.array([len(content)]))[0])
        padded = np.zeros(_next_power_of_two(size), np.uint8)
        padded[: len(content)] = content
        received = multihost_utils.broadcast_one_to_all(padded)
    return _unpack(received[:size])


def barrier() -> None:
    """Return when all processes have called this."""
    gather()


def refuse_differences(values: dict[str, Any], *, free: tuple[str, ...]) -> None:
    """Raise a UserError unless all processes have equal values, except for the keys in `free`. All call it."""
    first, *others = [message.meta for message in gather(values)]
    different = [key for key in first if any(other.get(key) != first[key] for other in others)]
    if set(different) - set(free):
        names = ", ".join(sorted(set(different) - set(free)))
        raise UserError(
            f"The processes were started with different values of {names}; give all the same command and data"
        )


@contextmanager
def leader_first() -> Iterator[None]:
    """Run the block on process 0 first, then on the others. All call it."""
    if not is_leader():
        barrier()
    yield
    if is_leader():
        barrier()


def _pack(message: Message) -> np.ndarray:
    file = io.BytesIO()
    meta = np.frombuffer(json.dumps(message.meta).encode(), np.uint8)
    arrays: dict[str, Any] = {"": meta, **message.arrays}
    np.savez(file, **arrays)
    return np.frombuffer(file.getvalue(), np.uint8)


def _unpack(content: np.ndarray) -> Message:
    with np.load(io.BytesIO(content.tobytes())) as read:
        arrays = {name: read[name] for name in read.files}
    return Message(json.loads(arrays.pop("").tobytes()), arrays)


def _next_power_of_two(size: int) -> int:
    """Padding to a power of two keeps the number of different sizes, and so of compiled programs, small."""
    return 1 << (int(size) - 1).bit_length()


def _transfers() -> Any:
    import jax

    return jax.transfer_guard("allow")


# ---- how they connect -----------------------------------------------------------------------------------------


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
      UserError: the description is incomplete, there is none under 'on', or the other processes did not start.
    """
    global _process
    arguments = None if mode == "off" else _jax_arguments()
    if arguments is None:
        if mode == "on":
            raise UserError(
                f"--distributed=on, but neither Slurm, Open MPI, a TPU pod nor {', '.join(_ENV)} describe more than "
                "one process: set the three variables in each, or use --distributed=off"
            )
        yield
        return
    import jax

    _initialise(arguments)
    monitor = _ProcessMonitor()
    try:
        yield
        barrier()
    except BaseException as error:
        monitor.end(error)
    monitor.close()
    jax.distributed.shutdown()
    _process = (0, 1)


def _jax_arguments() -> dict[str, Any] | None:
    """The arguments of jax.distributed.initialize; None for a single process."""
    variables = {name: os.environ[name] for name in _ENV if os.environ.get(name)}
    if len(variables) == len(_ENV):
        numbers = [_whole_number(name, variables[name]) for name in _ENV[1:]]
        if not 0 <= numbers[1] < numbers[0]:
            raise UserError(
                f"JAX_PROCESS_ID is {numbers[1]}; it must be 0 … {numbers[0] - 1}, below JAX_NUM_PROCESSES"
            )
        arguments = dict(
            zip(
                ("coordinator_address", "num_processes", "process_id"),
                [variables[_ENV[0]], *numbers],
                strict=True,
            )
        )
        return arguments | {"cluster_detection_method": "deactivate"} if numbers[0] > 1 else None
    cluster = _cluster()
    if cluster is not None:
        name, processes = cluster
        return {"cluster_detection_method": name} if processes > 1 else None
    if variables:
        absent = " and ".join(name for name in _ENV if name not in variables)
        raise UserError(
            f"{' and '.join(variables)} is set, {absent} is not: set all three to run as one of several processes, "
            "none to run alone"
        )
    return None


def _cluster() -> tuple[str, int] | None:
    """The name of the cluster that jax runs in, and its number of processes."""
    # jax.distributed.initialize() uses this detection; it has no public name.
    from jax._src.clusters import ClusterEnv

    try:
        for kind in ClusterEnv._cluster_types:
            if kind.name in _CLUSTERS and kind.is_env_present():
                return kind.name, kind.get_process_count()
    # Detection can raise anything: a variable is not a number, a metadata server does not answer.
    except Exception as error:
        raise UserError(
            f"Whether this is one of several processes could not be found out ({error}); say --distributed=off if it "
            f"is alone, or set {', '.join(_ENV)}"
        ) from error
    return None


def _initialise(arguments: dict[str, Any]) -> None:
    global _exit_on_abort
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # jax's preemption service would take SIGTERM away from `signals.Interrupt`.
    jax.config.update("jax_enable_preemption_service", False)
    _handle_aborts()
    try:
        jax.distributed.initialize(
            **arguments, initialization_timeout=MEETING_S, heartbeat_timeout_seconds=HEARTBEAT_S
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{_NOT_CONNECTED} ({error})") from error
    _open_channels()
    _exit_on_abort = INTERRUPTED, _PROCESS_LOST


def _open_channels() -> None:
    """Run both kinds of collectives once while all processes are at the same place.

    When processes first use a group of devices together, gloo waits 30 s for the others; later it waits as long as
    needed. 30 s are too few if one process compiles the train step while another finds it in its cache.
    """
    global _process
    import jax
    from jax._src import distributed
    from jax.experimental import multihost_utils

    _process = jax.process_index(), jax.process_count()
    store: Any = distributed.global_state.client
    store.wait_at_barrier("kacl_jax/met", MEETING_S * 1000)
    multihost_utils.sync_global_devices("kacl_jax")
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
    ones = jax.make_array_from_callback((mesh.size,), everywhere, lambda _: np.ones(1, np.float32))
    jax.block_until_ready(jax.jit(lambda x: x.sum())(ones))


def _whole_number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{name} is {text!r}; it must be a whole number") from error


# ---- how they end ---------------------------------------------------------------------------------------------

_NOT_CONNECTED = (
    "The processes of this run did not find each other in time (jax's reason is above); start all of them, each with "
    "its own process id, and let the coordinator's port through."
)
_PROCESS_LOST = (
    "Another process of this run was lost (or jax gave up for the reason above). The checkpoints are intact; the same "
    "command, started on all hosts, goes on from the last one."
)
# The exit code and the last message of this process if jax aborts it now.
_exit_on_abort = USER_ERROR, _NOT_CONNECTED


def _handle_aborts() -> None:
    """When jax misses another process it calls abort() from C++. Turn that into an exit code and a sentence."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(_on_abort, ctypes.c_void_p))


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(_: int) -> None:
    code, message = _exit_on_abort
    os.write(2, f"\n{message}\n".encode())
    os._exit(code)


class _ProcessMonitor:
    """A thread that ends this process when another process ends, and announces the end of this one."""

    def __init__(self) -> None:
        from jax._src import distributed  # the key-value store has no public name

        self._store: Any = distributed.global_state.client
        self._ending = threading.Lock()  # the thread that ends the process takes it and keeps it
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="other processes", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def end(self, error: BaseException) -> NoReturn:
        """Tell the user and the other processes about the error, then exit."""
        import jax

        code = exit_code(error)
        words = str(error)
        if code is None:
            if isinstance(error, jax.errors.JaxRuntimeError):
                # Usually a consequence of another process's end. Within this time the monitor thread reads its
                # announcement, or jax notices that it is missing.
                time.sleep(HEARTBEAT_S + _FAREWELL_S)
            traceback.print_exception(error)
            code, words = USER_ERROR, f"{type(error).__name__}: {error}"
        self._end(code, words, f"\n{words}")

    def _watch(self) -> None:
        while not self._closed.wait(_POLL_S):
            for name, words in self._ended_processes():
                end = json.loads(words)
                self._end(end["code"], end["words"], f"\nProcess {name} ended: {end['words']}")

    def _end(self, code: int, words: str, line: str) -> NoReturn:
        global _exit_on_abort
        self._ending.acquire()
        _exit_on_abort = code, ""
        print(line, file=sys.stderr, flush=True)
        sys.stdout.flush()
        import jax

        try:
            self._store.key_value_set(
                f"{_ENDED}{process_index()}", json.dumps({"code": code, "words": words})
            )
        except jax.errors.JaxRuntimeError:
            os._exit(code)  # process 0 is gone, and with it the key-value store
        if is_leader():  # this process holds the store: stay until all have read it
            until = time.monotonic() + _FAREWELL_S
            while len(self._ended_processes()) < process_count() and time.monotonic() < until:
                time.sleep(_POLL_S / 5)
            time.sleep(2 * _POLL_S)
        os._exit(code)

    def _ended_processes(self) -> list[tuple[str, str]]:
        """(index, announcement) of the processes that are ending."""
        import jax

        try:
            entries = self._store.key_value_dir_get(_ENDED)
        except jax.errors.JaxRuntimeError:
            return []  # process 0 is gone; jax notices that itself
        return [(key.rpartition("/")[2], words) for key, words in entries]
