"""Adam with coupled L2, as in torch. A module does not move before its loss has begun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optax


def adam(
    rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float,
    starts: Mapping[str, int | None],
    factors: Mapping[str, float] = {},
) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015) on gradient + weight_decay · weight.

    While a module has no gradient, Adam would see only the weight decay. Adam normalises what it sees, so it would take
    full steps, and the projection heads would shrink during warm-up. So a module stays unchanged until its first step
    with a gradient, as in torch.

    Args:
      rate: the learning rate of all modules.
      starts: top-level module → the first step in which it has a gradient, None if never; 0 for those not named.
        Before it, neither the parameters nor Adam's moments and count move.
      factors: top-level module → a factor on its learning rate; 1 for those not named.
    """
    parts: dict[str, optax.GradientTransformation] = {"": _adam_direction(weight_decay)}
    for module, start in starts.items():
        parts[module] = (
            optax.set_to_zero() if start is None else _adam_direction_from(start, weight_decay)
        )

    def group_of_module(params: Mapping[str, Any]) -> dict[str, str]:
        return {module: module if module in parts else "" for module in params}

    def scale_modules(updates: Mapping[str, Any], _: Any) -> dict[str, Any]:
        return {
            module: optax.tree.scale(factors.get(module, 1.0), update)
            for module, update in updates.items()
        }

    return optax.chain(
        optax.partition(parts, group_of_module),
        optax.scale_by_learning_rate(rate),
        optax.stateless(scale_modules),
    )


def _adam_direction(weight_decay: float) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.scale_by_adam())


def _adam_direction_from(start: int, weight_decay: float) -> optax.GradientTransformation:
    return optax.conditionally_mask(_adam_direction(weight_decay), lambda step: step >= start)
