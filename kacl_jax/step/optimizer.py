"""Adam with coupled L2, as torch has it; a module rests until its loss has begun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optax


def adam(
    rate: optax.ScalarOrSchedule, *, weight_decay: float, starts: Mapping[str, int | None]
) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015) on gradient + weight_decay · weight.

    Without a gradient the decay alone would reach Adam, which makes a step of full length of it, however small: over
    an epoch of warm-up it would wear the projection heads down. torch leaves a parameter alone whose gradient is None.

    Args:
      rate: of the step, for all modules alike.
      starts: top-level module → the first step in which it has a gradient, None if never; 0 for those not named.
        Before it, neither the parameters nor Adam's moments and count move.
    """
    parts: dict[str, optax.GradientTransformation] = {"": _direction(weight_decay)}
    for module, start in starts.items():
        parts[module] = optax.set_to_zero() if start is None else _from(start, weight_decay)

    def part_of(params: Mapping[str, Any]) -> dict[str, str]:
        return {module: module if module in parts else "" for module in params}

    return optax.chain(optax.partition(parts, part_of), optax.scale_by_learning_rate(rate))


def _direction(weight_decay: float) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.scale_by_adam())


def _from(start: int, weight_decay: float) -> optax.GradientTransformation:
    return optax.conditionally_mask(_direction(weight_decay), lambda step: step >= start)
