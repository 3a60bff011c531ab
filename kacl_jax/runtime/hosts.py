"""Several processes that train one network: how they find each other, what they tell each other, how they end.

Process 0 leads: it holds the workdir's lock and alone writes tables, metrics and checkpoints. What it reads there it
tells the others, so that no disk need be shared. Every function that says "all call it" waits until all have.
No process outlives another: who fails tells the others why and all end with its exit code; a process that is killed is
missed by jax's heartbeats, and the others end resumable. jax is imported where it is used, never at the top.
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

HEARTBEAT_S = 60  # without a sign of life from a process for so long, it is lost
MEETING_S = 300  # in which all must have started
_FAREWELL_S = 10.0  # in which all should have heard why one ends
_LOOK_S = 0.5
_ENDED = "kacl_jax/ended/"

_ENV = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Those of jax's own detections that ask nothing of a network unless they are on a TPU.
_CLUSTERS = ("ompi", "slurm", "gcetpu", "gketpu")

_process = (0, 1)  # index and number of processes


class Message(NamedTuple):
    """What a process tells: anything that is JSON, and named arrays."""

    meta: Any
    arrays: dict[str, np.ndarray]


def process_index() -> int:
    """Which of the processes this is, 0 … count − 1."""
    return _process[0]


def process_count() -> int:
    return _process[1]


def is_leader() -> bool:
    return process_index() == 0


# ---- what they tell each other --------------------------------------------------------------------------------


def gather(meta: Any = None, arrays: dict[str, np.ndarray] | None = None) -> list[Message]:
    """What each process tells, in their order; all call it and all get it."""
    told = Message(meta, arrays or {})
    if process_count() == 1:
        return [told]
    from jax.experimental import multihost_utils

    mine = _pack(told)
    with _transfers():
        sizes = multihost_utils.process_allgather(np.array([len(mine)]))[:, 0]
        padded = np.zeros(_next_power_of_two(sizes.max()), np.uint8)
        padded[: len(mine)] = mine
        found = multihost_utils.process_allgather(padded)
    return [_unpack(row[:size]) for row, size in zip(found, sizes, strict=True)]


def broadcast(read: Callable[[], Message]) -> Message:
    """What `read` gives on process 0, where alone it is called; all call this and all get it."""
    if process_count() == 1:
        return read()
    from jax.experimental import multihost_utils

    content = _pack(read()) if is_leader() else np.zeros(0, np.uint8)
    with _transfers():
        size = int(multihost_utils.broadcast_one_to_all(np.array([len(content)]))[0])
        padded = np.zeros(_next_power_of_two(size), np.uint8)
        padded[: len(content)] = content
        found = multihost_utils.broadcast_one_to_all(padded)
    return _unpack(found[:size])


def barrier() -> None:
    """Go on when all have come here."""
    gather()


def refuse_differences(values: dict[str, Any], *, free: tuple[str, ...]) -> None:
    """Raise a UserError unless all processes have these values, but for the keys in `free`; all call it."""
    first, *others = [told.meta for told in gather(values)]
    different = [key for key in first if any(other.get(key) != first[key] for other in others)]
    if set(different) - set(free):
        names = ", ".join(sorted(set(different) - set(free)))
        raise UserError(
            f"The processes were started with different values of {names}; give all the same command and data"
        )


@contextmanager
def leader_first() -> Iterator[None]:
    """Process 0 goes through the block before the others do; all call it."""
    if not is_leader():
        barrier()
    yield
    if is_leader():
        barrier()


def _pack(told: Message) -> np.ndarray:
    file = io.BytesIO()
    meta = np.frombuffer(json.dumps(told.meta).encode(), np.uint8)
    arrays: dict[str, Any] = {"": meta, **told.arrays}
    np.savez(file, **arrays)
    return np.frombuffer(file.getvalue(), np.uint8)


def _unpack(content: np.ndarray) -> Message:
    with np.load(io.BytesIO(content.tobytes())) as read:
        arrays = {name: read[name] for name in read.files}
    return Message(json.loads(arrays.pop("").tobytes()), arrays)


def _next_power_of_two(size: int) -> int:
    """The next power of two: few different sizes, few programs to compile."""
    return 1 << (int(size) - 1).bit_length()


def _transfers() -> Any:
    import jax

    return jax.transfer_guard("allow")


# ---- how they find each other ---------------------------------------------------------------------------------


@contextmanager
def connect_processes(mode: str) -> Iterator[None]:
    """Be one of several processes inside the block, if asked to or if there are several; else change nothing.

    mode: 'auto' if detected, 'on' refuses to go on alone, 'off'. Detected are JAX_COORDINATOR_ADDRESS with
    JAX_NUM_PROCESSES and JAX_PROCESS_ID in the environment, Slurm, Open MPI and TPU pods. Of several processes, one
    that leaves the block by an exception does not return: it and all others end with its exit code.

    Raises:
      UserError: half a description, none of several processes under 'on', or the others did not come.
    """
    global _process
    found = None if mode == "off" else _find_description()
    if found is None:
        if mode == "on":
            raise UserError(
                f"--distributed=on, but neither Slurm, Open MPI, a TPU pod nor {', '.join(_ENV)} describe more than "
                "one process: set the three variables in each, or use --distributed=off"
            )
        yield
        return
    import jax

    _initialise(found)
    watch = _ProcessMonitor()
    try:
        yield
        barrier()
    except BaseException as error:
        watch.end(error)
    watch.close()
    jax.distributed.shutdown()
    _process = (0, 1)


def _find_description() -> dict[str, Any] | None:
    """Arguments of jax.distributed.initialize; None where this is one process."""
    given = {name: os.environ[name] for name in _ENV if os.environ.get(name)}
    if len(given) == len(_ENV):
        numbers = [_whole_number(name, given[name]) for name in _ENV[1:]]
        if not 0 <= numbers[1] < numbers[0]:
            raise UserError(
                f"JAX_PROCESS_ID is {numbers[1]}; it must be 0 … {numbers[0] - 1}, below JAX_NUM_PROCESSES"
            )
        words = dict(
            zip(
                ("coordinator_address", "num_processes", "process_id"),
                [given[_ENV[0]], *numbers],
                strict=True,
            )
        )
        return words | {"cluster_detection_method": "deactivate"} if numbers[0] > 1 else None
    cluster = _cluster()
    if cluster is not None:
        name, processes = cluster
        return {"cluster_detection_method": name} if processes > 1 else None
    if given:
        absent = " and ".join(name for name in _ENV if name not in given)
        raise UserError(
            f"{' and '.join(given)} is set, {absent} is not: set all three to run as one of several processes, none "
            "to run alone"
        )
    return None


def _cluster() -> tuple[str, int] | None:
    """Name and number of processes of the cluster that jax finds itself in."""
    # The detection that jax.distributed.initialize() uses; it has no public name.
    from jax._src.clusters import ClusterEnv

    try:
        for kind in ClusterEnv._cluster_types:
            if kind.name in _CLUSTERS and kind.is_env_present():
                return kind.name, kind.get_process_count()
    # Anything, from a variable that is no number to a metadata server that does not answer.
    except Exception as error:
        raise UserError(
            f"Whether this is one of several processes could not be found out ({error}); say --distributed=off if it "
            f"is alone, or set {', '.join(_ENV)}"
        ) from error
    return None


def _initialise(found: dict[str, Any]) -> None:
    global _abort_exit
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM away from `signals.Interrupt`.
    jax.config.update("jax_enable_preemption_service", False)
    _handle_aborts()
    try:
        jax.distributed.initialize(
            **found, initialization_timeout=MEETING_S, heartbeat_timeout_seconds=HEARTBEAT_S
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{_MISSED} ({error})") from error
    _open_channels()
    _abort_exit = INTERRUPTED, _LOST


def _open_channels() -> None:
    """Run the two kinds of collectives once, while all are here.

    gloo gives the others 30 s to come when processes first use a group of devices together (and any time later on):
    too few where one compiles the train step and another finds it in its cache.
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

_MISSED = (
    "The processes of this run did not find each other in time (jax's reason is above); start all of them, each with "
    "its own process id, and let the coordinator's port through."
)
_LOST = (
    "Another process of this run was lost (or jax gave up for the reason above). The checkpoints are intact; the same "
    "command, started on all hosts, goes on from the last one."
)
_abort_exit = (
    USER_ERROR,
    _MISSED,
)  # this process's exit code and last words, were jax to abort it now


def _handle_aborts() -> None:
    """jax ends a process that misses another one by abort(), from C++: make it an exit code and a sentence."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(_on_abort, ctypes.c_void_p))


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(_: int) -> None:
    code, words = _abort_exit
    os.write(2, f"\n{words}\n".encode())
    os._exit(code)


class _ProcessMonitor:
    """A thread that ends this process when another one told that it ends, and tells the others when this one does."""

    def __init__(self) -> None:
        from jax._src import distributed  # the key-value store has no public name

        self._store: Any = distributed.global_state.client
        self._ending = threading.Lock()  # taken once, by the thread that ends the process
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="other processes", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def end(self, error: BaseException) -> NoReturn:
        """Tell the user and the other processes, and exit."""
        import jax

        code = exit_code(error)
        words = str(error)
        if code is None:
            if isinstance(error, jax.errors.JaxRuntimeError):
                # As a rule the echo of another process's end, which is told here or missed by jax in this time.
                time.sleep(HEARTBEAT_S + _FAREWELL_S)
            traceback.print_exception(error)
            code, words = USER_ERROR, f"{type(error).__name__}: {error}"
        self._end(code, words, f"\n{words}")

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_S):
            for name, words in self._ended_processes():
                told = json.loads(words)
                self._end(told["code"], told["words"], f"\nProcess {name} ended: {told['words']}")

    def _end(self, code: int, words: str, line: str) -> NoReturn:
        global _abort_exit
        self._ending.acquire()
        _abort_exit = code, ""
        print(line, file=sys.stderr, flush=True)
        sys.stdout.flush()
        import jax

        try:
            self._store.key_value_set(
                f"{_ENDED}{process_index()}", json.dumps({"code": code, "words": words})
            )
        except jax.errors.JaxRuntimeError:
            os._exit(code)  # nobody is left to be told
        if is_leader():  # the store is here: stay until all have looked
            until = time.monotonic() + _FAREWELL_S
            while len(self._ended_processes()) < process_count() and time.monotonic() < until:
                time.sleep(_LOOK_S / 5)
            time.sleep(2 * _LOOK_S)
        os._exit(code)

    def _ended_processes(self) -> list[tuple[str, str]]:
        """(index, what it told) of the processes that end."""
        import jax

        try:
            found = self._store.key_value_dir_get(_ENDED)
        except jax.errors.JaxRuntimeError:
            return []  # process 0 is gone: jax notices by itself
        return [(key.rpartition("/")[2], words) for key, words in found]
