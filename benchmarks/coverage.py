"""How often a sweep's intervals hold the truth, and how often its p-values see a difference: a simulation.

    python -m benchmarks.coverage [repetitions [spread]]

Each repetition draws labels, images and the scores of networks, and gives the runs to `kacl_jax.sweep.uncertainty`.
Arm 0 and arm 1 are equally good. For the power, the difference of their runs is shifted by `EFFECT`. Three more arms
lend their variance between runs to a comparison of one seed. The rule "before" resamples patients and seeds crosswise
and takes percentiles. spread: the standard deviation of the AUROC between runs, without the noise of patients.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import special

from kacl_jax.sweep.measure import patient_weights
from kacl_jax.sweep.uncertainty import RunVariance, estimate, pool, run_variance

EFFECT = 0.01
FOLDS, SEEDS, LENDERS, LENDERS_SEEDS = 5, 5, 3, 3
PATIENTS, RESAMPLES = 278, 400  # of a fold
_PREVALENCE = np.linspace(0.05, 0.25, 8)  # of each finding
_SKILL = 0.86  # gives a mean AUROC near 0.68
_AUROC_OF_SKILL = 0.194  # its derivative there
# Standard deviations of the scores: of an image, of an arm and an image, and of a run and an image.
_IMAGE, _ARM, _RUN = 1.0, 0.25, 0.8


def main(repetitions: str = "2000", spread: str = "0.006") -> None:
    print("| folds × seeds | rule | rejects at 0.05 | covers 0 | power at +0.01 | covers AUROC |")
    print("|---|---|---|---|---|---|")
    for (folds, seeds, rule), rates in measure_rates(int(repetitions), float(spread)).items():
        cells = " | ".join(f"{rate:.3f}" for rate in rates)
        print(f"| {folds} × {seeds} | {rule} | {cells} |")


def measure_rates(
    repetitions: int, spread: float, *, seed: int = 0
) -> dict[tuple[int, int, str], tuple[float, float, float, float]]:
    """(folds, seeds, rule) → shares of repetitions: a difference of 0 is rejected at 0.05, the interval holds it, a
    difference of `EFFECT` is seen, and the interval of one arm holds the AUROC of endlessly many patients and runs.
    """
    rng = np.random.default_rng(seed)
    outcomes: dict[tuple[int, int, str], list[tuple[bool, ...]]] = defaultdict(list)
    spread_of_skill = spread / _AUROC_OF_SKILL
    variance = 2 * (_IMAGE**2 + _ARM**2 + _RUN**2) + spread_of_skill**2
    truth = float(special.ndtr(_SKILL / np.sqrt(variance)))
    for _ in range(repetitions):
        values, draws = simulate(rng, spread_of_skill)
        for folds in (3, 5):
            for seeds in (1, 2, 3, 5):
                part = values[:, :folds, :seeds], draws[:, :folds, :seeds]
                lent = [
                    run_variance(v[:folds, :LENDERS_SEEDS], d[:folds, :LENDERS_SEEDS])
                    for v, d in zip(values[2:], draws[2:], strict=True)
                ]
                for rule, outcome in _apply_rules(rng, *part, lent, truth):
                    outcomes[folds, seeds, rule].append(outcome)
    return {key: tuple(np.mean(found, axis=0).tolist()) for key, found in sorted(outcomes.items())}


def simulate(rng: np.random.Generator, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """AUROC [arms folds seeds], mean over findings, and its resamples [arms folds seeds B]. spread: of a run's skill.

    The resamples are linear in the patients' weights (the jackknife's influence values), which saves hours.
    """
    arms, shape = 2 + LENDERS, (2 + LENDERS, SEEDS)
    values = np.zeros((arms, FOLDS, SEEDS))
    draws = np.zeros((arms, FOLDS, SEEDS, RESAMPLES))
    for fold in range(FOLDS):
        weights = np.ascontiguousarray(patient_weights(fold, PATIENTS, RESAMPLES)[:, 1:])
        skill = _SKILL + spread * rng.normal(size=shape)
        influence = np.zeros((*shape, PATIENTS))
        for prevalence in _PREVALENCE:
            positive = rng.permutation(PATIENTS) < round(prevalence * PATIENTS)
            scores = _IMAGE * rng.normal(size=PATIENTS) + skill[..., None] * positive
            scores += _ARM * rng.normal(size=(arms, 1, PATIENTS))
            scores += _RUN * rng.normal(size=(*shape, PATIENTS))
            area, of_patient = auroc_and_influence(scores, positive)
            values[:, fold] += area / len(_PREVALENCE)
            influence += of_patient / len(_PREVALENCE)
        changes = influence.reshape(-1, PATIENTS) @ weights
        draws[:, fold] = values[:, fold, :, None] + changes.reshape(*shape, RESAMPLES)
    return values, draws


def auroc_and_influence(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC [...] of scores [... patients] without ties, and its derivative by each patient's weight [... patients]."""
    ahead = scores[..., positive][..., :, None] > scores[..., ~positive][..., None, :]
    of_positive, of_negative = ahead.mean(axis=-1), ahead.mean(axis=-2)
    area = of_positive.mean(axis=-1)
    influence = np.empty(scores.shape)
    influence[..., positive] = (of_positive - area[..., None]) / positive.sum()
    influence[..., ~positive] = (of_negative - area[..., None]) / (~positive).sum()
    return area, influence


def _apply_rules(
    rng: np.random.Generator,
    values: np.ndarray,
    draws: np.ndarray,
    lent: list[RunVariance],
    truth: float,
) -> Iterator[tuple[str, tuple[bool, ...]]]:
    """(rule, its four outcomes) of arms 0 and 1 in values [arms folds seeds] and draws [arms folds seeds B]."""
    difference, its_draws = values[0] - values[1], draws[0] - draws[1]
    of_arm = pool(lent)
    level = estimate(values[0], draws[0], of_arm)
    pairs = [estimate(difference + e, its_draws + e, of_arm.times(2)) for e in (0, EFFECT)]
    rejects, sees = (pair.p < 0.05 for pair in pairs)
    yield "after", (rejects, _holds(pairs[0].ci95, 0), sees, _holds(level.ci95, truth))
    of_level, of_pair = resample_crosswise(rng, draws[0]), resample_crosswise(rng, its_draws)
    rejects, sees = (_share_p(of_pair + e) < 0.05 for e in (0, EFFECT))
    covers = _holds(np.percentile(of_pair, [2.5, 97.5]), 0)
    yield (
        "before",
        (rejects, covers, sees, _holds(np.percentile(of_level, [2.5, 97.5]), truth)),
    )


def resample_crosswise(rng: np.random.Generator, draws: np.ndarray) -> np.ndarray:
    """The rule before: [folds seeds B] → [B], the mean over each fold's resampled seeds, then over folds."""
    folds, seeds, resamples = draws.shape
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=(folds, resamples))
    return np.einsum("fsb,fbs->b", draws, weights.astype(np.float64)) / (folds * seeds)


def _share_p(draws: np.ndarray) -> float:
    """The rule before: twice the smaller share of resamples on one side of 0, the sample itself among them."""
    tail = min((draws <= 0).sum(), (draws >= 0).sum())
    return min(1.0, 2 * (tail + 1) / (len(draws) + 1))


def _holds(interval: Sequence[float] | None, value: float) -> bool:
    return interval is not None and bool(interval[0] <= value <= interval[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
