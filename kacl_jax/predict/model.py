"""A trained network that can be applied: what `kacl_jax.load` returns, and what the command runs.

Axes: n images · b batch · s side of the network's image · c findings · u v map cells · k channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy.special import expit, logit

from kacl_jax import config as config_keys
from kacl_jax.config.stored import read_config
from kacl_jax.evaluation.inference import hash_pixels
from kacl_jax.evaluation.platt import calibrate
from kacl_jax.evaluation.results import read_results
from kacl_jax.evaluation.trained_facts import TrainedFacts, read_trained_facts
from kacl_jax.images.resizing import resize
from kacl_jax.predict import inputs
from kacl_jax.predict.inputs import Xray
from kacl_jax.predict.prediction import Prediction
from kacl_jax.report.features import Moments
from kacl_jax.runtime.devices import DataParallel
from kacl_jax.runtime.errors import UserError
from kacl_jax.step.regions import RegionRule
from kacl_jax.step.state import TrainState
from kacl_jax.train import checkpoint, network

Image = str | Path | np.ndarray


class Outputs(NamedTuple):
    """logits: float32 [n c]. maps: float32 [n c u v], raw, not centred. embedding: float32 [n k]."""

    logits: np.ndarray
    maps: np.ndarray
    embedding: np.ndarray


@dataclass(frozen=True, eq=False)
class Model:
    """The best network of a run. Call it with images to get a `Prediction` of each.

    findings: their names. thresholds: on the raw scores, float64 [c]; NaN for a finding without one.
    identity: a digest of the network's parameters.
    state: on the devices. batch_size: images per step; the last step of a call is padded.
    """

    run: Path
    config: ConfigDict
    findings: tuple[str, ...]
    thresholds: np.ndarray
    facts: TrainedFacts
    rule: RegionRule
    moments: Moments | None
    identity: str
    batch_size: int
    _parallel: DataParallel
    _state: TrainState
    _step: Any

    @overload  # mypy: a str is a sequence of str
    def __call__(  # type: ignore[overload-overlap]
        self, images: Image, *, flip: bool = ..., any_view: bool = ...
    ) -> Prediction: ...

    @overload
    def __call__(
        self, images: Sequence[Image], *, flip: bool = ..., any_view: bool = ...
    ) -> list[Prediction]: ...

    def __call__(
        self, images: Image | Sequence[Image], *, flip: bool = False, any_view: bool = False
    ) -> Prediction | list[Prediction]:
        """The findings of one image, or of each image of a sequence.

        Args:
          images: a path of a PNG, JPEG, TIFF, BMP or DICOM file, or an array [h w] of uint8 (0 black … 255 white) or
            uint16 (0 … 65535), or a sequence of these.
          flip: average logits and maps with those of the mirror image.
          any_view: take a DICOM that is no frontal chest X-ray by its tags, too.

        Raises:
          UserError: an image cannot be read; the message names it.
        """
        if isinstance(images, Image):
            return self.predict(inputs.read_all([images], any_view), flip=flip)[0]
        return self.predict(inputs.read_all(images, any_view), flip=flip)

    def embed(self, images: Image | Sequence[Image], *, any_view: bool = False) -> np.ndarray:
        """Embeddings float32 [n k] of n images: the mean of the feature map's cells. Arguments as in a call."""
        listed = [images] if isinstance(images, Image) else list(images)
        return self._outputs(self._network_pixels(inputs.read_all(listed, any_view))).embedding

    def predict(self, xrays: Sequence[Xray], *, flip: bool = False) -> list[Prediction]:
        """As a call, from images that were read."""
        if not xrays:
            return []
        pixels = self._network_pixels(xrays)
        outputs = self._outputs(pixels)
        if flip:
            outputs = _mean_with_mirror(outputs, self._outputs(pixels[:, :, ::-1]))
        distances = self.facts.familiarity.distance(outputs.embedding)
        scores = expit(outputs.logits.astype(np.float64))
        probabilities = self._calibrate(outputs.logits.astype(np.float64))
        thresholds = self._calibrate(logit(self.thresholds)[None])[0]
        center = self.facts.map_center
        maps = outputs.maps if center is None else outputs.maps - center

        def by_finding(values: np.ndarray) -> dict[str, Any]:
            return dict(zip(self.findings, values.tolist(), strict=True))

        return [
            Prediction(
                name=xray.name,
                notes=(*xray.notes, *self._training_notes(xray.name, pixels[row])),
                pixels=xray.pixels,
                network_pixels=pixels[row],
                findings=self.findings,
                scores=by_finding(scores[row]),
                probabilities=by_finding(probabilities[row]),
                thresholds=by_finding(thresholds),
                positive=by_finding(scores[row] >= self.thresholds),
                maps=maps[row],
                embedding=outputs.embedding[row],
                distance=float(distances[row]),
                unfamiliar=bool(distances[row] > self.facts.familiarity.threshold),
                rule=self.rule,
                bin_width=self.config.radiomics.bin_width,
            )
            for row, xray in enumerate(xrays)
        ]

    def _calibrate(self, logits: np.ndarray) -> np.ndarray:
        return calibrate(logits, [self.facts.scalings[name] for name in self.findings])

    def _network_pixels(self, xrays: Sequence[Xray]) -> np.ndarray:
        """uint8 [n s s]."""
        return np.stack([resize(xray.pixels, self.config.data.image_size) for xray in xrays])

    def _outputs(self, pixels: np.ndarray) -> Outputs:
        """pixels: uint8 [n s s]."""
        batches = []
        for start in range(0, len(pixels), self.batch_size):
            batch = pixels[start : start + self.batch_size, :, :, None]
            padding = [(0, self.batch_size - len(batch)), (0, 0), (0, 0), (0, 0)]
            (on_devices,) = self._step(
                self._state, self._parallel.shard({"image": np.pad(batch, padding)})
            )
            arrays = self._parallel.fetch(on_devices, "sharded")
            batches.append({name: values[: len(batch)] for name, values in arrays.items()})
        return Outputs(*(np.concatenate([b[name] for b in batches]) for name in Outputs._fields))

    def _training_notes(self, name: str, pixels: np.ndarray) -> list[str]:
        trained = self.facts.training_images
        same_pixels = trained.name_of_pixels.get(hash_pixels(pixels).tobytes().hex())
        if same_pixels is not None:
            return [f"the run was trained or tuned on this image ({same_pixels})"]
        if Path(name).name in trained.names:
            return ["the run was trained or tuned on an image of this name, with other pixels"]
        return []


def load(run: str | Path) -> Model:
    """The best network of a finished run.

    Args:
      run: its workdir, for example runs/nih.

    Raises:
      UserError: the folder is no finished run, or one of its files is missing, damaged or of another version.
    """
    run = Path(run).expanduser().absolute()
    if not (run / "config.json").is_file():
        raise UserError(f"{run} is not the folder of a run: it has no config.json")
    if not (run / "results.json").is_file():
        raise UserError(
            f"{run} has no results.json: the run is not finished; go on with its own command (run.json names it)"
        )
    config = config_keys.default()
    with config.unlocked():
        config.update_from_flattened_dict(read_config(run))
    results = read_results(run / "results.json")
    facts = read_trained_facts(
        run,
        step=results.best_step,
        findings=results.findings,
        centred=config.cam.center == "mean",
    )
    rule = network.region_rule(config)
    programs = network.programs(config, 1, rule)  # the number of steps matters to training only
    restored = checkpoint.read_checkpoint(run / "checkpoints", results.best_step)
    size = config.data.image_size
    template = jax.eval_shape(
        lambda: programs.init(network.init_variables(programs, config), size)
    ).replace(opt_state=())
    state = checkpoint.from_arrays(template, restored.arrays, "state")
    parallel = DataParallel(config.parallel.mode, jax.local_devices())
    points = results.classification.operating_point
    moments = Moments(np.asarray(state.feature_mean), np.asarray(state.feature_var))
    return Model(
        run=run,
        config=config,
        findings=results.findings,
        thresholds=np.array([points[name].value for name in results.findings]),
        facts=facts,
        rule=rule,
        moments=moments if int(state.feature_count) else None,
        identity=_digest(
            checkpoint.to_arrays({"params": state.params, "batch_stats": state.batch_stats}, "")
        ),
        batch_size=-(-config.eval.batch_size // parallel.n_devices) * parallel.n_devices,
        _parallel=parallel,
        _state=parallel.replicate(state),
        _step=parallel.compile(programs.eval_step, ("sharded",)),
    )


def _mean_with_mirror(outputs: Outputs, mirrored: Outputs) -> Outputs:
    """Logits and maps averaged; the embedding is the image's own."""
    return Outputs(
        (outputs.logits + mirrored.logits) / 2,
        (outputs.maps + mirrored.maps[..., ::-1]) / 2,
        outputs.embedding,
    )


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
