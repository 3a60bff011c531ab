"""Applies a trained network to images: the command `python -m kacl_jax.predict`, and `kacl_jax.load` in Python."""
