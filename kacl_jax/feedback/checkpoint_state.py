"""The feedback loop in a checkpoint: the visible feature table, and the regions whose results are not visible yet.

It is a flat dict of arrays (see `Feedback.state`). The state of one process covers the images of its shards. The
checkpoint holds the states of all processes joined, and any number of processes can resume from it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from kacl_jax.feedback.result import Result

FeedbackState = dict[str, np.ndarray]

_TABLE = ("features", "ready", "features_step")
# The name of the array of counts in checkpoints. It never changed, so that old ones resume.
COUNTERS = "told"


class Pending(NamedTuple):
    """A region whose result is not visible yet. content: the result if there is one, else the crop (pixels, mask)."""

    step: int
    image: int
    content: Result | tuple[np.ndarray, np.ndarray]


def pack_pending(
    pending: list[Pending], width: int
) -> tuple[FeedbackState, list[tuple[str | None, bool]]]:
    """Arrays and, for each finished region, (reason, deterministic). width: features of a row."""
    results = [region.content for region in pending if isinstance(region.content, Result)]
    waiting = [region.content for region in pending if not isinstance(region.content, Result)]
    nothing = np.zeros(width, np.float32)
    features = [nothing if r.features is None else r.features for r in results]
    dot = np.zeros((1, 1), np.uint8)
    pixels = [dot, *(crop[0] for crop in waiting)]
    masks = [dot, *(crop[1] for crop in waiting)]
    known = [isinstance(region.content, Result) for region in pending]
    arrays = {
        "pending_step": np.array([-1, *(region.step for region in pending)], np.int32),
        "pending_image": np.array([-1, *(region.image for region in pending)], np.int32),
        "pending_known": np.array([False, *known], bool),
        "pending_features": np.stack([nothing, *features]),
        "waiting_shape": np.array([array.shape for array in pixels], np.int32),
        "waiting_pixels": np.concatenate([array.ravel() for array in pixels]),
        "waiting_masks": np.concatenate([np.packbits(array) for array in masks]),
    }
    return arrays, [(result.reason, result.deterministic) for result in results]


def unpack_pending(
    state: FeedbackState, results: list[tuple[str | None, bool]]
) -> Iterator[Pending]:
    """The inverse of `pack_pending`."""
    answers = iter(zip(state["pending_features"][1:], results, strict=True))
    crops = _crops(state["waiting_shape"], state["waiting_pixels"], state["waiting_masks"])
    next(crops)
    rows = zip(
        state["pending_step"][1:],
        state["pending_image"][1:],
        state["pending_known"][1:],
        strict=True,
    )
    for step, image, known in rows:
        if known:
            features, (reason, deterministic) = next(answers)
            values = None if reason is not None else np.array(features, np.float32)
            yield Pending(int(step), int(image), Result(values, reason, deterministic))
        else:
            yield Pending(int(step), int(image), next(crops))


def encode_counters(content: dict[str, Any]) -> np.ndarray:
    """A state's counts and the like, as its array COUNTERS: JSON in uint8."""
    return np.frombuffer(json.dumps(content, sort_keys=True).encode(), np.uint8).copy()


def decode_counters(state: FeedbackState) -> dict[str, Any]:
    """The inverse of `encode_counters`."""
    content: dict[str, Any] = json.loads(state[COUNTERS].tobytes())
    return content


# ---- the shares of several processes --------------------------------------------------------------------------


def state_of_process(state: FeedbackState, images: np.ndarray, *, counts: bool) -> FeedbackState:
    """What of a whole state one process needs to go on: pending regions of its images, the table as it is.

    images: int [m]. counts: whether this process goes on from the totals; the others start at 0.
    """
    content = decode_counters(state)
    own = set(images.tolist())
    pending = [p for p in unpack_pending(state, content["results"]) if p.image in own]
    arrays, results = pack_pending(pending, state["features"].shape[1])
    content["results"] = results
    if not counts:
        content |= {"counts": {}, "failures": {}, "waits_s": 0.0, "reproducible": True}
    return {**state, **arrays, COUNTERS: encode_counters(content)}


def keep_rows_of_images(state: FeedbackState, images: np.ndarray) -> FeedbackState:
    """A state with the rows of these images int [m] only, which travel with it as `images`."""
    return {**state, **{name: state[name][images] for name in _TABLE}, "images": images}


def join_states(parts: list[FeedbackState], n_images: int) -> FeedbackState:
    """The whole state from the `keep_rows_of_images` of all processes, whose images are distinct.

    Regions are ordered as one process that serves all shards would have them.
    """
    first = parts[0]
    joined = {
        "step": first["step"],
        "features": np.zeros((n_images, first["features"].shape[1]), np.float32),
        "ready": np.zeros(n_images, bool),
        "features_step": np.full(n_images, -1, np.int32),
    }
    for part in parts:
        for name in _TABLE:
            joined[name][part["images"]] = part[name]
    contents = [decode_counters(part) for part in parts]
    pending = [
        region
        for part, content in zip(parts, contents, strict=True)
        for region in unpack_pending(part, content["results"])
    ]
    pending.sort(key=lambda region: region.step)  # stable: within a step the processes' order
    arrays, results = pack_pending(pending, first["features"].shape[1])
    content = {
        "counts": dict(sum((Counter(c["counts"]) for c in contents), Counter())),
        "failures": dict(sum((Counter(c["failures"]) for c in contents), Counter())),
        "waits_s": sum(c["waits_s"] for c in contents),
        "reproducible": all(c["reproducible"] for c in contents),
        "results": results,
    }
    return {**joined, **arrays, COUNTERS: encode_counters(content)}


def _crops(
    shapes: np.ndarray, pixels: np.ndarray, masks: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    at = bits_at = 0
    for height, width in shapes:
        size = int(height) * int(width)
        packed = masks[bits_at : bits_at + (size + 7) // 8]
        mask = np.unpackbits(packed, count=size).astype(bool).reshape(height, width)
        yield pixels[at : at + size].reshape(height, width).copy(), mask
        at += size
        bits_at += (size + 7) // 8
