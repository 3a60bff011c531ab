"""A classifier to start from: the ridge regressions on the image features before training, as logits of the focal loss.

A random head on a small set needs many steps until it ranks as well as this closed form does at once.
Axes: n rows · k channels · c findings.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from kacl_jax.fusion import ridge
from kacl_jax.step.losses import focal_loss


class Head(NamedTuple):
    """logits = features @ kernel + bias: float32 [k c] and [c]. NaN for a finding without a regression."""

    kernel: np.ndarray
    bias: np.ndarray


def fit_head(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, *, alpha: float, gamma: float
) -> Head:
    """The head that ranks as the ridge regressions do.

    A score becomes a logit by slope · score + offset, of which the focal loss on held-out patients is the lowest. So
    the first steps need not change the size of the logits.

    Args:
      features: float32 [n k]. labels: [n c], 1, 0, or −1 where unknown. patients: int [n].
      alpha, gamma: of the focal loss.
    """
    order = np.lexsort(features.T[:1])  # one order of summation, whatever the order of the rows
    features, labels, patients = features[order], labels[order], patients[order]
    fitted, held_out = ridge.fit_with_held_out(features, labels, patients)
    weights = fitted.coef * fitted.scale
    offsets = fitted.intercept - weights @ fitted.mean
    kernel = np.full((features.shape[1], labels.shape[1]), np.nan, np.float32)
    bias = np.full(labels.shape[1], np.nan, np.float32)
    for c, reason in enumerate(fitted.reasons):
        if reason:
            continue
        known = labels[:, c] >= 0
        slope, offset = _lowest_focal_loss(held_out[known, c], labels[known, c], alpha, gamma)
        kernel[:, c] = slope * weights[c]
        bias[c] = slope * offsets[c] + offset
    return Head(kernel, bias)


def _lowest_focal_loss(
    scores: np.ndarray, labels: np.ndarray, alpha: float, gamma: float
) -> tuple[float, float]:
    """(slope, offset) of slope · score + offset with the lowest focal loss; slope > 0, so that the ranking stays."""
    center, spread = scores.mean(), scores.std() or 1.0
    z = jnp.asarray((scores - center) / spread, jnp.float32)[:, None]
    target = jnp.asarray(labels, jnp.float32)[:, None]

    @jax.jit
    def loss(parameters: jax.Array) -> jax.Array:
        logits = jnp.exp(parameters[0]) * z + parameters[1]
        return focal_loss(logits, target, alpha=alpha, gamma=gamma).mean()

    def value_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = jax.value_and_grad(loss)(jnp.asarray(parameters, jnp.float32))
        return float(value), np.asarray(gradient, np.float64)

    found = minimize(
        value_and_gradient,
        np.array([-1.0, -1.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-5.0, 3.0), (-10.0, 10.0)],
    )
    slope = float(np.exp(found.x[0]) / spread)
    return slope, float(found.x[1]) - slope * float(center)
