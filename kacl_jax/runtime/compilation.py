"""How programs are compiled: XLA's options, and the cache that lets a second start compile nothing."""

from __future__ import annotations

import functools
import logging
import os
import zlib
from pathlib import Path

import jax

_MIN_COMPILE_TIME = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_ZLIB = b"\x78"  # how a zlib stream begins; jax uses zstd instead where it is installed

# YNN keeps matrix products and sums; convolutions go to Eigen.
_EIGEN_CONVOLUTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
}


def compiler_options(device: jax.Device) -> dict[str, str]:
    """For `jax.jit(…, compiler_options=…)`: XLA's defaults, except for Eigen's convolutions on a CPU.

    XLA's newer library, YNN, runs a convolution of 64 channels on one core only: on two cores ResNet-18's step takes a
    quarter less time with Eigen under jax 0.10.2, and half as much under 0.12.0. Matrix products and sums still use
    YNN. If XLA refuses the option, a warning says once what is lost.
    """
    return _cpu_options() if device.platform == "cpu" else {}


@functools.cache
def _cpu_options() -> dict[str, str]:
    try:
        program = jax.jit(lambda x: x, compiler_options=_EIGEN_CONVOLUTIONS)
        program(jax.device_put(0, jax.local_devices(backend="cpu")[0]))
    except jax.errors.JaxRuntimeError as error:
        logging.warning(
            "jax %s does not know an option that makes convolutions on a CPU faster, so a step may take twice as long. "
            "Install the jax of requirements.lock (%s).",
            jax.__version__,
            error,
        )
        return {}
    return _EIGEN_CONVOLUTIONS


def use_cache(folder: Path) -> None:
    """Keep every compiled program in `folder`, unless JAX_COMPILATION_CACHE_DIR names another place.

    Call this before the first compilation. If it is called more than once in a process, only the first call counts.
    It deletes entries that a killed process left incomplete: jax would compile them at every start and never replace
    them.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    _remove_broken(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if _MIN_COMPILE_TIME not in os.environ:
        # By default jax leaves out small programs. Many of them add up to seconds.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def cache_environment(folder: Path) -> dict[str, str]:
    """The environment variables with which several processes share the compiled programs in `folder`."""
    _remove_broken(folder)
    return {"JAX_COMPILATION_CACHE_DIR": str(folder.absolute()), _MIN_COMPILE_TIME: "0"}


def _remove_broken(folder: Path) -> None:
    for entry in folder.glob("*-cache"):
        if not _is_complete(entry.read_bytes()):
            entry.unlink(missing_ok=True)


def _is_complete(entry: bytes) -> bool:
    if entry[:1] != _ZLIB:
        return bool(entry)
    try:
        zlib.decompress(entry)  # ends with a checksum
    except zlib.error:
        return False
    return True
