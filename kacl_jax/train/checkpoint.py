"""Checkpoints: everything a run needs to go on, verified byte by byte when it does. The only file that knows orbax.

A checkpoint is a flat dict of named arrays plus a JSON-able dict. A digest over both is stored with them, because orbax
restores flipped bytes silently. Of several processes only the first reads and writes;
`restore_on_all` hands what it read to the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from kacl_jax.runtime import processes, workdir
from kacl_jax.runtime.errors import NonFiniteError, UserError

Arrays = dict[str, np.ndarray]

_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_HALF_WRITTEN = ".orbax-checkpoint-tmp"


class DamagedError(UserError):
    """A checkpoint whose content is not what was written."""


class Restored(NamedTuple):
    step: int
    arrays: Arrays
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one workdir: the last two and the best.

    Args:
      directory: absolute; made if absent. Half-written checkpoints of a killed run in it are removed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.damaged: list[str] = []
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.iterdir() if processes.is_leader() else ():
            if _HALF_WRITTEN in path.name and path.is_dir():
                _remove(path)
        self._orbax = _open_orbax()

    def steps(self) -> list[int]:
        """The steps on disk, ascending."""
        return workdir.checkpoint_steps(self.directory)

    def save(self, step: int, arrays: Arrays, meta: dict[str, Any], *, best: int | None) -> None:
        """Write a checkpoint, then drop all but the last two and the best.

        Args:
          step: how many steps were taken; an older, damaged checkpoint of that step is replaced.
          arrays: plain numpy.
          meta: JSON-able.
          best: the step to keep besides, None if there is none yet.

        Raises:
          NonFiniteError: an array holds a number that is not finite; nothing was written.
          UserError: the checkpoint could not be written; older ones are intact.
        """
        path = self._path(step)
        if name := _non_finite(arrays):
            raise NonFiniteError(
                f"After step {step} {name} is not finite. {self.describe_newest()} Try a lower "
                "config.train.learning_rate."
            )
        # orbax refuses arrays without elements: their names, dtypes and shapes travel in the JSON part.
        empty = {k: [a.dtype.str, list(a.shape)] for k, a in arrays.items() if a.size == 0}
        content = {k: a for k, a in arrays.items() if a.size > 0}
        head = {"digest": _digest(arrays, meta, step), "step": step, "empty": empty, "meta": meta}
        try:
            if path.exists():
                _remove(path)
            with _without_tracebacks():
                self._orbax.save(
                    path,
                    args=ocp.args.Composite(
                        arrays=ocp.args.StandardSave(content), head=ocp.args.JsonSave(head)
                    ),
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"The checkpoint {path} cannot be written ({_first_line(error)}). {self.describe_newest()} Free some "
                "disk space and run the same command again."
            ) from error
        # Checkpoints of later steps are damaged: a run resumes from the newest intact one. They go, too.
        keep = {*[taken for taken in self.steps() if taken <= step][-2:], best}
        for old in self.steps():
            if old not in keep:
                _remove(self._path(old))

    def restore(self, step: int) -> Restored:
        """See `read_checkpoint`."""
        return _read(self._orbax, self._path(step))

    def restore_latest(self) -> Restored | None:
        """The newest intact checkpoint; damaged ones are named in the log. None if there is none at all.

        Raises:
          UserError: there are checkpoints and all are damaged, or one cannot be read now.
        """
        for step in reversed(self.steps()):
            try:
                return self.restore(step)
            except DamagedError as error:
                logging.warning("%s. Using the previous one.", error)
                self.damaged.append(str(self._path(step)))
        if self.damaged:
            raise UserError(
                f"All checkpoints in {self.directory} are damaged ({', '.join(self.damaged)}). "
                "Restore them from a copy, or delete the folder to start again."
            )
        return None

    def describe_newest(self) -> str:
        """A sentence for a message about something that went wrong."""
        steps = self.steps()
        return (
            f"The checkpoint of step {steps[-1]} is there."
            if steps
            else "There is no checkpoint yet."
        )

    def _path(self, step: int) -> Path:
        return _path(self.directory, step)


def read_checkpoint(directory: Path, step: int) -> Restored:
    """Read one checkpoint and verify its digest. Writes nothing, so that a run may train meanwhile.

    Raises:
      DamagedError: the message names it.
      UserError: it cannot be read now, which says nothing about it.
    """
    return _read(_open_orbax(), _path(directory, step))


def restore_on_all(read: Callable[[], Restored | None]) -> Restored | None:
    """What `read` restores on the first process, where alone it is called, for all of them."""

    def to_message() -> processes.Message:
        restored = read()
        if restored is None:
            return processes.Message(None, {})
        return processes.Message({"step": restored.step, "meta": restored.meta}, restored.arrays)

    content = processes.broadcast(to_message)
    if content.meta is None:
        return None
    return Restored(content.meta["step"], content.arrays, content.meta["meta"])


def to_arrays(tree: Any, prefix: str) -> Arrays:
    """Name every leaf of a pytree by its path: {'prefix/params/…': numpy array}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_name(prefix, path): np.asarray(leaf) for path, leaf in leaves}


def digest(arrays: Arrays) -> str:
    """Of the names, shapes and values of arrays, in hex."""
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].shape}".encode())
        total.update(np.ascontiguousarray(arrays[name]).tobytes())
    return total.hexdigest()


def from_arrays(template: Any, arrays: Arrays, prefix: str) -> Any:
    """Fill a pytree of the template's structure (arrays or ShapeDtypeStructs) from `to_arrays`' names.

    Raises:
      UserError: a name is missing or has another shape or dtype.
    """

    def take(path: Any, leaf: Any) -> np.ndarray:
        name = _name(prefix, path)
        value = arrays.get(name)
        if value is None or value.shape != leaf.shape or value.dtype != leaf.dtype:
            problem = "is missing" if value is None else f"is {value.dtype}{list(value.shape)}"
            raise UserError(
                f"The checkpoint does not fit this model: {name} {problem}, expected {leaf.dtype}{list(leaf.shape)}. "
                "If config.json is unchanged, another version of kacl_jax wrote it: use that version (run.json names "
                "its commit), or choose another folder with --workdir=…"
            )
        return value

    return jax.tree_util.tree_map_with_path(take, template)


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """What goes wrong in a thread of orbax reaches the caller as an exception; orbax logs its traceback as well."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _open_orbax() -> ocp.Checkpointer:
    # Else orbax would wait for the other processes, which do not call it.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
    )
    return ocp.Checkpointer(
        ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
        ),
        multiprocessing_options=alone,
    )


def _remove(path: Path) -> None:
    """A checkpoint, or the link to one."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)


def _path(directory: Path, step: int) -> Path:
    return directory / f"{step:08d}"


def _read(orbax: ocp.Checkpointer, path: Path) -> Restored:
    """See `read_checkpoint`."""
    try:
        with _without_tracebacks():
            read = orbax.restore(
                path,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardRestore(), head=ocp.args.JsonRestore()
                ),
            )
        arrays = {name: np.asarray(value) for name, value in read["arrays"].items()}
        head = read["head"]
        for name, (dtype, shape) in head["empty"].items():
            arrays[name] = np.zeros(shape, dtype)
        meta, step = head["meta"], head.get("step")  # an older checkpoint does not say its step
        intact = head["digest"] == _digest(arrays, meta, step)
    # What a damaged file makes orbax raise depends on where the damage is; missing parts are damage too.
    except Exception as error:
        if isinstance(error, (MemoryError, OSError)) and not isinstance(error, _MISSING):
            raise UserError(
                f"The checkpoint {path} cannot be read now ({error!r}). Nothing was changed. Run the same command "
                "again when the file can be read."
            ) from error
        raise DamagedError(f"The checkpoint {path} is damaged: {_first_line(error)}") from error
    if not intact:
        raise DamagedError(
            f"The checkpoint {path} is damaged: its content does not match its digest"
        )
    if step not in (None, int(path.name)):
        raise DamagedError(f"The checkpoint {path} is a copy of that of step {step}")
    if name := _non_finite(arrays):
        raise DamagedError(f"The checkpoint {path} holds numbers that are not finite ({name})")
    return Restored(int(path.name), arrays, meta)


def _name(prefix: str, path: Any) -> str:
    return "/".join([prefix, *(jax.tree_util.keystr((key,), simple=True) for key in path)])


def _non_finite(arrays: Arrays) -> str:
    """The name of the first array with a number that is not finite, or ''."""
    return next(
        (k for k, a in arrays.items() if a.dtype.kind == "f" and not np.isfinite(a).all()), ""
    )


def _digest(arrays: Arrays, meta: dict[str, Any], step: int | None) -> str:
    digest = hashlib.blake2b(json.dumps(meta, sort_keys=True).encode(), digest_size=16)
    if step is not None:
        digest.update(f"step {step}".encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
