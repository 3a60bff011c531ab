"""The config: every key with its default, and the check that runs before anything else does."""

from kacl_jax.config.keys import FREE_KEYS, check, default, flatten

__all__ = ["FREE_KEYS", "check", "default", "flatten"]
