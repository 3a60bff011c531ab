"""What people add to the program, an encoder, a term of the loss, a reader of their data, is one entry of one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from safetensors.numpy import save_file

from kacl_jax.data import image_source
from kacl_jax.data.problems import Problems
from kacl_jax.images.reader import read_image
from kacl_jax.images.resizing import resize, shrink
from kacl_jax.models import encoders
from kacl_jax.runtime import files
from kacl_jax.step import loss_terms
from kacl_jax.step.loss_terms import LossTerm, Measured, TermInputs
from kacl_jax.train import job


class ArrayImages:
    """An image source of a few lines: all pictures in one array."""

    def __init__(self, pictures: np.ndarray) -> None:
        self._pictures = pictures

    def read(self, image_id: int | np.integer, size: int) -> np.ndarray:
        return resize(self._pictures[image_id], size)

    def read_shrunk(self, image_id: int | np.integer, longest: int) -> np.ndarray:
        return shrink(self._pictures[image_id], longest)


class ArrayStore:
    """A root whose pictures are in images.npz, by name."""

    def __init__(self, root: Path, problems: Problems, max_megapixels: int) -> None:
        with np.load(root / "images.npz") as file:
            self._pictures = dict(file)

    def __contains__(self, name: str) -> bool:
        return name in self._pictures

    def select(self, names: Sequence[str]) -> ArrayImages:
        return ArrayImages(np.stack([self._pictures[name] for name in names]))

    def checksums(self, image_size: int | None) -> dict[str, str]:
        return {}


def logit_size(inputs: TermInputs) -> Measured:
    """A term that keeps logits small."""
    square = (inputs.logits**2).sum(1)
    return Measured(square.sum(), jnp.ones_like(square).sum())


def tiny_weights(channels: int) -> dict[str, np.ndarray]:
    """A state dict of tiny_run's encoder. channels: of the images."""
    weights = {}
    for number, (inside, features) in enumerate(((channels, 8), (8, 16))):
        shape = (features, inside, 5, 5)
        weights[f"Conv_{number}.weight"] = (
            np.random.default_rng(0).normal(0, 0.05, shape).astype("f")
        )
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            is_one = leaf in ("weight", "running_var")
            weights[f"bn{number}.{leaf}"] = np.full(features, float(is_one), "f")
    return weights


def test_an_encoder_a_loss_term_and_a_reader_are_one_entry_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps with all three, from a file of weights for grey images; nothing else of the program knows of them."""
    root = tiny_run.write_root(tmp_path / "root")
    pictures = {path.name: read_image(path) for path in (root / "images").iterdir()}
    np.savez(root / "images.npz", **pictures)
    for path in (root / "images").iterdir():
        path.unlink()
    (root / "images").rmdir()

    monkeypatch.setitem(encoders.ENCODERS, "mine", tiny_run.tiny_encoder())
    monkeypatch.setitem(
        loss_terms.TERMS, "logit_size", LossTerm(logit_size, weight=lambda settings: 0.01)
    )
    reader = image_source.Reader(lambda root: (root / "images.npz").exists(), ArrayStore)
    monkeypatch.setitem(image_source.READERS, "npz", reader)

    config = tiny_run.get_config()
    config.data.root = str(root)
    config.model.encoder = "mine"
    config.train.epochs, config.train.warmup_epochs = 1, 0
    config.feedback.lag = 0
    weights = tiny_weights(channels=1)
    config.model.pretrained = str(tmp_path / "weights.safetensors")
    save_file(
        {f"backbone.{name}": value for name, value in weights.items()}, config.model.pretrained
    )
    config.model.input = "xrv"
    job.train_and_evaluate(config, tmp_path / "w")

    lines = files.read_json_lines(tmp_path / "w" / "metrics.jsonl")
    steps = [line for line in lines if line["kind"] == "train"]
    assert len(steps) == 3
    for line in steps:
        weighed = 0.8 * line["focal"] + 0.2 * line["nt_xent"] + 0.01 * line["logit_size"]
        assert line["loss"] == pytest.approx(weighed, rel=1e-5)
        assert line["grad_norm_logit_size"] > 0
    origin = files.read_json(tmp_path / "w" / "pretrained.json")
    assert origin["prefix"] == "backbone"
    assert origin["sha256"] == files.file_sha256(Path(config.model.pretrained))
    assert ">logit_size<" in (tmp_path / "w" / "report.html").read_text()
