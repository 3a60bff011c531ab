"""Adam as optax has it, but for modules that have no gradient yet."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kacl_jax.step.optimizer import adam

RATE, DECAY, START = 1e-3, 1e-2, 5
PARAMS = {name: {"w": jnp.linspace(-1.0, 1.0, 7) + i} for i, name in enumerate("abc")}
REFERENCE = optax.chain(optax.add_decayed_weights(DECAY), optax.adam(RATE))


def gradient(step: int) -> dict[str, Any]:
    """Of `b` and `c` none before START."""
    random = np.random.default_rng(step)
    draws = {name: {"w": jnp.asarray(random.normal(size=7), jnp.float32)} for name in "abc"}
    return draws if step >= START else {**jax.tree.map(jnp.zeros_like, draws), "a": draws["a"]}


def trained(
    optimizer: optax.GradientTransformation, params: Any, steps: range
) -> list[dict[str, Any]]:
    """The parameters after each step, the first ones before."""
    state, seen = optimizer.init(params), [params]
    for step in steps:
        updates, state = optimizer.update(gradient(step), state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return seen


def test_a_module_rests_until_its_loss_begins_and_starts_afresh_then() -> None:
    ours = trained(
        adam(RATE, weight_decay=DECAY, starts={"b": START, "c": None}), PARAMS, range(12)
    )
    always = trained(REFERENCE, PARAMS, range(12))
    late = trained(REFERENCE, PARAMS, range(START, 12))
    for step, now in enumerate(ours):
        np.testing.assert_allclose(now["a"]["w"], always[step]["a"]["w"], rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(
            now["b"]["w"], late[max(0, step - START)]["b"]["w"], rtol=1e-6, atol=1e-8
        )
        np.testing.assert_array_equal(now["c"]["w"], PARAMS["c"]["w"])
    # What it is for: the decay alone moves a weight by the whole rate.
    assert abs(always[1]["b"]["w"] - PARAMS["b"]["w"]).max() > 0.9 * RATE


def test_the_rate_follows_the_steps_of_the_run_and_not_of_the_module() -> None:
    schedule = optax.linear_schedule(0.0, 1.0, 10)
    ours = trained(adam(schedule, weight_decay=0.0, starts={"b": START}), PARAMS, range(START + 1))
    first = abs(ours[-1]["b"]["w"] - ours[-2]["b"]["w"])
    np.testing.assert_allclose(first, schedule(START), rtol=1e-4)


def test_a_factor_multiplies_the_steps_of_one_module_only() -> None:
    plain, scaled = (
        trained(adam(RATE, weight_decay=0.0, starts={}, factors=factors), PARAMS, range(1))
        for factors in ({}, {"b": 3.0})
    )
    for name, factor in (("a", 1.0), ("b", 3.0), ("c", 1.0)):
        steps = [path[1][name]["w"] - path[0][name]["w"] for path in (plain, scaled)]
        np.testing.assert_allclose(steps[1], factor * steps[0], rtol=1e-3, atol=1e-7)
