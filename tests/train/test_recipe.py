"""A run with the keys of the strong recipe: averaged weights, mirror images, and a head that starts from a ridge."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_step
from same_run import assert_same_run, config, metric_lines

from kacl_jax.evaluation.metrics import auroc
from kacl_jax.fusion import ridge
from kacl_jax.predict.model import Model
from kacl_jax.runtime.devices import DataParallel
from kacl_jax.step.losses import focal_loss
from kacl_jax.step.optimizer import adam
from kacl_jax.train import checkpoint, head_start, job, network

CHANGES = {
    "train__head_start": "ridge",
    "train__frozen_statistics": True,
    "train__ema": 0.5,
    "augment__flip": 0.5,
    "eval__flip": True,
    "loss__focal_weight": 1.0,
}


def test_the_start_from_a_ridge_is_a_candidate_for_the_best_network(run: Path) -> None:
    """So a run never ends below it on the validation part."""
    results = json.loads((run / "results.json").read_text())
    validated = {line["step"]: line["auroc"] for line in metric_lines(run, "val")}
    assert set(validated) == {0, 3, 6}
    assert max(sorted(validated), key=lambda step: validated[step]) == results["best_step"]


def test_the_scores_of_a_loaded_network_are_those_of_the_run(
    run: Path, root: Path, model: Model
) -> None:
    """With averaged weights and mirror images, to the bit; a mirror image then has the same scores."""
    with (run / "predictions.csv").open(newline="") as file:
        expected = [row for row in csv.DictReader(file) if row["split"] == "test"][:12]
    found = model([root / "images" / row["image"] for row in expected])
    for prediction, row in zip(found, expected, strict=True):
        assert prediction.scores == {f: float(row[f"prob_{f}"]) for f in model.findings}
    mirrored = model(np.ascontiguousarray(found[0].pixels[:, ::-1]))
    assert mirrored.scores == pytest.approx(found[0].scores, abs=1e-6)


@pytest.mark.parametrize("lost_steps", [(4, 5, 6), (2, 3, 4, 5, 6)])
def test_a_resumed_run_ends_the_same(
    run: Path, root: Path, tmp_path: Path, lost_steps: tuple[int, ...]
) -> None:
    """Its averages are in the checkpoints, too, and the start is not scored twice."""
    saved = checkpoint.Checkpoints(run / "checkpoints")
    arrays = saved.restore(6).arrays
    kernel = "classifier/kernel"
    assert not np.array_equal(
        arrays[f"state/average/params/{kernel}"], arrays[f"state/params/{kernel}"]
    )
    resumed = tmp_path / "w"
    shutil.copytree(run, resumed)
    (resumed / "results.json").unlink()
    for step in lost_steps:
        shutil.rmtree(resumed / "checkpoints" / f"{step:08d}", ignore_errors=True)
    job.train_and_evaluate(config(root, cam__center="mean", train__epochs=2, **CHANGES), resumed)
    assert_same_run(resumed, run)


def test_the_learning_rate_rises_for_its_share_of_the_steps_and_then_falls(root: Path) -> None:
    changes = {"train__schedule": "one_cycle", "train__rate_warmup": 0.1}
    rate = network.learning_rate(config(root, **changes, train__learning_rate=0.5), 200)
    assert callable(rate)
    values = np.array([rate(step) for step in range(201)])
    assert values[[0, 10, 20, 110, 200]] == pytest.approx([0.02, 0.26, 0.5, 0.25, 0], abs=1e-4)
    assert (np.diff(values[:21]) > 0).all()
    assert (np.diff(values[20:]) < 0).all()


# ---- the head itself -----------------------------------------------------------------------------------------

ALPHA, GAMMA = 0.25, 2.0


def table(n: int = 150, k: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [n k], labels [n 3] of which two depend on them and one is too rare, patients with two rows each."""
    random = np.random.default_rng(0)
    features = random.gamma(2.0, 1.0, (n, k)).astype(np.float32)
    noise = random.normal(size=(n, 2))
    labels = np.zeros((n, 3), np.int8)
    labels[:, :2] = features[:, :2] + noise > (3.0, 4.0)
    labels[::7, 1] = -1  # unknown
    labels[:2, 2] = 1
    return features, labels, np.arange(n) // 2


def test_the_head_ranks_as_the_ridge_and_no_other_scale_has_a_lower_focal_loss() -> None:
    features, labels, patients = table()
    head = head_start.fit_head(features, labels, patients, alpha=ALPHA, gamma=GAMMA)
    fitted, held_out = ridge.fit_with_held_out(features, labels, patients)
    assert np.abs((features - fitted.mean) * fitted.scale).max() < ridge.Z_CLIP
    logits = features @ head.kernel + head.bias
    assert np.isnan(logits[:, 2]).all()
    scores = fitted.scores(features)
    for c in range(2):
        np.testing.assert_array_equal(np.argsort(logits[:, c]), np.argsort(scores[:, c]))
        slope, offset = np.polyfit(scores[:, c], logits[:, c], 1)
        known = labels[:, c] >= 0

        def loss(slope: float, offset: float, c: int = c, known: np.ndarray = known) -> float:
            scaled = jnp.asarray(slope * held_out[known, c] + offset, jnp.float32)[:, None]
            target = jnp.asarray(labels[known, c], jnp.float32)[:, None]
            return float(focal_loss(scaled, target, alpha=ALPHA, gamma=GAMMA).mean())

        lowest = loss(slope, offset)
        center = slope * held_out[known, c].mean()
        for steeper in (0.7, 1.4):  # about the middle of the scores
            assert loss(steeper * slope, offset + (1 - steeper) * center) > lowest
        assert min(loss(slope, offset + 0.3), loss(slope, offset - 0.3)) > lowest


def made_batches(n: int, seed: int) -> list[dict[str, np.ndarray]]:
    """n batches. A finding makes the image coarser or finer, which a random encoder sees only in part."""
    batches = []
    for number in range(n):
        batch = tiny_step.make_batch(seed=1000 * seed + number)
        edges = np.abs(np.diff(batch["image"][..., 0].astype(float), axis=2)).mean((1, 2))
        grey = batch["image"].mean((1, 2, 3))
        noise = np.random.default_rng((seed, number)).normal(size=(len(grey), 2))
        batch["labels"][:] = 0
        batch["labels"][:, 0] = edges / grey + 0.01 * noise[:, 0] > 0.03
        batch["labels"][:, 1] = grey + 10 * noise[:, 1] > 80
        batches.append(batch)
    return batches


def scores_after_passes(*, frozen: bool, passes: int) -> list[float]:
    """Mean AUROC on fresh images: at the start from the ridge, and after each pass over the training images."""
    program = tiny_step.programs(
        loss=dataclasses.replace(tiny_step.LOSS, focal_weight=1.0, box_weight=0.0),
        optimizer=adam(3e-4, weight_decay=0.0, starts={}),
        frozen_statistics=frozen,
    )
    parallel = DataParallel("shard_map", jax.devices()[:1])
    step = parallel.compile(program.train_step, ("replicated", "replicated", "sharded"))
    evaluate = parallel.compile(program.eval_step, ("sharded",))
    training, fresh = made_batches(12, seed=1), made_batches(12, seed=2)

    def outputs(state: Any, batches: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
        images = [parallel.shard({"image": batch["image"]}) for batch in batches]
        return np.concatenate([np.asarray(evaluate(state, image)[0][name]) for image in images])

    def score(state: Any) -> float:
        logits = outputs(state, fresh, "logits")
        labels = np.concatenate([batch["labels"] for batch in fresh])
        return float(np.mean([auroc(logits[:, c], labels[:, c]) for c in range(2)]))

    first = tiny_step.first_state()
    variables = {"params": first.params, "batch_stats": first.batch_stats}
    state = program.init(variables, tiny_step.SIZE)
    labels = np.concatenate([batch["labels"] for batch in training]).astype(np.int8)
    features = outputs(parallel.replicate(state), training, "embedding")
    head = head_start.fit_head(features, labels, np.arange(len(labels)), alpha=ALPHA, gamma=GAMMA)
    placed = parallel.replicate(program.with_head(state, head.kernel, head.bias))
    found = [score(placed)]
    for _ in range(passes):
        for batch in training:
            placed, _, _ = step(placed, parallel.shard(batch))
        found.append(score(placed))
    return found


def test_a_network_that_starts_from_a_ridge_does_not_end_below_it_if_its_statistics_stay() -> None:
    """With the statistics of each batch the features of the first step are others than those that the ridge saw."""
    kept = scores_after_passes(frozen=True, passes=4)
    assert kept[-1] > kept[0]
    moved = scores_after_passes(frozen=False, passes=1)
    assert moved[0] == kept[0]
    assert moved[-1] < kept[0] - 0.05
