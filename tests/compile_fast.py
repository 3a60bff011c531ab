"""How the tests compile: most of a test's time goes into it."""

from __future__ import annotations


def xla_flags(n_devices: int = 1) -> str:
    """XLA_FLAGS for so many host devices.

    The same programs, with LLVM's first level of optimisation instead of its third: two thirds of the time.
    """
    return f"--xla_force_host_platform_device_count={n_devices} --xla_backend_optimization_level=1"
