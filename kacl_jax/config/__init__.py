"""The config: the table of all keys, and the check that runs before anything else does."""

from kacl_jax.config.keys import FREE_KEYS, default, flatten
from kacl_jax.config.rules import check

__all__ = ["FREE_KEYS", "check", "default", "flatten"]
