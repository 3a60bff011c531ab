"""What a run's log tells about its contrastive loss."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from kacl_jax import config as config_keys
from kacl_jax.evaluation import contrastive_summary
from kacl_jax.step import losses

CONFIG = config_keys.flatten(config_keys.default()) | {"loss.focal_weight": 0.8}


def train_line(step: int, nt_xent: float | None, **values: Any) -> dict[str, Any]:
    line = {"step": step, "kind": "train", "nt_xent": nt_xent, "ready": 32.0, "hit_rate": 0.5}
    line |= {"age": 40.0, "grad_norm_nt_xent": 0.3, "grad_norm_focal": 0.1}
    return line | values


def validation_line(step: int) -> dict[str, Any]:
    return {"step": step, "kind": "val", "auroc": 0.5}


def test_only_the_last_epoch_counts() -> None:
    first = [train_line(1, 9.0, age=1.0), validation_line(10)]
    last = [
        train_line(11, 3.0),
        train_line(20, 4.0, age=42.0, grad_norm_focal=0.2),
        validation_line(20),
    ]
    summary = contrastive_summary.summarise_last_epoch(first + last, CONFIG)
    assert summary is not None
    assert summary.loss == 3.5
    assert summary.partner_share == 0.5
    assert summary.age == 41
    # 0.2 · (0.3 + 0.3) / 2 divided by 0.8 · (0.1 + 0.2) / 2
    assert summary.gradient_ratio == pytest.approx(0.5)
    assert contrastive_summary.format_cells(summary) == [
        "3.50",
        "4.14",
        "2.18",
        "0.50",
        "50 %",
        "41",
    ]


def test_steps_without_the_loss_do_not_count() -> None:
    """No row with a partner, or not finite: null."""
    log = [train_line(1, None), train_line(2, 3.0, grad_norm_focal=None)]
    assert contrastive_summary.summarise_last_epoch([*log, validation_line(4)], CONFIG) is None
    assert contrastive_summary.summarise_last_epoch([], CONFIG) is None
    summary = contrastive_summary.summarise_last_epoch(
        [*log, train_line(4, 2.0), validation_line(4)], CONFIG
    )
    assert summary is not None
    assert summary.loss == 2.0


def test_a_run_without_the_loss_has_none() -> None:
    lines = [{"step": 1, "kind": "train", "focal": 0.5, "grad_norm_focal": 0.1}, validation_line(1)]
    assert contrastive_summary.summarise_last_epoch(lines, CONFIG) is None


def test_chance_is_the_loss_of_embeddings_that_say_nothing() -> None:
    n = 12
    same = jnp.ones((n, 8))
    loss, weight = losses.nt_xent(
        same,
        same,
        ready=jnp.ones(n, bool),
        patient_id=jnp.arange(n),
        temperature=0.3,
        mask_same_patient=True,
    )
    summary = contrastive_summary.summarise_last_epoch([train_line(1, 3.0, ready=float(n))], CONFIG)
    assert summary is not None
    assert summary.chance_loss == pytest.approx(float(loss.sum() / weight.sum()), rel=1e-6)


def test_at_best_is_the_loss_of_equal_partners_on_a_simplex() -> None:
    n = 12
    corners = np.eye(n, dtype=np.float32) - 1 / n
    corners /= np.linalg.norm(corners, axis=1, keepdims=True)
    loss, weight = losses.nt_xent(
        jnp.array(corners),
        jnp.array(corners),
        ready=jnp.ones(n, bool),
        patient_id=jnp.arange(n),
        temperature=0.3,
        mask_same_patient=True,
    )
    config = CONFIG | {"loss.temperature": 0.3}
    summary = contrastive_summary.summarise_last_epoch([train_line(1, 3.0, ready=float(n))], config)
    assert summary is not None
    assert summary.best_loss == pytest.approx(float(loss.sum() / weight.sum()), rel=1e-5)


def test_a_second_view_is_there_for_every_row_and_has_no_age() -> None:
    given = CONFIG | {"loss.positive": "augmented", "train.batch_size": 16}
    summary = contrastive_summary.summarise_last_epoch(
        [train_line(1, 3.0, ready=0.0, hit_rate=0.0, age=0.0)], given
    )
    assert summary is not None
    assert summary.chance_loss == math.log(31)
    assert contrastive_summary.format_cells(summary)[4:] == ["–", "–"]


def test_without_a_focal_loss_nothing_is_pulled_against() -> None:
    summary = contrastive_summary.summarise_last_epoch(
        [train_line(1, 3.0)], CONFIG | {"loss.focal_weight": 0.0}
    )
    assert summary is not None
    assert summary.gradient_ratio == math.inf


def test_the_mean_is_of_each_figure() -> None:
    one = contrastive_summary.ContrastiveSummary(3.0, 4.0, 2.0, 0.5, 1.0, 40.0)
    other = contrastive_summary.ContrastiveSummary(1.0, 2.0, 0.0, 1.5, 0.5, math.nan)
    summary = dataclasses.astuple(contrastive_summary.mean_summary([one, other]))
    np.testing.assert_array_equal(summary, [2.0, 3.0, 1.0, 1.0, 0.75, math.nan])
