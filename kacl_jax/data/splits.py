"""Splits the images into training, validation and test, and says which truth boxes each part may use.

Protocols: A 'weak', official lists and no box in training; B 'semi', official lists, and training
also uses the boxed images of four of five patient folds with their boxes; C 'pooled', patient folds
over all images of the root.

Every choice between patients sorts them by sha256(split_seed, role, patient id) and takes the first
ones. So a share of boxes contains every smaller share, and no library's random numbers decide a
fold. Nothing here depends on the training seed.

Version 2 of the split differs from version 1 under C only: fold k validates on patients of fold k + 1, the test part
of the next run. So no patient validates in two folds. In version 1 they come from all other folds, and the validation
parts of two folds share patients.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from kacl_jax.data.records import Records
from kacl_jax.runtime.errors import UserError

Floors = tuple[tuple[np.ndarray, np.ndarray], ...]
_PROTOCOL_NAMES = {"A": "weak", "B": "semi", "C": "pooled", "E": "external"}


@dataclass(frozen=True, eq=False)
class Split:
    """The parts of one run. The constructor refuses a Split that trains or tunes on what it scores.

    All arrays are read-only copies, and `hash` is computed from them, so nobody can change a Split
    into a leaking one later (`dataclasses.replace` runs the checks and the hash again).

    Raises:
        UserError: a patient is in two parts; a scored box is outside the test part; a training box is
            outside the training part (under protocol A: there is any training box); an image-free
            prior is scored on a patient whose boxes it uses; the training or test part is empty.
    """

    protocol: str  # 'A' | 'B' | 'C', or 'E': another data set, which a finished run is tested on
    fold: int | None  # None under A and E
    name: str  # 'A-weak', 'B-semi-fold0of5', 'C-pooled-fold0of5'
    names: np.ndarray  # [n] str, all image names of the root; part of the hash
    patients: np.ndarray  # [n] int64, the patient of each image
    train: np.ndarray  # int64 image ids, sorted; no patient is in two of the three parts
    val: np.ndarray  # int64 image ids, sorted
    test: np.ndarray  # int64 image ids, sorted; AUROC is computed on these images
    # Truth boxes by image and finding: all boxes of such a pair are selected, or none.
    annotated: np.ndarray  # [n c] bool: truth boxes that training may use
    scored: np.ndarray  # [n c] bool: truth boxes that localization scores
    # Two masks bool [n c] each: truth boxes that an image-free prior is made of, boxes it is scored on.
    floors: Floors
    hash: str = field(init=False)  # 12 hex digits over all of the above

    def __post_init__(self) -> None:
        for key in ("names", "patients", "annotated", "scored"):
            object.__setattr__(self, key, _immutable_copy(getattr(self, key)))
        for key in ("train", "val", "test"):
            object.__setattr__(
                self, key, _immutable_copy(np.sort(np.asarray(getattr(self, key), np.int64)))
            )
        floors = tuple(
            (_immutable_copy(source_boxes), _immutable_copy(scored_boxes))
            for source_boxes, scored_boxes in self.floors
        )
        object.__setattr__(self, "floors", floors)
        self._check_shapes()
        self._check_parts()
        self._check_boxes()
        self._check_floors()
        object.__setattr__(self, "hash", self._hash())

    def _check_shapes(self) -> None:
        n = len(self.patients)
        masks = [self.annotated, self.scored, *(mask for pair in self.floors for mask in pair)]
        shapes = {mask.shape for mask in masks}
        if len(shapes) > 1 or self.annotated.ndim != 2 or len(self.annotated) != n:
            raise UserError(f"split {self.name}: box masks must all be [{n} c], not {shapes}")
        if any(mask.dtype != bool for mask in masks) or self.names.shape != (n,):
            raise UserError(f"split {self.name}: box masks must be bool, with {n} image names")
        if self.protocol not in _PROTOCOL_NAMES:
            raise ValueError(f"split {self.name}: no protocol {self.protocol!r}")

    def _check_parts(self) -> None:
        parts = {"train": self.train, "val": self.val, "test": self.test}
        for part, ids in parts.items():
            if ids.size and not 0 <= ids[0] <= ids[-1] < len(self.patients):
                raise UserError(f"split {self.name}: {part} has an image id that does not exist")
            if np.unique(ids).size != ids.size:
                raise UserError(f"split {self.name}: {part} has an image twice")
        for part in ("test",) if self.protocol == "E" else ("train", "test"):
            if not parts[part].size:
                raise UserError(f"split {self.name}: the {part} part has no images")
        for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
            shared = np.intersect1d(self.patients[parts[first]], self.patients[parts[second]])
            if shared.size:
                raise UserError(
                    f"split {self.name}: {shared.size} patient(s) are in both {first} and {second} "
                    f"({_format_examples(shared)}); every patient may be in one part only"
                )

    def describe(self, records: Records) -> str:
        """Name, hash and sizes in one line. records: those that the split was made from."""
        to_train_on, scored = (records.is_box[mask].sum() for mask in (self.annotated, self.scored))
        return (
            f"{self.name} ({self.hash}): {len(self.train):,} training, {len(self.val):,} validation, "
            f"{len(self.test):,} test images · {to_train_on:,} boxes to train on, {scored:,} scored"
        )

    def _check_boxes(self) -> None:
        if self.protocol == "A" and self.annotated.any():
            raise UserError(f"split {self.name}: protocol A trains on no box, by definition")
        for what, mask, part in (
            ("trained on", self.annotated, "train"),
            ("scored", self.scored, "test"),
        ):
            outside = np.setdiff1d(np.flatnonzero(_any_finding(mask)), getattr(self, part))
            if outside.size:
                raise UserError(
                    f"split {self.name}: the boxes of {outside.size} image(s) would be {what} "
                    f"outside the {part} part ({_format_examples(self.names[outside])})"
                )

    def _check_floors(self) -> None:
        scored_before = np.zeros_like(self.scored)
        for source_boxes, scored_boxes in self.floors:
            shared = np.intersect1d(
                self.patients[_any_finding(source_boxes)], self.patients[_any_finding(scored_boxes)]
            )
            if shared.size:
                raise UserError(
                    f"split {self.name}: an image-free prior is scored on {shared.size} patient(s) "
                    f"whose boxes made it ({_format_examples(shared)})"
                )
            if (scored_boxes & (scored_before | ~self.scored)).any():
                raise UserError(
                    f"split {self.name}: a prior is scored on a box twice or not at all"
                )
            if self.protocol not in "AE" and (source_boxes & self.scored).any():
                raise UserError(f"split {self.name}: a prior is made of boxes that are scored")
            scored_before |= scored_boxes

    def _hash(self) -> str:
        digest = hashlib.sha256(f"{self.name}\n".encode())
        digest.update("\n".join(self.names.tolist()).encode())
        for array in (self.patients, self.train, self.val, self.test):
            digest.update(np.ascontiguousarray(array, "<i8").tobytes() + b"|")
        for mask in (self.annotated, self.scored, *(m for pair in self.floors for m in pair)):
            digest.update(np.packbits(mask).tobytes() + b"|")
        return digest.hexdigest()[:12]


def make_split(
    records: Records,
    *,
    protocol: str,
    folds: int,
    fold: int,
    val_fraction: float,
    box_share: float,
    split_seed: int,
    version: int,
) -> Split:
    """Makes the split of one protocol and fold.

    Args:
        folds, fold: number of patient folds, and which of them is the test fold. Under A `folds` is used
            for the image-free prior only.
        val_fraction: share of the patients outside the test part who validate instead of train. In version 2 of C at
            most 1/(folds − 1): the next fold has no more patients.
        box_share: share of the training patients with boxes whose boxes training may use.
        version: 1 or 2, see above.
        The arguments are config keys; their ranges are in the table of `config/keys.py`, which the caller has checked.

    Raises:
        UserError: the root does not allow this split.
    """
    names = zip(records.patients.tolist(), records.patient_names.tolist(), strict=True)
    order = _PatientOrder(split_seed, dict(names))
    make_masks = {"A": _weak_masks, "B": _semi_masks, "C": _pooled_masks}[protocol]
    masks = make_masks(records, order, folds, fold)
    may_validate = masks.train_or_val if version == 1 else masks.may_validate
    val = may_validate & order.select_share(
        "val", records.patients, may_validate, val_fraction, of=masks.train_or_val
    )
    train = (masks.train_or_val & ~val) | masks.train_only
    scored = records.has_box & masks.test[:, None]
    if protocol == "A":
        floors = _floors_by_fold(order, records.patients, scored, folds)
    else:
        _check_fold_not_empty(records, train, masks.test, fold, folds)
        if box_share and not records.has_box.any():
            raise UserError(
                f"config.data.box_share is {box_share:g} and {records.root} holds no box; use "
                "--config.data.box_share=0 --config.loss.box_weight=0"
            )
        floors = ((records.has_box & (train | val)[:, None], scored),)
    # Select patients, not boxes: a training patient has all truth boxes annotated, or none.
    has_annotation = order.select_share(
        "boxes", records.patients, train & _any_finding(records.has_box), box_share
    )
    return Split(
        protocol=protocol,
        fold=None if protocol == "A" else fold,
        name=f"{protocol}-{_PROTOCOL_NAMES[protocol]}"
        + ("" if protocol == "A" else f"-fold{fold}of{folds}"),
        names=records.names,
        patients=records.patients,
        train=np.flatnonzero(train),
        val=np.flatnonzero(val),
        test=np.flatnonzero(masks.test),
        annotated=records.has_box & (train & has_annotation)[:, None],
        scored=scored,
        floors=floors,
    )


def external_split(records: Records, *, folds: int, split_seed: int) -> Split:
    """All images and all boxes of a data set are tested; nothing of it trains. The priors are as under A."""
    n = len(records.names)
    nothing = np.zeros(0, np.int64)
    names = zip(records.patients.tolist(), records.patient_names.tolist(), strict=True)
    order = _PatientOrder(split_seed, dict(names))
    return Split(
        protocol="E",
        fold=None,
        name="E-external",
        names=records.names,
        patients=records.patients,
        train=nothing,
        val=nothing,
        test=np.arange(n),
        annotated=np.zeros_like(records.has_box),
        scored=records.has_box,
        floors=_floors_by_fold(order, records.patients, records.has_box, folds),
    )


class _PartMasks(NamedTuple):
    """Masks over the images, bool [n] each."""

    train_or_val: np.ndarray  # images that train, or validate if their patient is chosen for it
    may_validate: np.ndarray  # those of them that version 2 takes the validation part from
    train_only: np.ndarray  # images that train and never validate
    test: np.ndarray


def _weak_masks(records: Records, order: _PatientOrder, folds: int, fold: int) -> _PartMasks:
    test = _official_test(records)
    return _PartMasks(~test, ~test, np.zeros_like(test), test)


def _semi_masks(records: Records, order: _PatientOrder, folds: int, fold: int) -> _PartMasks:
    official, boxed = _official_test(records), _any_finding(records.has_box)
    if (boxed & ~official).any():
        misplaced = records.names[boxed & ~official]
        raise UserError(
            f"protocol B wants every boxed image in test_list.txt, but {misplaced.size} are in "
            f"train_val_list.txt ({_format_examples(misplaced)}); use --config=configs/nih.py:pooled"
        )
    fold_of = order.assign_folds("fold", records.patients, boxed, folds)
    other_folds = (fold_of >= 0) & (fold_of != fold)
    return _PartMasks(~official, ~official, boxed & other_folds, official & ~other_folds)


def _official_test(records: Records) -> np.ndarray:
    if records.official_test is None:
        raise UserError(
            f"{records.root} names no test images, which protocols A and B need; add a column split to images.csv, or "
            "use --config.protocol=C"
        )
    return records.official_test


def _pooled_masks(records: Records, order: _PatientOrder, folds: int, fold: int) -> _PartMasks:
    all_images = np.ones(len(records.names), bool)
    fold_of = order.assign_folds("fold", records.patients, all_images, folds)
    test, is_next = fold_of == fold, fold_of == (fold + 1) % folds
    return _PartMasks(~test, is_next, np.zeros_like(test), test)


def _floors_by_fold(
    order: _PatientOrder, patients: np.ndarray, scored: np.ndarray, folds: int
) -> Floors:
    """The image-free priors of protocol A: each fold of scored boxes gets a prior from the other folds.

    They may use truth boxes, because they only serve as a baseline in scoring.
    """
    fold_of = order.assign_folds("fold", patients, _any_finding(scored), folds)
    nonempty_folds = np.unique(fold_of[fold_of >= 0])
    if nonempty_folds.size < 2:  # there is no other fold to make a prior from
        return ()
    return tuple(
        (
            scored & ((fold_of >= 0) & (fold_of != k))[:, None],
            scored & (fold_of == k)[:, None],
        )
        for k in nonempty_folds
    )


class _PatientOrder:
    """Selects patients in the order of sha256(split_seed, role, patient's name in the label file)."""

    def __init__(self, seed: int, names: dict[int, str]) -> None:
        self._seed, self._names = seed, names

    def _sorted_patients(self, role: str, patients: np.ndarray) -> list[int]:
        def key(patient: int) -> bytes:
            text = f"{self._seed}:{role}:{self._names[patient]}"
            return hashlib.sha256(text.encode()).digest()

        return sorted(np.unique(patients).tolist(), key=key)

    def assign_folds(
        self, role: str, patients: np.ndarray, candidates: np.ndarray, folds: int
    ) -> np.ndarray:
        """int64 [n]: the fold of each image's patient, −1 for patients without an image in `candidates`.

        The first patient gets fold 0, the next fold 1, and so on in turn.
        """
        order = self._sorted_patients(role, patients[candidates])
        fold_of = {patient: k % folds for k, patient in enumerate(order)}
        return np.array([fold_of.get(patient, -1) for patient in patients.tolist()], np.int64)

    def select_share(
        self,
        role: str,
        patients: np.ndarray,
        candidates: np.ndarray,
        share: float,
        *,
        of: np.ndarray | None = None,
    ) -> np.ndarray:
        """bool [n]: the images of the first patients in `candidates`, as many as are `share` of the patients in `of`.

        At least one patient is selected if share > 0. of: None for the candidates themselves.
        """
        order = self._sorted_patients(role, patients[candidates])
        total = len(order) if of is None else np.unique(patients[of]).size
        count = max(round(share * total), 1) if share > 0 else 0
        return np.isin(patients, np.array(order[:count], np.int64))


def _check_fold_not_empty(
    records: Records, train: np.ndarray, test: np.ndarray, fold: int, folds: int
) -> None:
    """Raises UserError if a part has no image, or no box although the root has boxes."""
    boxes = records.has_box
    for part, mask in (("train", train), ("test", test)):
        has_images, has_boxes = mask.any(), boxes[mask].any() or not boxes.any()
        for what, present in (("image", has_images), ("box", has_boxes)):
            if not present:
                raise UserError(
                    f"fold {fold} of {folds} has no {what} in its {part} part: {records.root} holds "
                    f"{len(records.names)} images and {records.is_box.sum()} boxes of "
                    f"{np.unique(records.patients[_any_finding(records.has_box)]).size} patients; "
                    "use fewer --config.folds or another --config.fold"
                )


def _any_finding(mask: np.ndarray) -> np.ndarray:
    """bool [n c] → bool [n]: whether the image has True for any finding."""
    return np.asarray(mask.any(axis=1))


def _format_examples(values: np.ndarray) -> str:
    """The first three values, separated by commas."""
    return ", ".join(map(str, values[:3].tolist())) + (" …" if values.size > 3 else "")


def _immutable_copy(array: np.ndarray) -> np.ndarray:
    """A copy in immutable bytes, which numpy never makes writeable again."""
    array = np.asarray(array)
    return np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)
