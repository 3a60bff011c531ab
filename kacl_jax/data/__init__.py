"""Records, splits and batches of chest X-rays. All computation uses numpy; no file here imports jax."""
