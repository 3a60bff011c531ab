"""KACL in JAX: chest X-ray findings, classified and localized with a radiomics feedback loop.

    import kacl_jax
    model = kacl_jax.load("runs/nih")
    result = model("xray.dcm")
    result.probabilities["Effusion"]

This package imports nothing before it is used: the radiomics worker processes pass through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from kacl_jax.predict.model import Model

__all__ = ["load"]


def load(run: str | Path) -> Model:
    """The best network of a finished run, ready to be called with images: see `kacl_jax.predict.model.Model`.

    Args:
      run: its workdir, for example runs/nih.

    Raises:
      UserError: the folder is no finished run, or one of its files is missing, damaged or of another version.
    """
    from kacl_jax.predict import model

    return model.load(run)
