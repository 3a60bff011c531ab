"""Several processes that train one network: which one this is, and what they tell each other.

Process 0 is the leader: it holds the workdir's lock, and it alone writes tables, metrics and checkpoints. It sends what
it reads there to the others, so that they need no shared disk. A function whose docstring says "all call it" returns
only after all processes have called it. `connection.py` connects the processes.
This file imports jax only inside functions.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from kacl_jax.runtime.errors import UserError


class Message(NamedTuple):
    """What one process sends: `meta`, anything that JSON can hold, and named arrays."""

    meta: Any
    arrays: dict[str, np.ndarray]


def process_index() -> int:
    """The number of this process, 0 … process_count() − 1."""
    import jax

    # Without a connection jax.process_index() would only claim the devices, and return 0.
    return jax.process_index() if jax.distributed.is_initialized() else 0


def process_count() -> int:
    """The number of connected processes; 1 without a connection."""
    import jax

    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_leader() -> bool:
    """Whether this is process 0."""
    return process_index() == 0


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
            f"The processes were started with different values of {names}; give all of them the same command and data"
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
