from __future__ import annotations

import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from small_root import small_root

from kacl_jax.data.batches import Batch, BrokenFiles, ProcessBatches, ShardBatches, eval_batches
from kacl_jax.data.records import Records, read_records
from kacl_jax.data.splits import Split, make_split
from kacl_jax.images.reader import read_image
from kacl_jax.images.resizing import resize
from kacl_jax.runtime.errors import UserError

SIZE = 16


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """60 images of 20 patients; the grey level of a picture is its image id."""
    return read_records(small_root(patients=20, per_patient=3, boxed=10).write(tmp_path))


def pooled(records: Records) -> Split:
    return make_split(
        records,
        protocol="C",
        folds=5,
        fold=0,
        val_fraction=0.1,
        box_share=0.5,
        split_seed=0,
        version=2,
    )


def train_batches(records: Records, **changes: Any) -> ShardBatches:
    options: dict[str, Any] = {"image_size": SIZE, "batch_size": 4, "seed": 0}
    return ShardBatches(records, pooled(records), **(options | changes))


def take(source: ShardBatches, steps: int) -> list[Batch]:
    return [next(source) for _ in range(steps)]


def ids(batches: list[Batch]) -> list[int]:
    return [int(i) for batch in batches for i in batch["image_id"]]


def assert_equal(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def spoil(records: Records, *which: int) -> None:
    for i in which:
        records.images.paths[i].write_bytes(records.images.paths[i].read_bytes()[:-20])


# ---- what a batch is


@pytest.mark.parametrize("k", [1, 2])
def test_a_batch_holds_what_the_records_say(records: Records, k: int) -> None:
    boxes = np.concatenate([records.boxes / (1 + place) for place in range(k)], axis=2)
    records = dataclasses.replace(records, boxes=boxes)
    split = pooled(records)
    source = train_batches(records)
    seen_box = False
    for batch in take(source, 2 * source.steps_per_epoch):
        shapes = {key: (array.shape, array.dtype) for key, array in batch.items()}
        assert shapes == {
            "image": ((4, SIZE, SIZE, 1), np.uint8),
            "labels": ((4, 8), np.float32),
            "boxes": ((4, 8, k, 4), np.float32),
            "has_box": ((4, 8), np.bool_),
            "image_id": ((4,), np.int32),
            "patient_id": ((4,), np.int32),
        }
        i = batch["image_id"]
        assert set(i) <= set(split.train)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], i)
        np.testing.assert_array_equal(batch["labels"], records.labels[i])
        np.testing.assert_array_equal(batch["patient_id"], records.patients[i])
        np.testing.assert_array_equal(batch["has_box"], split.annotated[i])
        allowed = split.annotated[i]
        np.testing.assert_array_equal(batch["boxes"][allowed], records.boxes[i][allowed])
        # A box that training may not use is not even in the batch.
        assert not batch["boxes"][~allowed].any()
        seen_box |= bool(allowed.any())
    assert seen_box
    assert (records.has_box[split.train] & ~split.annotated[split.train]).any()


def test_pictures_are_the_named_read_and_resize(nih_root: Path) -> None:
    records = read_records(nih_root)
    image_ids = np.array([5, 900, 1787])
    (batch,) = eval_batches(records, image_ids, image_size=100, batch_size=3)
    for row, i in enumerate(image_ids):
        expected = resize(read_image(records.images.paths[i]), 100)
        np.testing.assert_array_equal(batch["image"][row, ..., 0], expected)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_narrow_grey_range_is_told_once_with_a_count(
    records: Records, caplog: pytest.LogCaptureFixture, shards: int
) -> None:
    """Twelve bits in sixteen, in three images that the first epoch reads and one that it does not."""
    own = [train_batches(records, shard=k, shards=shards) for k in range(shards)]
    source = ProcessBatches(own)
    per_epoch = source.steps_per_epoch
    first = ids(take(source, per_epoch))
    others = sorted(set(range(60)) - set(first))
    for i in (*first[:3], others[0]):
        pixels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
        cv2.imwrite(str(records.images.paths[i]), pixels)
    own = [train_batches(records, shard=k, shards=shards) for k in range(shards)]
    source = ProcessBatches(own)
    with caplog.at_level(logging.WARNING):
        take(source, per_epoch - 1)
        assert not caplog.records
        take(source, 1 + 2 * per_epoch)
    (record,) = caplog.records
    assert "3 of the first epoch's images are constant or nearly black" in record.getMessage()


def test_a_set_without_pictures_is_refused_at_the_first_batch(records: Records) -> None:
    for path in records.images.paths:
        cv2.imwrite(str(path), np.zeros((24, 24), np.uint8))
    with pytest.raises(UserError, match="4 of the first 4 images have one grey value only"):
        next(ProcessBatches([train_batches(records)]))


# ---- order


def test_the_seed_and_nothing_else_decides_the_order(records: Records) -> None:
    one = take(train_batches(records), 25)
    assert_equal(one, take(train_batches(records, threads=5), 25))
    for other in (1, 2, 2**40):
        assert ids(take(train_batches(records, seed=other), 25)) != ids(one)
    # Neighbouring seeds do not run through each other's epochs.
    steps = train_batches(records).steps_per_epoch
    first = [
        tuple(ids(take(train_batches(records, seed=s), 2 * steps))[4 * steps :]) for s in range(3)
    ]
    second = [tuple(ids(take(train_batches(records, seed=s), steps))) for s in range(3)]
    assert not set(first) & set(second)


def test_every_epoch_is_another_order_of_the_same_images(records: Records) -> None:
    train = set(pooled(records).train.tolist())
    source = train_batches(records, batch_size=5)
    epochs = [ids(take(source, source.steps_per_epoch)) for _ in range(30)]
    assert source.steps_per_epoch == len(train) // 5
    assert len(train) % 5  # some images are left over …
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch)
        assert set(epoch) <= train
    assert len({tuple(epoch) for epoch in epochs}) == 30
    assert set().union(*epochs) == train  # … others every time


@pytest.mark.parametrize("stop", [0, 1, 3, 10, 11, 25])
def test_a_restored_state_gives_the_same_next_batches(records: Records, stop: int) -> None:
    source = train_batches(records, batch_size=3)
    take(source, stop)
    state = json.loads(json.dumps(source.get_state()))
    expected = take(source, 20)
    fresh = train_batches(records, batch_size=3)
    take(fresh, 2)
    fresh.set_state(state)
    assert_equal(take(fresh, 20), expected)
    source.set_state(state)  # the used one too, prefetched batches and all
    assert_equal(take(source, 20), expected)


def test_taking_the_state_is_cheap(records: Records) -> None:
    source = train_batches(records)
    next(source)
    start = time.perf_counter()
    for _ in range(100):
        source.get_state()
    assert (time.perf_counter() - start) / 100 < 0.005


# ---- shards


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_shards_are_disjoint_and_cover_the_training_images(records: Records, shards: int) -> None:
    train = set(pooled(records).train.tolist())
    sources = [train_batches(records, batch_size=2, shard=k, shards=shards) for k in range(shards)]
    steps = {source.steps_per_epoch for source in sources}
    assert steps == {len(train) // shards // 2}
    (steps_per_epoch,) = steps
    per_shard = []
    for source in sources:
        epochs = [set(ids(take(source, steps_per_epoch))) for _ in range(20)]
        assert all(len(epoch) == 2 * steps_per_epoch for epoch in epochs)
        per_shard.append(set().union(*epochs))
    # Cut before shuffling: over twenty epochs no image has changed its shard.
    assert sum(map(len, per_shard)) == len(train)
    assert set().union(*per_shard) == train


def test_a_shard_that_fills_no_batch_is_told(records: Records) -> None:
    with pytest.raises(UserError, match=r"do not fill a batch of 40.*batch_size"):
        train_batches(records, shards=2, batch_size=40)
    with pytest.raises(ValueError, match="shard 2 of 2"):
        train_batches(records, shard=2, shards=2)


def test_a_split_of_other_records_is_refused(records: Records) -> None:
    other = dataclasses.replace(records, patients=records.patients[::-1])
    with pytest.raises(ValueError, match="other records"):
        ShardBatches(other, pooled(records), image_size=SIZE, batch_size=4, seed=0)


# ---- broken files


def test_raise_names_the_file_and_the_flag(records: Records) -> None:
    broken = int(pooled(records).train[7])
    spoil(records, broken)
    source = train_batches(records)
    with pytest.raises(UserError) as caught:
        take(source, source.steps_per_epoch + 1)
    assert records.names[broken] in str(caught.value)
    assert "truncated" in str(caught.value)
    assert "--config.data.on_error=skip" in str(caught.value)


def test_skip_leaves_the_file_out_and_names_it_once(
    records: Records, caplog: pytest.LogCaptureFixture
) -> None:
    train = pooled(records).train
    gone = [int(train[3]), int(train[20])]
    spoil(records, gone[0])
    records.images.paths[gone[1]].unlink()
    source = train_batches(records, on_error="skip")
    with caplog.at_level(logging.WARNING, logger="kacl_jax"):
        seen = take(source, 6 * source.steps_per_epoch)
    assert {len(batch["image_id"]) for batch in seen} == {4}
    assert set(ids(seen)) == set(train.tolist()) - set(gone)
    expected = sorted(str(records.images.paths[i]) for i in gone)
    assert list(source.broken.as_dict()) == expected
    assert len(source.broken.as_dict()) == 2
    log_lines = [record.getMessage() for record in caplog.records]
    assert sorted(path for path in expected for line in log_lines if path in line) == expected


def test_skip_resumes_to_the_same_batches(records: Records) -> None:
    train = pooled(records).train
    spoil(records, *(int(i) for i in train[::6]))
    for stop in range(1, 15, 3):
        source = train_batches(records, on_error="skip", batch_size=3)
        take(source, stop)
        state = source.get_state()
        expected = take(source, 12)
        fresh = train_batches(records, on_error="skip", batch_size=3)
        fresh.set_state(state)
        assert_equal(take(fresh, 12), expected)


def test_a_root_of_broken_files_does_not_search_for_ever(records: Records) -> None:
    spoil(records, *(int(i) for i in pooled(records).train[2:]))
    with pytest.raises(UserError, match="do not fill a batch"):
        next(train_batches(records, on_error="skip"))
    with pytest.raises(UserError, match="'raise' or 'skip', not 'ignore'"):
        train_batches(records, on_error="ignore")


def test_broken_files_of_other_parts_are_not_missed_in_training(records: Records) -> None:
    """Of `spare` images more than fill a batch, as many may be broken, whatever the validation part has lost."""
    split = pooled(records)
    spare = 2
    source = train_batches(records, on_error="skip", batch_size=len(split.train) - spare)
    lost = split.train[:spare], split.val
    spoil(records, *(int(i) for i in np.concatenate(lost)))
    options: dict[str, Any] = {"image_size": SIZE, "batch_size": 4, "on_error": "skip"}
    assert not list(eval_batches(records, split.val, broken=source.broken, **options))
    assert set(ids([next(source)])) <= set(split.train[spare:].tolist())


# ---- evaluation


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8])
def test_evaluation_sees_each_image_once_in_order(records: Records, count: int) -> None:
    image_ids = np.random.default_rng(0).permutation(60)[:count]
    batches = list(eval_batches(records, image_ids, image_size=SIZE, batch_size=4))
    assert len(batches) == -(-count // 4)
    valid = np.concatenate([batch["valid"] for batch in batches])
    assert valid.tolist() == [True] * count + [False] * (-count % 4)
    i = np.concatenate([batch["image_id"] for batch in batches])
    np.testing.assert_array_equal(i[valid], image_ids)
    assert (i[~valid] == -1).all()
    for batch in batches:
        assert set(batch) == {"image", "labels", "image_id", "patient_id", "valid"}
        assert batch["image"].shape == (4, SIZE, SIZE, 1)
        v = batch["valid"]
        np.testing.assert_array_equal(batch["image"][v][:, 0, 0, 0], batch["image_id"][v])
        np.testing.assert_array_equal(batch["labels"][v], records.labels[batch["image_id"][v]])
        assert not batch["labels"][~v].any()
        assert not batch["image"][~v].any()


def test_evaluation_without_images_has_no_batches(records: Records) -> None:
    assert not list(eval_batches(records, np.array([], int), image_size=SIZE, batch_size=4))


def test_evaluation_and_broken_files(records: Records) -> None:
    spoil(records, 2, 5)
    image_ids = np.arange(9)
    with pytest.raises(UserError, match=r"00000001_002\.png: is truncated.*on_error=skip"):
        list(eval_batches(records, image_ids, image_size=SIZE, batch_size=4))
    broken = BrokenFiles()
    batches = list(
        eval_batches(
            records, image_ids, image_size=SIZE, batch_size=4, on_error="skip", broken=broken
        )
    )
    assert [i for i in ids(batches) if i >= 0] == [0, 1, 3, 4, 6, 7, 8]
    assert [len(batch["valid"]) for batch in batches] == [4, 4]
    assert list(broken.as_dict()) == [str(records.images.paths[i]) for i in (2, 5)]


def test_sizes_may_differ_inside_a_batch(records: Records) -> None:
    cv2.imwrite(str(records.images.paths[1]), np.full((50, 30), 1, np.uint8))
    (batch,) = eval_batches(records, np.array([0, 1]), image_size=SIZE, batch_size=2)
    assert batch["image"][:, 3, 3, 0].tolist() == [0, 1]
