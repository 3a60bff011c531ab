"""A trained network that can be applied: what `kacl_jax.load` returns, and what the command runs.

Axes: n images · b batch · s side of the network's image · c findings · u v map cells · k channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import jax
import numpy as np

from kacl_jax.evaluation.inference import hash_pixels
from kacl_jax.evaluation.platt import PlattScaling
from kacl_jax.fusion.scores import IMAGE
from kacl_jax.images.resizing import resize
from kacl_jax.predict import fused, inputs
from kacl_jax.predict.fused import Decided, Moved
from kacl_jax.predict.inputs import Xray
from kacl_jax.predict.prediction import Prediction
from kacl_jax.runtime.devices import DataParallel
from kacl_jax.step.state import TrainState
from kacl_jax.train.trained_network import TrainedNetwork, read_network

Image = str | Path | np.ndarray


class Outputs(NamedTuple):
    """logits: float32 [n c]. maps: float32 [n c u v], raw, not centred. embedding: float32 [n k]."""

    logits: np.ndarray
    maps: np.ndarray
    embedding: np.ndarray


@dataclass(frozen=True, eq=False)
class Model:
    """The best network of a run. Call it with images to get a `Prediction` of each.

    network: its parts. batch_size: images per step, as the run evaluated; the last step of a call is padded.
    """

    network: TrainedNetwork
    batch_size: int
    _parallel: DataParallel
    _state: TrainState
    _start: TrainState | None
    _step: Any

    @property
    def findings(self) -> tuple[str, ...]:
        return self.network.findings

    @property
    def uncalibrated(self) -> tuple[str, ...]:
        """The findings whose probability is the raw score; `PlattScaling.reason` says why."""
        return tuple(name for name in self.findings if self._scalings[name].reason)

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
        distances = self.network.facts.familiarity.distance(outputs.embedding)
        decided = self._decide(outputs.logits.astype(np.float64), pixels, xrays)
        center = self.network.facts.map_center
        maps = outputs.maps if center is None else outputs.maps - center

        def by_finding(values: np.ndarray) -> dict[str, Any]:
            return dict(zip(self.findings, values.tolist(), strict=True))

        return [
            Prediction(
                name=xray.name,
                notes=(
                    *xray.notes,
                    *self._training_notes(xray.name, pixels[row]),
                    *decided.moved[row].notes,
                ),
                pixels=xray.pixels,
                network_pixels=pixels[row],
                findings=self.findings,
                scores=by_finding(decided.scores[row]),
                probabilities=by_finding(decided.probabilities[row]),
                thresholds=by_finding(decided.thresholds_shown),
                positive=by_finding(decided.scores[row] >= decided.thresholds),
                calibrated={name: name not in self.uncalibrated for name in self.findings},
                maps=maps[row],
                embedding=outputs.embedding[row],
                distance=float(distances[row]),
                limit=self.network.facts.familiarity.threshold,
                unfamiliar=bool(distances[row] > self.network.facts.familiarity.threshold),
                rule=self.network.rule,
                bin_width=self.network.bin_width,
                explanations=decided.moved[row].explanations,
            )
            for row, xray in enumerate(xrays)
        ]

    def _decide(self, logits: np.ndarray, pixels: np.ndarray, xrays: Sequence[Xray]) -> Decided:
        """logits: float64 [n c], the network's own. pixels: uint8 [n s s]."""
        saved, scalings = self.network.fusion, [self._scalings[name] for name in self.findings]
        if saved is None:
            return fused.decide(
                logits, scalings, self.network.thresholds, [Moved({}, ())] * len(xrays)
            )
        pictures = [xray.pixels for xray in xrays]

        def embed() -> np.ndarray:
            return self._outputs(pixels, self._start).embedding

        logits, moved = fused.fuse(saved, self.findings, logits, pictures, embed)
        thresholds = np.array([point.threshold for point in saved.fused.points])
        return fused.decide(logits, scalings, thresholds, moved)

    @property
    def _scalings(self) -> Mapping[str, PlattScaling]:
        saved = self.network.fusion
        if saved is None:
            return self.network.facts.scalings
        return dict(zip(self.findings, saved.fused.scalings, strict=True))

    def _network_pixels(self, xrays: Sequence[Xray]) -> np.ndarray:
        """uint8 [n s s]."""
        return np.stack([resize(xray.pixels, self.network.rule.size) for xray in xrays])

    def _outputs(self, pixels: np.ndarray, state: TrainState | None = None) -> Outputs:
        """pixels: uint8 [n s s]. state: on the devices; by default that of the best checkpoint."""
        state = self._state if state is None else state
        batches = []
        for start in range(0, len(pixels), self.batch_size):
            batch = pixels[start : start + self.batch_size, :, :, None]
            padding = [(0, self.batch_size - len(batch)), (0, 0), (0, 0), (0, 0)]
            (on_devices,) = self._step(
                state, self._parallel.shard({"image": np.pad(batch, padding)})
            )
            arrays = self._parallel.fetch(on_devices, "sharded")
            batches.append({name: values[: len(batch)] for name, values in arrays.items()})
        return Outputs(*(np.concatenate([b[name] for b in batches]) for name in Outputs._fields))

    def _training_notes(self, name: str, pixels: np.ndarray) -> list[str]:
        trained = self.network.facts.training_images
        same_pixels = trained.name_of_pixels.get(hash_pixels(pixels).tobytes().hex())
        if same_pixels is not None:
            return [f"the run was trained or tuned on this image ({same_pixels})"]
        if Path(name).name in trained.names:
            return ["the run was trained or tuned on an image of this name, with other pixels"]
        return []


def load(run: str | Path) -> Model:
    """See `kacl_jax.load`."""
    network = read_network(Path(run).expanduser().absolute())
    parallel = DataParallel(network.parallel_mode, jax.local_devices())
    return Model(
        network=network,
        batch_size=-(-network.batch_size // parallel.n_devices) * parallel.n_devices,
        _parallel=parallel,
        _state=parallel.replicate(network.state),
        _start=parallel.replicate(network.start()) if _needs_start(network) else None,
        _step=parallel.compile(network.eval_step, ("sharded",)),
    )


def _needs_start(network: TrainedNetwork) -> bool:
    return network.fusion is not None and IMAGE in network.fusion.fused.fusion.ridges


def _mean_with_mirror(outputs: Outputs, mirrored: Outputs) -> Outputs:
    """Logits and maps averaged; the embedding is the image's own."""
    return Outputs(
        (outputs.logits + mirrored.logits) / 2,
        (outputs.maps + mirrored.maps[..., ::-1]) / 2,
        outputs.embedding,
    )
