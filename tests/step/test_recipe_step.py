"""Averaged weights, mirror images in evaluation, and frozen statistics, in the step itself."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny_step import close, first_state, make_batch, programs

from kacl_jax.runtime.devices import DataParallel

DECAY = 0.8


def test_the_average_is_that_of_all_steps_weighed_by_their_age_and_evaluation_uses_it() -> None:
    """Σ decay^(t − s) · w_s over the steps s = 1 … t, divided by the sum of these weights; no step 0."""
    program = programs(average_decay=DECAY)
    parallel = DataParallel("shard_map", jax.devices()[:2])
    step = parallel.compile(
        program.train_step, ("replicated", "replicated", "sharded"), donate_state=True
    )
    placed = parallel.replicate(first_state(average_decay=DECAY))
    seen = []
    for seed in range(3):
        placed, _, _ = step(placed, parallel.shard(make_batch(seed=seed)))
        seen.append(parallel.fetch(placed, "replicated"))
    weights = DECAY ** np.arange(3)[::-1] / (DECAY ** np.arange(3)).sum()
    for name in ("params", "batch_stats"):
        trees = [getattr(state, name) for state in seen]
        expected = jax.tree.map(lambda *values: np.tensordot(weights, values, 1), *trees)
        close(seen[-1].average[name], expected, within=1e-5)

    evaluate = parallel.compile(program.eval_step, ("sharded",))
    images = parallel.shard({"image": make_batch()["image"]})
    outputs = parallel.fetch(evaluate(placed, images)[0], "sharded")
    alone = seen[-1].for_evaluation()
    assert alone.average == {}
    close(alone.params, seen[-1].average["params"], within=0)
    close(outputs, parallel.fetch(evaluate(parallel.replicate(alone), images)[0], "sharded"))
    live = parallel.replicate(seen[-1].replace(average={}))
    other = parallel.fetch(evaluate(live, images)[0], "sharded")
    assert np.abs(outputs["logits"] - other["logits"]).max() > 1e-3


@pytest.mark.parametrize("cam_stage", [3, 4])
def test_a_mirror_image_has_the_same_logits_and_mirrored_maps(cam_stage: int) -> None:
    """They are the means of what the network says of both; the embedding is that of the image itself."""
    parallel = DataParallel("shard_map", jax.devices()[:2])
    state = parallel.replicate(first_state(cam_stage=cam_stage))
    image = make_batch()["image"]

    def outputs(image: np.ndarray, mirror: bool) -> dict[str, np.ndarray]:
        step = programs(cam_stage=cam_stage, mirror=mirror).eval_step
        placed = parallel.shard({"image": np.ascontiguousarray(image)})
        return parallel.fetch(parallel.compile(step, ("sharded",))(state, placed)[0], "sharded")

    both, mirrored = (outputs(x, True) for x in (image, image[:, :, ::-1]))
    one, other = (outputs(x, False) for x in (image, image[:, :, ::-1]))
    close(both["logits"], mirrored["logits"], within=1e-5)
    close(both["maps"], mirrored["maps"][..., ::-1], within=1e-5)
    close(both["logits"], (one["logits"] + other["logits"]) / 2, within=1e-5)
    close(both["maps"], (one["maps"] + other["maps"][..., ::-1]) / 2, within=1e-5)
    close(both["embedding"], one["embedding"], within=1e-5)


def test_frozen_statistics_do_not_move_and_the_step_sees_what_evaluation_sees() -> None:
    program = programs(frozen_statistics=True)
    parallel = DataParallel("shard_map", jax.devices()[:2])
    before, batch = first_state(), make_batch()
    step = parallel.compile(program.train_step, ("replicated", "replicated", "sharded"))
    after, metrics, _ = step(parallel.replicate(before), parallel.shard(batch))
    moved, still = parallel.fetch(after, "replicated").batch_stats, before.batch_stats
    close(moved["image_encoder"], still["image_encoder"], within=0)
    assert any(
        np.any(a != b)
        for a, b in zip(
            jax.tree.leaves(moved["radiomics_encoder"]),
            jax.tree.leaves(still["radiomics_encoder"]),
            strict=True,
        )
    )
    evaluate = parallel.compile(program.eval_step, ("sharded",))
    outputs = evaluate(parallel.replicate(before), parallel.shard({"image": batch["image"]}))[0]
    logits, labels = np.asarray(outputs["logits"], np.float64), batch["labels"]
    p = 1 / (1 + np.exp(-logits))
    right = np.where(labels == 1, p, 1 - p)
    focal = np.where(labels == 1, 0.25, 0.75) * (1 - right) ** 2 * -np.log(right)
    assert float(metrics["focal"]) == pytest.approx(focal.sum(1).mean(), rel=1e-4)
