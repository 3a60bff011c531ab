"""Records, splits and batches of chest X-rays. What is computed is computed by numpy; no file here imports jax."""
