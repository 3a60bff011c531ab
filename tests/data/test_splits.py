from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_root import small_root

from kacl_jax.data.records import Records, read_records
from kacl_jax.data.splits import Split, make_split
from kacl_jax.runtime.errors import UserError

PROTOCOLS = ("A", "B", "C")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """60 patients with 3 images each; 30 of them official test, 20 of these boxed once."""
    root = small_root(patients=60, per_patient=3, boxed=20)
    path = root.write(tmp_path_factory.mktemp("root"), images=False)
    return read_records(path, check_images=False)


@pytest.fixture(scope="module")
def nih(nih_metadata_root: Path) -> Records:
    return read_records(nih_metadata_root, check_images=False)


def split(records: Records, protocol: str, **changes: Any) -> Split:
    options = {
        "folds": 5,
        "fold": 1,
        "val_fraction": 0.1,
        "box_share": 0.0 if protocol == "A" else 1.0,
        "split_seed": 0,
        "version": 2,
    }
    return make_split(records, protocol=protocol, **(options | changes))


def patients(records: Records, where: np.ndarray) -> set[int]:
    return set(records.patients[where].tolist())


# ---- what each protocol is


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("fold", range(5))
def test_no_patient_is_trained_or_tuned_on_and_scored(
    records: Records, protocol: str, fold: int
) -> None:
    s = split(records, protocol, fold=fold)
    parts = [patients(records, ids) for ids in (s.train, s.val, s.test)]
    assert all(parts)
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert patients(records, s.annotated.any(1)) <= parts[0]
    assert patients(records, s.scored.any(1)) <= parts[2]
    assert s.scored.any()
    assert not (s.scored & ~records.has_box).any()
    for give, score in s.floors:
        assert give.any()
        assert score.any()
        assert not patients(records, give.any(1)) & patients(records, score.any(1))
    np.testing.assert_array_equal(np.any([score for _, score in s.floors], axis=0), s.scored)


def test_weak_is_the_official_lists_without_boxes(nih: Records) -> None:
    s = split(nih, "A")
    assert s.name == "A-weak"
    assert s.fold is None
    assert not s.annotated.any()
    assert s.scored.sum() == 984
    np.testing.assert_array_equal(s.test, np.flatnonzero(nih.official_test))
    assert len(s.train) + len(s.val) == 86_524
    assert len(patients(nih, s.val)) == 2_801  # a tenth of 28,008
    sizes = [len(patients(nih, score.any(1))) for _, score in s.floors]
    assert sorted(sizes) == [145, 145, 145, 145, 146]  # 726 patients
    for give, score in s.floors:
        np.testing.assert_array_equal(give ^ score, s.scored)


def test_semi_adds_four_folds_of_boxed_images(nih: Records) -> None:
    boxed = nih.has_box.any(1)
    seen = np.zeros_like(nih.has_box)
    for fold in range(5):
        s = split(nih, "B", fold=fold)
        assert s.name == f"B-semi-fold{fold}of5"
        added = s.train[nih.official_test[s.train]]
        trained = patients(nih, added)
        np.testing.assert_array_equal(
            added, np.flatnonzero(boxed & np.isin(nih.patients, ids_of(trained)))
        )
        assert s.annotated.sum() + s.scored.sum() == 984
        # AUROC: the official test patients none of whose boxes were trained on.
        expected = nih.official_test & ~np.isin(nih.patients, ids_of(trained))
        np.testing.assert_array_equal(s.test, np.flatnonzero(expected))
        assert not nih.official_test[s.val].any()
        assert len(s.train) - len(added) + len(s.val) == 86_524
        assert not (seen & s.scored).any()
        seen |= s.scored
    np.testing.assert_array_equal(seen, nih.has_box)


def ids_of(ids: set[int]) -> np.ndarray:
    return np.array(sorted(ids))


def test_pooled_folds_cover_everything_once(nih: Records) -> None:
    tested = np.zeros(len(nih.names), int)
    for fold in range(5):
        s = split(nih, "C", fold=fold)
        tested[s.test] += 1
        assert len(patients(nih, s.test)) == 30_805 / 5
        assert sorted([*s.train, *s.val, *s.test]) == list(range(len(nih.names)))
        np.testing.assert_array_equal(
            s.scored, nih.has_box & np.isin(np.arange(len(nih.names)), s.test)[:, None]
        )
        assert len(patients(nih, s.val)) == round(0.1 * 30_805 * 4 / 5)
        assert nih.has_box[s.val].any()  # boxed patients validate too; their boxes are not used
        assert not s.annotated[s.val].any()
    assert (tested == 1).all()


def test_validation_and_folds_follow_the_written_rule(records: Records) -> None:
    """The rule of the module's docstring, written down a second time."""

    def order(role: str, of: set[int]) -> list[int]:
        return sorted(of, key=lambda p: hashlib.sha256(f"7:{role}:{p}".encode()).digest())

    everyone = set(records.patients.tolist())
    next_fold = set(order("fold", everyone)[3::5])
    for version in (1, 2):
        s = split(records, "C", split_seed=7, fold=2, version=version)
        assert patients(records, s.test) == set(order("fold", everyone)[2::5])
        others = everyone - patients(records, s.test)
        able = others if version == 1 else next_fold
        assert patients(records, s.val) == set(order("val", able)[: round(0.1 * len(others))])


@pytest.mark.parametrize("folds, val_fraction", [(2, 0.5), (5, 0.1), (5, 0.25), (7, 0.1)])
def test_no_patient_validates_in_two_folds(
    records: Records, folds: int, val_fraction: float
) -> None:
    """Version 1 lets patients validate twice, where there are more than two folds."""
    for version in (1, 2):
        parts = [
            patients(records, s.val)
            for s in (
                split(
                    records, "C", folds=folds, fold=fold, val_fraction=val_fraction, version=version
                )
                for fold in range(folds)
            )
        ]
        is_disjoint = len(set().union(*parts)) == sum(map(len, parts))
        assert is_disjoint == (version == 2 or folds == 2)


def test_the_version_changes_only_who_validates_and_only_under_c(records: Records) -> None:
    for protocol in PROTOCOLS:
        first, second = (split(records, protocol, version=v) for v in (1, 2))
        assert (first.hash == second.hash) == (protocol != "C")
        np.testing.assert_array_equal(first.test, second.test)
        np.testing.assert_array_equal(first.scored, second.scored)
        assert len(patients(records, first.val)) == len(patients(records, second.val))


def test_validation_patients_are_like_all_patients(nih: Records) -> None:
    """Labels and boxes of the validation parts of two folds, against their share of the images or patients."""
    val = np.concatenate([split(nih, "C", fold=fold).val for fold in (0, 3)])
    share = len(patients(nih, val)) / np.unique(nih.patients).size
    labels = nih.labels[val].sum(0) / (share * nih.labels.sum(0))
    np.testing.assert_allclose(labels, 1, atol=0.2)
    boxed = patients(nih, val[nih.has_box[val].any(1)])
    assert len(boxed) == pytest.approx(share * 726, rel=0.25)


def test_shares_of_boxes_are_nested(nih: Records) -> None:
    before = np.zeros_like(nih.has_box)
    full = split(nih, "B")
    for share in (0.0, 0.05, 0.2, 1.0):
        s = split(nih, "B", box_share=share)
        assert not (before & ~s.annotated).any()
        boxed = patients(nih, s.train) & patients(nih, nih.has_box.any(1))
        annotated_patients = patients(nih, s.annotated.any(1))
        assert len(annotated_patients) == round(share * len(boxed))
        # All of a patient's boxes or none; the parts do not depend on the share.
        expected = nih.has_box & np.isin(nih.patients, ids_of(annotated_patients))[:, None]
        expected[np.setdiff1d(np.arange(len(expected)), s.train)] = False
        np.testing.assert_array_equal(s.annotated, expected)
        for part in ("train", "val", "test", "scored"):
            np.testing.assert_array_equal(getattr(s, part), getattr(full, part))
        before = s.annotated


def test_several_boxes_of_a_pair_are_one_choice_and_counted_one_by_one(records: Records) -> None:
    twice = dataclasses.replace(records, boxes=np.repeat(records.boxes, 2, axis=2))
    one, other = split(records, "C"), split(twice, "C")
    assert other.hash == one.hash
    for r, times in ((records, 1), (twice, 2)):
        counts = times * one.annotated.sum(), times * one.scored.sum()
        assert one.describe(r).endswith(f"{counts[0]} boxes to train on, {counts[1]} scored")


def test_the_hash_names_the_split(records: Records) -> None:
    hashes = {
        split(records, "A").hash,
        *(split(records, p, fold=f).hash for p in "BC" for f in range(5)),
        split(records, "C", split_seed=1).hash,
        split(records, "C", val_fraction=0.2).hash,
        split(records, "C", box_share=0.5).hash,
    }
    assert len(hashes) == 14
    assert all(len(h) == 12 and int(h, 16) >= 0 for h in hashes)
    assert split(records, "C").hash == split(records, "C").hash
    renamed = dataclasses.replace(records, names=np.char.add("x", records.names))
    assert split(renamed, "C").hash != split(records, "C").hash


# ---- what cannot be built


def move(s: Split, into: str, ids: np.ndarray) -> dict[str, np.ndarray]:
    return {into: np.concatenate([getattr(s, into), ids])}


def with_cell(mask: np.ndarray, image: int, column: int = 0) -> np.ndarray:
    mask = mask.copy()
    mask[image, column] = True
    return mask


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("one, other", [("train", "test"), ("val", "test"), ("train", "val")])
def test_a_patient_in_two_parts_cannot_be_built(
    records: Records, protocol: str, one: str, other: str
) -> None:
    s = split(records, protocol)
    for giver, taker in ((one, other), (other, one)):
        ids = getattr(s, giver)
        with pytest.raises(UserError, match=f"both {one} and {other}"):
            dataclasses.replace(s, **move(s, taker, ids[:1]))  # the very image
        mine = ids[records.patients[ids] == records.patients[ids[0]]]
        if mine.size > 1:  # another image of the patient
            rest = np.setdiff1d(ids, mine[1:])
            with pytest.raises(UserError, match=f"both {one} and {other}"):
                dataclasses.replace(s, **{giver: rest}, **move(s, taker, mine[1:]))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_boxes_in_the_wrong_part_cannot_be_built(records: Records, protocol: str) -> None:
    s = split(records, protocol)
    for ids in (s.test, s.val):
        with pytest.raises(UserError, match=r"trained on outside the train|trains on no box"):
            dataclasses.replace(s, annotated=with_cell(s.annotated, ids[0]))
    for ids in (s.train, s.val):
        with pytest.raises(UserError, match=r"scored outside the test part"):
            dataclasses.replace(s, scored=with_cell(s.scored, ids[0]))
    with pytest.raises(UserError, match=r"outside the train part|scored outside|no box"):
        dataclasses.replace(s, annotated=s.scored, scored=s.annotated)
    if protocol == "A":
        with pytest.raises(UserError, match="protocol A trains on no box"):
            dataclasses.replace(s, annotated=with_cell(s.annotated, s.train[0]))
    else:
        # Turning B or C into A does not help either.
        with pytest.raises(UserError, match="protocol A trains on no box"):
            dataclasses.replace(s, protocol="A")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_prior_that_saw_what_it_is_scored_on_cannot_be_built(
    records: Records, protocol: str
) -> None:
    s = split(records, protocol)
    (give, score), *rest = s.floors
    with pytest.raises(UserError, match="whose boxes made it"):
        dataclasses.replace(s, floors=((give | score, score), *rest))
    # Another finding, another image of the same patient: still the same patient.
    image = np.flatnonzero(score.any(1))[0]
    follow_up = np.flatnonzero(records.patients == records.patients[image])[-1]
    with pytest.raises(UserError, match="whose boxes made it"):
        dataclasses.replace(s, floors=((with_cell(give, follow_up, 7), score), *rest))
    with pytest.raises(UserError, match="twice or not at all"):
        dataclasses.replace(s, floors=((give, score), (give, score)))
    empty = np.zeros_like(give)
    with pytest.raises(UserError, match="twice or not at all"):
        dataclasses.replace(s, floors=((empty, with_cell(empty, s.train[0])),))
    if protocol != "A":
        held = np.flatnonzero(s.scored.any(1))
        half = s.scored.copy()
        half[held[::2]] = False
        with pytest.raises(UserError, match="made of boxes that are scored"):
            dataclasses.replace(s, floors=((s.scored & ~half, half),))


def test_nothing_leaks_in_afterwards(records: Records) -> None:
    s = split(records, "C")
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.test = s.train  # type: ignore[misc]
    arrays = [s.train, s.val, s.test, s.annotated, s.scored, s.patients, *s.floors[0]]
    for array in arrays:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            array.setflags(write=True)
    mine = records.has_box.copy()
    built = dataclasses.replace(s, annotated=s.annotated)
    mine[:] = True  # the caller's arrays are not the split's
    assert (built.annotated == s.annotated).all()
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(s, hash="000000000000")
    fewer = dataclasses.replace(s, train=s.train[1:], annotated=np.zeros_like(s.annotated))
    assert fewer.hash != s.hash


@pytest.mark.parametrize(
    "change, error_text",
    [
        ({"train": np.array([], int)}, "train part has no images"),
        ({"test": np.array([], int), "scored": None, "floors": ()}, "test part has no images"),
        ({"train": np.array([-1, 0])}, "does not exist"),
        ({"val": np.array([10_000])}, "does not exist"),
        ({"train": np.array([0, 0])}, "has an image twice"),
        ({"annotated": np.zeros((3, 8), bool)}, "must all be"),
        ({"annotated": np.zeros((180, 8), int)}, "must be bool"),
    ],
)
def test_nonsense_cannot_be_built(
    records: Records, change: dict[str, Any], error_text: str
) -> None:
    s = split(records, "C", box_share=0.0)
    change = {k: np.zeros_like(s.scored) if v is None else v for k, v in change.items()}
    with pytest.raises(UserError, match=error_text):
        dataclasses.replace(s, **change)


def test_a_split_has_a_known_protocol(records: Records) -> None:
    with pytest.raises(ValueError, match="no protocol 'D'"):
        dataclasses.replace(split(records, "C"), protocol="D")


# ---- what cannot be asked for


@pytest.mark.parametrize(
    "protocol, change, error_text",
    [
        ("C", {"folds": 100, "fold": 70}, "fold 70 of 100 has no image in its test part"),
        ("B", {"folds": 100, "fold": 70}, "fold 70 of 100 has no box in its test part"),
    ],
)
def test_bad_requests_are_told(
    records: Records, protocol: str, change: dict[str, Any], error_text: str
) -> None:
    with pytest.raises(UserError, match=error_text):
        split(records, protocol, **change)


def test_roots_that_cannot_give_the_split_are_told(records: Records) -> None:
    bare = dataclasses.replace(records, has_box=np.zeros_like(records.has_box))
    assert split(bare, "A").floors == ()
    for protocol in "BC":
        with pytest.raises(UserError, match="holds no box; use"):
            split(bare, protocol)
    without = split(bare, "C", box_share=0.0)
    assert not without.scored.any()
    assert not without.annotated.any()
    assert without.test.size
    stray = records.has_box.copy()
    stray[0, 0] = True
    with pytest.raises(UserError, match=r"wants every boxed image in test_list.*00000001_000"):
        split(dataclasses.replace(records, has_box=stray), "B")
    crossed = records.official_test.copy()
    crossed[0] = True  # one image of a training patient in the official test list
    with pytest.raises(UserError, match=r"are in both (train|val) and test \(1\)"):
        split(dataclasses.replace(records, official_test=crossed), "A")
