"""Connected components of a graph.

Each label is lowered by hooking (to the smaller label of an edge) and pointer jumping until both ends of every edge
have the same label.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from kacl_jax.radiomics.counts.bitmap import take

_JUMPS_PER_STEP = 3


def smallest_nodes(
    a: Int32[Array, "edges"], b: Int32[Array, "edges"], n: int
) -> Int32[Array, "{n}"]:
    """The smallest node of each node's component, for the edges a–b.

    A label only decreases and always names a node of the same component. When both ends of every edge have the same
    label, each component has a single label: that of its smallest node, which never changed.
    """

    def hook_and_jump(
        state: tuple[Int32[Array, "n"], Int32[Array, "edges"], Int32[Array, "edges"]],
    ) -> tuple[Int32[Array, "n"], Int32[Array, "edges"], Int32[Array, "edges"]]:
        label, label_a, label_b = state
        high, low = jnp.maximum(label_a, label_b), jnp.minimum(label_a, label_b)
        label = label.at[high].min(low, mode="promise_in_bounds")
        for _ in range(_JUMPS_PER_STEP):
            label = take(label, label)
        return label, take(label, a), take(label, b)

    # "+ 0 * a": under shard_map the loop state must vary over the devices from the start.
    start = (jnp.arange(n, dtype=jnp.int32) + 0 * a[0], a, b)
    return jax.lax.while_loop(lambda state: (state[1] != state[2]).any(), hook_and_jump, start)[0]
