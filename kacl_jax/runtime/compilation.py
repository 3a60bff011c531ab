"""How programs are compiled: what XLA is asked for, and the cache by which a second start compiles nothing anew."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import jax

_LEAST_TIME = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_ZLIB = b"\x78"  # how a zlib stream begins; jax uses zstd instead where it is installed


# The version that this was measured with; others refuse options that they do not know.
_MEASURED = (0, 10)


def options(device: jax.Device) -> dict[str, str]:
    """For `jax.jit(…, compiler_options=…)`: XLA's defaults, but on a CPU Eigen's convolutions.

    Those of XLA's newer library, YNN, keep to one core where they have 64 channels: ResNet-18's step takes a quarter
    less on two. Products and sums stay with it.
    """
    if device.platform != "cpu" or jax.__version_info__[:2] != _MEASURED:
        return {}
    kinds = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    return {"xla_cpu_experimental_ynn_fusion_type": kinds}


def keep_in(folder: Path) -> None:
    """Keep every compiled program in `folder`, unless JAX_COMPILATION_CACHE_DIR names another place.

    Call it before the first compilation; of several calls in one process the first counts. Entries that a kill left
    half written are deleted: jax would compile them anew at every start, and never write them again.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    _remove_broken(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if _LEAST_TIME not in os.environ:
        # Many small programs add up to seconds.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def kept_in(folder: Path) -> dict[str, str]:
    """The environment in which processes share the programs in `folder`, as `keep_in` keeps those of one."""
    _remove_broken(folder)
    return {"JAX_COMPILATION_CACHE_DIR": str(folder.absolute()), _LEAST_TIME: "0"}


def _remove_broken(folder: Path) -> None:
    for entry in folder.glob("*-cache"):
        if not _whole(entry.read_bytes()):
            entry.unlink(missing_ok=True)


def _whole(entry: bytes) -> bool:
    if entry[:1] != _ZLIB:
        return bool(entry)
    try:
        zlib.decompress(entry)  # ends with a checksum
    except zlib.error:
        return False
    return True
