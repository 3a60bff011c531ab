"""A finished run, made once in a process, and the two ways to ask the program for what is in its files."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import hashlib
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.fuzz.judge import Answer, Region, Row

FINDINGS = ("Mass", "Nodule")
IMAGE_FEATURES = 5  # of the fusion
STEP = 3  # of the only checkpoint, which is the best one
_NO_REGION = np.zeros((1, 1), bool)
Files = dict[str, bytes]


def row(*truths: Any, may_refuse: bool = True) -> Row:
    """What one question may bring: one of these values, or where it may be refused a sentence."""
    return Row(tuple(Region(picture(truth), _NO_REGION) for truth in truths), may_refuse)


def picture(value: Any) -> np.ndarray:
    """uint8 [1 16], a digest, which the judge compares as it compares pictures. Equal values have equal ones."""
    digest = hashlib.blake2b(digest_size=16)
    for word in _words(value):
        digest.update(word)
    return np.frombuffer(digest.digest(), np.uint8)[None]


def _words(value: Any) -> Iterator[bytes]:
    if isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    elif dataclasses.is_dataclass(value):
        yield from _words({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            yield repr(key).encode()
            yield from _words(value[key])
    elif isinstance(value, list | tuple):
        yield f"{len(value)}".encode()
        for part in value:
            yield from _words(part)
    else:
        yield repr(sorted(value) if isinstance(value, frozenset) else value).encode()


def ask(*questions: Callable[[], Any], names: str) -> Answer:
    """A row for each question: its value, or the sentence of an error that a user is meant to read.

    names: a text that the sentence must hold, so that the user knows which file or key it is about. Any other exception
    goes on. A traceback that the user would see among the log's lines is no sentence.
    """
    _prepare_program()
    rows, texts = [], []
    for question in questions:
        value, sentence = None, ""
        with _heard() as heard:
            try:
                value = question()
            except _readable() as error:
                sentence = str(error)
        texts += [sentence, text := heard.getvalue()]
        if "Traceback" in text + sentence:
            rows.append((None, ""))
        elif sentence:
            rows.append((None, sentence if names in sentence else ""))
        else:
            rows.append((picture(value), ""))
    return Answer(rows, "\n".join(texts))


@functools.cache
def _prepare_program() -> None:
    """What each command does first."""
    from kacl_jax.runtime import output

    getattr(output, "silence_late_answers", lambda: None)()


def _readable() -> tuple[type[Exception], ...]:
    from kacl_jax.runtime.errors import InterruptedRunError, NonFiniteError, UserError

    return UserError, InterruptedRunError, NonFiniteError


@contextmanager
def _heard() -> Iterator[io.StringIO]:
    """All that is written to stderr, directly or by the log."""
    text = io.StringIO()
    logger = logging.getLogger()
    others = logger.handlers
    logger.handlers = [logging.StreamHandler(text)]
    try:
        with redirect_stderr(text):
            yield text
    finally:
        logger.handlers = others


def content(folder: Path) -> Files:
    """Path → bytes of every file in the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def made_once(make: Callable[[Path], None]) -> Callable[[], Files]:
    """The files that `make` writes into a folder, made at the first call."""

    @functools.cache
    def files() -> Files:
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        make(folder / "run")
        return content(folder / "run")

    return files


def make_tables(folder: Path, fold: int = 0, seed: int = 0, **changed: Any) -> None:
    """The files of a finished run without its checkpoint."""
    from tests.finished_run import write_run

    random = np.random.default_rng([fold, seed])
    labels = np.arange(48).reshape(24, 2) // 2 % 2
    truth = [
        (i, i % 2, round(float(random.uniform(0.05, 0.95)), 3))
        for i in range(24)
        if labels[i, i % 2]
    ]
    patients = np.arange(24) // 2
    scores = random.random((24, 2)).round(4)
    write_run(
        folder, scores=scores, labels=labels, patients=patients, truth=truth, fold=fold, seed=seed, **changed
    )  # fmt: skip
    path = folder / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    leaf = {"value": 0.5, "ci95": None, "n": 1}
    parts = ("sensitivity", "specificity", "ppv", "npv")
    decision = {"value": 0.4, "youden_j": 0.2, **dict.fromkeys(parts, leaf)}
    results["classification"]["operating_point"] = dict.fromkeys(FINDINGS, decision)
    results["digests"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("predictions.csv", "boxes.csv")
    }
    path.write_text(json.dumps(results), encoding="utf-8")
    _add_fused_scores(path, scores, labels, patients)
    lines = [
        {"step": 1, "kind": "train", "loss": 0.5, "nt_xent": 2.0, "grad_norm_focal": 1.0}
        | {"grad_norm_nt_xent": 0.5, "hit_rate": 1.0, "age": 3.0, "ready": 8},
        {"step": STEP, "kind": "val", "auroc": 0.5},
        {"step": 5, "kind": "train", "loss": None, "nt_xent": 1.5, "grad_norm_focal": 1.0}
        | {"grad_norm_nt_xent": 0.5, "hit_rate": 0.5, "age": 3.5, "ready": 8},
        {"step": 2 * STEP, "kind": "val", "auroc": 0.6},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")


def _add_fused_scores(
    path: Path, scores: np.ndarray, labels: np.ndarray, patients: np.ndarray
) -> None:
    """To the results in `path` and beside them, as if network + image features + radiomics had been tested."""
    from kacl_jax.evaluation import metrics
    from kacl_jax.evaluation.predictions import CONTROL, FUSED, NETWORK
    from kacl_jax.evaluation.results import (
        Carried,
        Fused,
        FusedScores,
        RankingDifference,
        read_results,
    )

    results, folder = read_results(path), path.parent
    digests, tested = dict(results.digests or {}), {}
    for name, shift in ((FUSED, 0.5), (CONTROL, 0.25)):
        lines = (folder / NETWORK).read_text(encoding="utf-8").splitlines()
        moved = (scores + shift * labels).round(4) / 2
        for i, row_scores in enumerate(moved.tolist()):
            image, patient, part, *cells = lines[i + 2].split(",")
            numbers = [*map(str, row_scores), *cells[len(FINDINGS) :]]
            lines[i + 2] = ",".join([image, patient, part, *numbers])
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        digests[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        auroc, auprc = metrics.ranking_tables(moved, labels, patients, resamples=0)
        tested[name] = FusedScores(
            weight=1.0,
            penalties={"radiomics": 1.0, "image": 10.0},
            classification=dataclasses.replace(results.classification, auroc=auroc, auprc=auprc),
            minus_network=RankingDifference(auroc, auprc),
            subgroups={},
        )
    fused = Fused(
        kind="both",
        grid=2,
        scores=tested[FUSED],
        image_pair=tested[CONTROL],
        minus_image_pair=tested[FUSED].minus_network,
        own_scores={},
        missing_cells={"no pixels": 2},
        carried={"Mass": Carried(((0.1, 0.2), (0.3, 0.4)), {"glcm": 0.5, "shape2D": 0.1})},
    )
    results = dataclasses.replace(results, digests=digests, fused=fused)
    path.write_text(json.dumps(results.to_json()), encoding="utf-8")


def _write_fusion(folder: Path) -> None:
    """fusion.json of a run, with regressions on a few image features and on a grid of 2×2 cells."""
    from kacl_jax.evaluation.operating_points import OperatingPoint
    from kacl_jax.evaluation.platt import PlattScaling
    from kacl_jax.fusion import fused_file
    from kacl_jax.fusion.ridge import Ridge
    from kacl_jax.fusion.scores import Fusion, Moments
    from kacl_jax.radiomics import FEATURE_NAMES

    random, c = np.random.default_rng(0), len(FINDINGS)

    def numbers(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32).astype(np.float64)

    def applied(sizes: Mapping[str, int]) -> fused_file.Applied:
        ridges = {
            source: Ridge(numbers(p), numbers(p), numbers(c, p), numbers(c), 1.0, ("",) * c)
            for source, p in sizes.items()
        }
        moments = {source: Moments(numbers(c), np.abs(numbers(c))) for source in sizes}
        return fused_file.Applied(
            Fusion(ridges, moments, np.abs(numbers(c)), 0.5, ""),
            (OperatingPoint(0.4, 0.2, ""),) * c,
            (PlattScaling(1.1, -0.2, 12, 12),) * c,
        )

    saved = fused_file.SavedFusion(
        kind="both",
        grid=2,
        bin_width=25.0,
        longest=512,
        start="0" * 32,
        fused=applied({"radiomics": 4 * len(FEATURE_NAMES), "image": IMAGE_FEATURES}),
        control=applied({"image": IMAGE_FEATURES}),
    )
    fused_file.write(folder, saved, step=STEP, findings=FINDINGS)


def small_network() -> AbstractContextManager[object]:
    """ResNet-18 is two convolutions meanwhile."""
    from kacl_jax.models.encoders import ENCODERS
    from tests.tiny_run import tiny_encoder

    return mock.patch.dict(ENCODERS, resnet18=tiny_encoder())


def _make_run(folder: Path) -> None:
    import jax

    from kacl_jax import config as config_keys
    from kacl_jax.evaluation.familiarity import Familiarity
    from kacl_jax.evaluation.platt import PlattScaling
    from kacl_jax.evaluation.trained_facts import write_trained_facts
    from kacl_jax.train import checkpoint, network

    small = {"data.image_size": 64, "model.projection_dim": 8, "cam.center": "mean"}
    make_tables(folder, **small)
    config = config_keys.default()
    config.update_from_flattened_dict(small)
    rule = network.region_rule(config)
    with small_network():
        programs = network.programs(config, 1, rule, len(FINDINGS))
        shapes = jax.eval_shape(
            lambda: programs.init(network.init_variables(programs, config), rule.size)
        )
    random = np.random.default_rng(0)
    state = jax.tree.map(lambda x: random.normal(size=x.shape).astype(x.dtype), shapes)
    checkpoint.Checkpoints(folder / "checkpoints").save(
        STEP, checkpoint.to_arrays(state, "state"), {"tally": {"best_step": STEP}}, best=STEP
    )
    write_trained_facts(
        folder,
        step=STEP,
        scalings={name: PlattScaling(1.1, -0.2, 12, 12) for name in FINDINGS},
        familiarity=Familiarity(
            0.5, np.arange(16, dtype=np.float32), np.eye(16, dtype=np.float32), 3.0
        ),
        map_center=np.arange(2 * 8 * 8, dtype=np.float32).reshape(2, 8, 8),
        training_images=[
            (f"{i:08d}_000.png", str(i), "train" if i % 2 else "val", f"{i:032x}") for i in range(9)
        ],
    )
    _write_fusion(folder)


run_files = made_once(_make_run)
