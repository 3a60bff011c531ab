"""Data parallelism: the mesh, placing state and batch on the devices, compiling one step function for all of them.

A per-device function gets its own rows of the batch and a full copy of the state. It exchanges values with the other
devices through the mapped axis `AXIS`. `shard_map` (the default) and `pmap` run the same function.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kacl_jax.runtime import compilation
from kacl_jax.runtime.errors import UserError

AXIS = "data"
Layout = Literal["replicated", "sharded"]


def all_devices() -> list[jax.Device]:
    """Return the devices of all processes. Raises UserError if jax finds none."""
    try:
        return jax.devices()
    # jax raises AssertionError for JAX_PLATFORMS=cuda where it sees no GPU.
    except (RuntimeError, AssertionError) as error:
        wanted = os.environ.get("JAX_PLATFORMS", "")
        why = str(error).splitlines()[0] if str(error) else "it sees none on this machine"
        raise UserError(
            f"jax finds no device{f' with JAX_PLATFORMS={wanted}' if wanted else ''} ({why}). Check the driver and "
            "install jax[cuda13] or jax[tpu] in this environment, or train on the CPU with JAX_PLATFORMS=cpu (for the "
            "scripts in launch/: --allow_cpu)"
        ) from error


class DataParallel:
    """Places arrays on the devices and runs per-device functions on all of them.

    Under `shard_map` a placed array has its plain shape; under `pmap` it has a leading axis over the devices of this
    process. `fetch` undoes either, so callers see plain numpy arrays in both modes.

    With several processes each process calls every method, passes its own rows of a batch and fetches its own rows.
    """

    def __init__(
        self, mode: Literal["shard_map", "pmap"], devices: Sequence[jax.Device] | None = None
    ) -> None:
        self.devices = list(all_devices() if devices is None else devices)
        self.mode = mode
        this_process = jax.process_index()
        self._own = [device for device in self.devices if device.process_index == this_process]
        self._spans = len(self._own) < len(self.devices)
        self.mesh = self._own_mesh = jax.make_mesh(
            (len(self._own),), (AXIS,), axis_types=(AxisType.Auto,), devices=self._own
        )
        if self._spans:
            # self.devices keeps the devices of one process, and so its rows, side by side.
            self.mesh = Mesh(np.array(self.devices), (AXIS,), axis_types=(AxisType.Auto,))

    @property
    def n_devices(self) -> int:
        return len(self.devices)

    def on_this_process(self) -> DataParallel:
        """A DataParallel on the devices of this process alone."""
        return DataParallel(self.mode, self._own) if self._spans else self

    def replicate(self, tree: Any) -> Any:
        """Put a full copy of every leaf on each device. The leaves must be equal in all processes."""
        if self.mode == "shard_map":
            return self._place(tree, PartitionSpec())

        def stack(leaf: Any) -> np.ndarray:
            leaf = np.asarray(leaf)
            return np.broadcast_to(leaf, (len(self._own), *leaf.shape))

        return self._place(jax.tree.map(stack, tree), PartitionSpec(AXIS))

    def shard(self, batch: Any) -> Any:
        """Split every leaf [b …] by rows over this process's devices; b must divide by their number."""
        n = len(self._own)
        if self.mode == "pmap":
            batch = jax.tree.map(lambda x: x.reshape(n, x.shape[0] // n, *x.shape[1:]), batch)
        return self._place(batch, PartitionSpec(AXIS))

    def compile(
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
        return jax.jit(
            mapped,
            donate_argnums=donate,
            compiler_options=compilation.compiler_options(self.devices[0]),
        )

    def fetch(self, tree: Any, layout: Layout) -> Any:
        """Wait for placed arrays and return them as numpy arrays of their plain shape."""
        if self.mode == "shard_map":
            return jax.device_get(self.local_view(tree, layout))
        if layout == "replicated":
            return jax.tree.map(lambda x: np.asarray(jax.device_get(x)[0]), tree)
        return jax.tree.map(lambda x: jax.device_get(x).reshape(-1, *x.shape[2:]), tree)

    def local_view(self, tree: Any, layout: Layout) -> Any:
        """View arrays on the devices of all processes as if `on_this_process()` had placed them. Copies nothing."""
        spec = PartitionSpec() if layout == "replicated" else PartitionSpec(AXIS)

        def of_this_process(x: jax.Array) -> jax.Array:
            if x.is_fully_addressable:
                return x
            return _reassemble(x, self._own_mesh, spec, len(self._own), len(x.sharding.device_set))

        return jax.tree.map(of_this_process, tree)

    def _place(self, tree: Any, spec: PartitionSpec) -> Any:
        placed = jax.device_put(tree, NamedSharding(self._own_mesh, spec))
        if self.mode == "pmap" or not self._spans:
            return placed
        return jax.tree.map(
            lambda x: _reassemble(x, self.mesh, spec, self.n_devices, len(self._own)), placed
        )


def _reassemble(
    x: jax.Array, mesh: Mesh, spec: PartitionSpec, devices: int, before: int
) -> jax.Array:
    """This process's pieces of x as an array over `mesh`. `before`: on how many devices x lay so far."""
    shape = (x.shape[0] * devices // before, *x.shape[1:]) if tuple(spec) else x.shape
    pieces = [piece.data for piece in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(shape, NamedSharding(mesh, spec), pieces)


def with_flag_count(step: Callable[[Any, Any], Any], name: str) -> Callable[[Any, Any], Any]:
    """A per-device train step that also carries a flag from each process to all of them.

    Its batch has one more column, `name` bool [b]. Its metrics have one more value, the number of devices on which a
    row of that column was true.
    """

    def step_with_flag_count(state: Any, batch: Any) -> Any:
        rows = {key: column for key, column in batch.items() if key != name}
        state, metrics, rows = step(state, rows)
        return state, {**metrics, name: jax.lax.psum(batch[name].any() * 1, AXIS)}, rows

    return step_with_flag_count


def global_gradients(grads: Any) -> Any:
    """The gradients of a global loss in replicated parameters, equal on all devices. For per-device functions.

    Under shard_map they are summed already and returned as they are: shard_map tracks which values differ between
    devices, and another pmean would only send them twice. Under pmap each device has its part; pmean joins them.
    """
    return grads if _tracks_varying_values() else jax.lax.pmean(grads, AXIS)


def _tracks_varying_values() -> bool:
    """Whether this trace knows which values differ between devices. JAX versions store that in two places."""
    kind: Any = jax.typeof(jax.lax.axis_index(AXIS))
    axes = getattr(kind, "manual_axis_type", None)
    return AXIS in (axes.varying if axes is not None else getattr(kind, "vma", ()))
