"""Several processes share the images, the batches and the feedback state of one run without loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from same_run import config

from kacl_jax.data.batches import images_of_shards, shards_of_process
from kacl_jax.feedback.checkpoint_state import (
    Pending,
    decode_counters,
    encode_counters,
    join_states,
    keep_rows_of_images,
    pack_pending,
    state_of_process,
    unpack_pending,
)
from kacl_jax.feedback.result import Result
from kacl_jax.radiomics import FEATURE_NAMES
from kacl_jax.runtime import processes
from kacl_jax.train import experiment

SHARDS = 2


@pytest.mark.parametrize("n_processes", [1, 2, 4])
def test_every_image_belongs_to_one_process(n_processes: int) -> None:
    train_ids = np.arange(100, 141)
    parts = [
        images_of_shards(train_ids, shards_of_process(4, index=i, n_processes=n_processes), 4)
        for i in range(n_processes)
    ]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), train_ids)


def test_one_process_draws_the_batches_of_two(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row for row, over the end of an epoch, and after going on from a saved state."""

    def batches(index: int, n_processes: int) -> Any:
        c = config(root, data__shards=SHARDS)
        monkeypatch.setattr(processes, "process_index", lambda: index)
        monkeypatch.setattr(processes, "process_count", lambda: n_processes)
        return experiment.make_batches(c, *experiment.read_data(c, tmp_path))

    one, two = batches(0, 1), [batches(i, 2) for i in range(2)]
    for step in range(5):
        if step == 2:
            states = [state for half in two for state in half.get_state()]
            assert one.get_state() == states
            one = batches(0, 1)
            one.set_state(states)
        expected = [next(half) for half in two]
        batch = next(one)
        for name, rows in batch.items():
            np.testing.assert_array_equal(rows, np.concatenate([b[name] for b in expected]))
        assert set(expected[0]["image_id"]).isdisjoint(expected[1]["image_id"])


def test_a_feedback_state_is_shared_out_and_joined_without_loss() -> None:
    rng = np.random.default_rng(0)
    n, width, images = 12, len(FEATURE_NAMES), [np.arange(0, 10, 2), np.arange(1, 10, 2)]
    crops = [(rng.integers(0, 255, (3, k), np.uint8), rng.random((3, k)) < 0.5) for k in (4, 7, 5)]
    pending = [
        Pending(4, 2, crops[0]),
        Pending(4, 1, Result(np.ones(width, np.float32), None, True)),
        Pending(4, 3, crops[1]),
        Pending(5, 0, Result(None, "flat", True)),
        Pending(5, 5, crops[2]),
    ]
    arrays, results = pack_pending(pending, width)
    counts = {"submitted": 9, "computed": 8}
    content = {"counts": counts, "failures": {"flat": 1}, "waits_s": 1.5, "reproducible": False}
    state = {
        "step": np.array([5], np.int32),
        "features": rng.random((n, width), np.float32),
        "ready": rng.random(n) < 0.5,
        "features_step": rng.integers(0, 5, n, np.int32),
        **arrays,
        "told": encode_counters({**content, "results": results}),
    }
    for name, empty in (("features", 0), ("ready", False), ("features_step", -1)):
        state[name][10:] = empty  # no training images
    shares = [state_of_process(state, images[i], counts=i == 0) for i in (0, 1)]
    own = [
        [(p.step, p.image) for p in unpack_pending(s, decode_counters(s)["results"])]
        for s in shares
    ]
    assert own == [[(4, 2), (5, 0)], [(4, 1), (4, 3), (5, 5)]]
    # What one process holds of the other's rows is old and must not count.
    shares[0]["features"] = np.where(np.arange(n)[:, None] % 2, -1, shares[0]["features"])
    parts = [keep_rows_of_images(s, i) for s, i in zip(shares, images, strict=True)]
    whole = join_states(parts, n)
    assert whole.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(whole[name], array, err_msg=name)
        assert whole[name].dtype == array.dtype
