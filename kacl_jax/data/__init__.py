"""Records, splits and batches of chest X-rays. numpy and grain only; never jax."""
