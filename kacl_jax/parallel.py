"""One step function on all devices: the mesh, placing state and batch, and running under either mode.

A per-device function sees its own rows of the batch and a whole copy of the state, and talks to the other devices
through the mapped axis `AXIS`. `shard_map` (default) and `pmap` run that same function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXIS = "data"
Layout = Literal["replicated", "sharded"]


class DataParallel:
    """Places arrays on the devices and runs per-device functions on all of them.

    Under `shard_map` a placed array has its plain shape; under `pmap` it has a leading device axis. `fetch` undoes
    either, so callers see plain numpy arrays in both modes.
    """

    def __init__(
        self, mode: Literal["shard_map", "pmap"], devices: Sequence[jax.Device] | None = None
    ) -> None:
        self.devices = list(jax.devices() if devices is None else devices)
        self.mode = mode
        self.mesh = jax.make_mesh(
            (len(self.devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=self.devices
        )
        self._sharded = NamedSharding(self.mesh, PartitionSpec(AXIS))
        self._replicated = NamedSharding(self.mesh, PartitionSpec())

    @property
    def n_devices(self) -> int:
        return len(self.devices)

    def replicate(self, tree: Any) -> Any:
        """A whole copy of every leaf on each device."""
        if self.mode == "shard_map":
            return jax.device_put(tree, self._replicated)

        def stack(leaf: Any) -> jax.Array:
            leaf = np.asarray(leaf)
            copies = np.broadcast_to(leaf, (self.n_devices, *leaf.shape))
            return jax.device_put(copies, self._sharded)

        return jax.tree.map(stack, tree)

    def shard(self, batch: Any) -> Any:
        """Split every leaf [b …] by rows over the devices; b must divide by their number."""
        if self.mode == "shard_map":
            return jax.device_put(batch, self._sharded)
        n = self.n_devices
        rows = jax.tree.map(lambda x: x.reshape(n, x.shape[0] // n, *x.shape[1:]), batch)
        return jax.device_put(rows, self._sharded)

    def run(
        self,
        function: Callable[[Any, Any], Any],
        outputs: tuple[Layout, ...],
        *,
        donate_state: bool = False,
    ) -> Callable[[Any, Any], Any]:
        """Compile `function(replicated state, sharded batch)` for all devices.

        Args:
          function: per-device; returns a tuple with one entry for each of `outputs`.
          outputs: how each entry leaves: the same on every device, or rows of the batch.
          donate_state: reuse the state's memory for the new state.
        """
        donate = (0,) if donate_state else ()
        if self.mode == "pmap":
            return jax.pmap(function, AXIS, devices=self.devices, donate_argnums=donate)
        specs = {"replicated": PartitionSpec(), "sharded": PartitionSpec(AXIS)}
        mapped = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
            out_specs=tuple(specs[layout] for layout in outputs),
        )
        return jax.jit(mapped, donate_argnums=donate)

    def fetch(self, tree: Any, layout: Layout) -> Any:
        """Bring placed arrays back as numpy arrays of their plain shape; waits for them."""
        if self.mode == "shard_map":
            return jax.device_get(tree)
        if layout == "replicated":
            return jax.tree.map(lambda x: np.asarray(jax.device_get(x)[0]), tree)
        return jax.tree.map(lambda x: jax.device_get(x).reshape(-1, *x.shape[2:]), tree)


def averaged(grads: Any) -> Any:
    """The gradients of a global loss in replicated parameters, equal on all devices; called inside `run`'s functions.

    shard_map follows which values differ between devices and has summed these gradients already: another pmean would
    change nothing and send them twice. pmap does not, and leaves every device with its own part of the mean.
    """
    return grads if _follows() else jax.lax.pmean(grads, AXIS)


def _follows() -> bool:
    """Whether this trace knows which values differ between devices; JAX versions tell it in two places."""
    kind: Any = jax.typeof(jax.lax.axis_index(AXIS))
    told = getattr(kind, "manual_axis_type", None)
    return AXIS in (told.varying if told is not None else getattr(kind, "vma", ()))
