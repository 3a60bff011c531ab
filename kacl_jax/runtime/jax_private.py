"""What jax gives no public name. No other file of this package uses `jax._src`.

Tried with the jax versions in `TRIED`: two connected processes, messages between them, the end of one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kacl_jax.runtime.errors import UserError

TRIED = ("0.10.2", "0.11.2", "0.12.0.1")


class PrivateJax(NamedTuple):
    """The private parts of jax that several processes need."""

    # The classes with which jax.distributed.initialize() detects a cluster; each has `name`, `is_env_present()` and
    # `get_process_count()`.
    cluster_kinds: list[Any]
    # Its `client` is the key-value store of the connected processes, None without a connection. It also has
    # `process_id` and `num_processes`.
    distributed_state: Any


def private_jax() -> PrivateJax:
    """The private parts of the installed jax.

    Raises:
      UserError: this jax has them no more, or under other names.
    """
    import jax

    try:
        from jax._src.clusters import ClusterEnv
        from jax._src.distributed import global_state

        return PrivateJax(ClusterEnv._cluster_types, global_state)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"jax {jax.__version__} does not have what several processes need ({error}); install one of jax "
            f"{', '.join(TRIED)}, which were tested, or run a single process with --distributed=off"
        ) from error
