"""The fused score: a sum of z-scores on the network's own scale, or the network's own score."""

from __future__ import annotations

import numpy as np
import pytest
from test_ridge import table

from kacl_jax.evaluation.metrics import auroc
from kacl_jax.fusion import ridge, scores, shares
from kacl_jax.fusion.scores import Fusion
from kacl_jax.radiomics import FEATURE_NAMES


def made(
    *, kind: str = "both", noise: float = 3.0, n: int = 120
) -> tuple[Fusion, dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """A fusion, the features of its validation part by source, the logits and the labels of that part."""
    features, labels, patients = table(2 * n, 8)
    by_source = {"radiomics": features[:, :4], "image": features[:, ::-1][:, 3:]}
    by_source = {source: by_source[source] for source in scores.SOURCES[kind]}
    ridges = {
        source: ridge.fit(values[:n], labels[:n], patients[:n])
        for source, values in by_source.items()
    }
    logits = labels + np.random.default_rng(1).normal(0, noise, labels.shape)
    val = {source: values[n:] for source, values in by_source.items()}
    fusion = scores.build(
        ridges,
        reference=val,
        reference_logits=logits[n:].astype(np.float32),
        val_labels=labels[n:],
    )
    return fusion, val, logits[n:].astype(np.float32), labels[n:]


def z(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / values.std(0)


def test_the_fused_logit_ranks_as_the_sum_of_the_z_scores() -> None:
    fusion, features, logits, _ = made()
    by_hand = np.mean([z(fusion.ridges[s].scores(features[s])) for s in features], axis=0)
    expected = z(logits.astype(float)) + fusion.weight * by_hand
    fused = fusion.fuse(logits, features)
    np.testing.assert_allclose(
        (fused - logits.mean(0, dtype=float)) / logits.std(0, dtype=float), expected, atol=1e-6
    )


def test_the_weight_is_the_best_on_validation() -> None:
    """Large beside a network that guesses; never so large that a network that knows loses by it."""
    fusion, features, logits, labels = made(noise=30.0)
    assert fusion.weight == 2
    fused = fusion.fuse(logits, features)
    assert auroc(fused[:, 0], labels[:, 0]) > auroc(logits[:, 0], labels[:, 0])
    fusion, features, logits, labels = made(noise=0.4)
    assert fusion.weight < 2
    fused = fusion.fuse(logits, features)
    assert auroc(fused[:, 0], labels[:, 0]) >= auroc(logits[:, 0], labels[:, 0])
    assert not fusion.weight_reason


def test_without_a_regression_the_logit_is_the_networks_own_to_the_bit() -> None:
    fusion, features, logits, _ = made(kind="radiomics")
    features["radiomics"][3] = np.nan  # an image without any cell
    own = fusion.fuse(logits, features)
    np.testing.assert_array_equal(own[3], logits[3].astype(np.float64))
    assert (own[4] != logits[4]).all()


def test_where_one_regression_has_no_score_the_other_stands_alone() -> None:
    fusion, features, _, _ = made()
    alone = fusion.partner(features)
    features["radiomics"][3] = np.nan
    partner = fusion.partner(features)
    image = (
        fusion.ridges["image"].scores(features["image"]) - fusion.moments["image"].mean
    ) / fusion.moments["image"].spread
    np.testing.assert_array_equal(partner[3], image[3])
    np.testing.assert_array_equal(np.delete(partner, 3, 0), np.delete(alone, 3, 0))


def test_without_validation_the_weight_is_one_and_says_why() -> None:
    features, labels, patients = table(60, 4)
    fitted = {"image": ridge.fit(features, labels, patients)}
    logits = labels.astype(np.float32)
    common = {"reference": {"image": features}, "reference_logits": logits}
    fusion = scores.build(fitted, **common, val_labels=None)
    assert (fusion.weight, fusion.weight_reason) == (1.0, "there is no validation part")
    fusion = scores.build(fitted, **common, val_labels=np.zeros_like(labels))
    assert fusion.weight == 1
    assert "positives and negatives" in fusion.weight_reason


def test_the_explanation_adds_up_to_the_fused_logit() -> None:
    features, labels, patients = table(80, 4 * len(FEATURE_NAMES))
    image = features[:, :5] + 1
    fitted = {
        source: ridge.fit(values, labels, patients)
        for source, values in (("radiomics", features), ("image", image))
    }
    logits = labels + np.random.default_rng(1).normal(0, 3, labels.shape)
    fusion = scores.build(
        fitted,
        reference={"radiomics": features, "image": image},
        reference_logits=logits,
        val_labels=None,
    )
    mean = {s: fitted[s].mean.astype(np.float32) for s in fitted}
    one = {"radiomics": features[7], "image": image[7]}
    fused = fusion.fuse(logits[7:8], {s: v[None] for s, v in one.items()})[0]
    for c, told in enumerate(shares.explain(fusion, 2, logits[7], one)):
        assert told.fused_logit == fused[c]
        assert told.network_logit + sum(told.moved.values()) == pytest.approx(fused[c])
        # The cells say how this image differs from the mean one.
        moved = shares.explain(fusion, 2, logits[7], {**one, "radiomics": mean["radiomics"]})[c]
        assert told.cells.sum() == pytest.approx(told.fused_logit - moved.fused_logit, abs=1e-6)
        assert len(told.features) == shares.FEATURES_SHOWN
        assert [abs(f.share) for f in told.features] == sorted(
            (abs(f.share) for f in told.features), reverse=True
        )
    all_shares = shares.logit_shares(fusion, "radiomics", one)
    np.testing.assert_allclose(
        shares.by_family(all_shares).sum(1), shares.by_cell(all_shares).sum(1)
    )
    one["radiomics"] = features[7].copy()
    one["radiomics"][len(FEATURE_NAMES) : 2 * len(FEATURE_NAMES)] = np.nan
    told = shares.explain(fusion, 2, logits[7], one)[0]
    assert np.isnan(told.cells).tolist() == [[False, True], [False, False]]
    assert not any((f.row, f.column) == (0, 1) for f in told.features)
