"""Which image trains, validates or is scored, and which truth boxes each of them may see.

Protocols (paper.md's words): A 'weak', official lists and no box in training; B 'semi', official
lists plus the boxed images of four of five patient folds, with their boxes; C 'pooled', patient
folds over everything the root holds.

Every choice about a patient follows from sha256(split_seed, role, patient id): patients are
ordered by that hash, then cut. So a share of boxes contains every smaller share, and no library
decides a fold. Nothing here depends on the training seed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from kacl_jax.data.nih import Records
from kacl_jax.runtime.errors import UserError

Floors = tuple[tuple[np.ndarray, np.ndarray], ...]
_WORDS = {"A": "weak", "B": "semi", "C": "pooled"}


@dataclass(frozen=True, eq=False)
class Split:
    """The parts of one run. A Split that trains or tunes on what it scores cannot be built.

    All arrays are read-only copies, and `hash` is computed from them, so a Split cannot be turned
    into a leaking one later either (`dataclasses.replace` checks and hashes anew).

    Raises:
        UserError: a patient in two parts; a scored box outside the test part; a box for training
            outside the training part (any box at all under protocol A); an image-free prior that
            has seen a patient whom it is scored on; an empty training or test part.
    """

    protocol: str  # 'A' | 'B' | 'C'
    fold: int | None  # None under A
    name: str  # 'A-weak', 'B-semi-fold0of5', 'C-pooled-fold0of5'
    names: np.ndarray  # [n] str, the image names of the root, for the hash
    patients: np.ndarray  # [n] int64, whose image it is
    train: np.ndarray  # int64 image ids, sorted; disjoint from the next two by patient
    val: np.ndarray  # int64 image ids, sorted
    test: np.ndarray  # int64 image ids, sorted: the images whose AUROC is scored
    annotated: np.ndarray  # [n c] bool: truth boxes that training may use
    scored: np.ndarray  # [n c] bool: truth boxes that localization scores
    floors: (
        Floors  # pairs ([n c] boxes that give the image-free prior, [n c] boxes it is scored on)
    )
    hash: str = field(init=False)  # 12 hex digits over all of the above

    def __post_init__(self) -> None:
        for key in ("names", "patients", "annotated", "scored"):
            object.__setattr__(self, key, _frozen(getattr(self, key)))
        for key in ("train", "val", "test"):
            object.__setattr__(
                self, key, _frozen(np.sort(np.asarray(getattr(self, key), np.int64)))
            )
        floors = tuple((_frozen(give), _frozen(score)) for give, score in self.floors)
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
        if self.protocol not in _WORDS:
            raise UserError(f"split {self.name}: no protocol {self.protocol!r}; use A, B or C")

    def _check_parts(self) -> None:
        parts = {"train": self.train, "val": self.val, "test": self.test}
        for part, ids in parts.items():
            if ids.size and not 0 <= ids[0] <= ids[-1] < len(self.patients):
                raise UserError(f"split {self.name}: {part} has an image id that does not exist")
            if np.unique(ids).size != ids.size:
                raise UserError(f"split {self.name}: {part} has an image twice")
        for part in ("train", "test"):
            if not parts[part].size:
                raise UserError(f"split {self.name}: the {part} part has no images")
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            shared = np.intersect1d(self.patients[parts[one]], self.patients[parts[other]])
            if shared.size:
                raise UserError(
                    f"split {self.name}: {shared.size} patient(s) are in both {one} and {other} "
                    f"({_few(shared)}); every patient may be in one part only"
                )

    def describe(self) -> str:
        """Name, hash and sizes in one line."""
        return (
            f"{self.name} ({self.hash}): {len(self.train):,} training, {len(self.val):,} validation, "
            f"{len(self.test):,} test images · {self.annotated.sum():,} boxes to train on, {self.scored.sum():,} scored"
        )

    def _check_boxes(self) -> None:
        if self.protocol == "A" and self.annotated.any():
            raise UserError(f"split {self.name}: protocol A trains on no box, by definition")
        for what, mask, part in (
            ("trained on", self.annotated, "train"),
            ("scored", self.scored, "test"),
        ):
            outside = np.setdiff1d(np.flatnonzero(_rows(mask)), getattr(self, part))
            if outside.size:
                raise UserError(
                    f"split {self.name}: the boxes of {outside.size} image(s) would be {what} "
                    f"outside the {part} part ({_few(self.names[outside])})"
                )

    def _check_floors(self) -> None:
        already = np.zeros_like(self.scored)
        for give, score in self.floors:
            shared = np.intersect1d(*(self.patients[_rows(mask)] for mask in (give, score)))
            if shared.size:
                raise UserError(
                    f"split {self.name}: an image-free prior is scored on {shared.size} patient(s) "
                    f"whose boxes made it ({_few(shared)})"
                )
            if (score & (already | ~self.scored)).any():
                raise UserError(
                    f"split {self.name}: a prior is scored on a box twice or not at all"
                )
            if self.protocol != "A" and (give & self.scored).any():
                raise UserError(f"split {self.name}: a prior is made of boxes that are scored")
            already |= score

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
) -> Split:
    """The split of one protocol and fold.

    Args:
        folds, fold: patient folds; under A they only make the folds of the image-free prior.
        val_fraction: share in (0, 1) of the patients who could train that validate instead.
        box_share: share in [0, 1] of the boxed training patients whose boxes training may use.

    Raises:
        UserError: an argument out of range, or a root that cannot give this split.
    """
    _check_arguments(protocol, folds, fold, val_fraction, box_share)
    rule = _Rule(split_seed)
    part = {"A": _weak, "B": _semi, "C": _pooled}[protocol](records, rule, folds, fold)
    val = part.able & rule.first("val", records.patients, part.able, val_fraction)
    train = (part.able & ~val) | part.extra
    scored = records.has_box & part.test[:, None]
    if protocol == "A":
        floors = _folded_floors(rule, records.patients, scored, folds)
    else:
        _check_fold(records, train, part.test, fold, folds)
        if box_share and not records.has_box.any():
            raise UserError(
                f"config.data.box_share is {box_share:g} and {records.root} holds no box; use "
                "--config.data.box_share=0 --config.loss.box_weight=0"
            )
        floors = ((records.has_box & (train | val)[:, None], scored),)
    # Drawn among the patients, not the boxes: half a patient's boxes would be half a secret.
    given = rule.first("boxes", records.patients, train & _rows(records.has_box), box_share)
    return Split(
        protocol=protocol,
        fold=None if protocol == "A" else fold,
        name=f"{protocol}-{_WORDS[protocol]}"
        + ("" if protocol == "A" else f"-fold{fold}of{folds}"),
        names=records.names,
        patients=records.patients,
        train=np.flatnonzero(train),
        val=np.flatnonzero(val),
        test=np.flatnonzero(part.test),
        annotated=records.has_box & (train & given)[:, None],
        scored=scored,
        floors=floors,
    )


class _Part(NamedTuple):
    """Masks over the images, [n] bool each."""

    able: np.ndarray  # may train or validate
    extra: np.ndarray  # trains, never validates
    test: np.ndarray


def _weak(records: Records, rule: _Rule, folds: int, fold: int) -> _Part:
    test = records.official_test
    return _Part(~test, np.zeros_like(test), test)


def _semi(records: Records, rule: _Rule, folds: int, fold: int) -> _Part:
    official, boxed = records.official_test, _rows(records.has_box)
    if (boxed & ~official).any():
        stray = records.names[boxed & ~official]
        raise UserError(
            f"protocol B wants every boxed image in test_list.txt, but {stray.size} are in "
            f"train_val_list.txt ({_few(stray)}); use --config=configs/nih.py:pooled"
        )
    fold_of = rule.folds("fold", records.patients, boxed, folds)
    given = (fold_of >= 0) & (fold_of != fold)
    return _Part(~official, boxed & given, official & ~given)


def _pooled(records: Records, rule: _Rule, folds: int, fold: int) -> _Part:
    everything = np.ones(len(records.names), bool)
    test = rule.folds("fold", records.patients, everything, folds) == fold
    return _Part(~test, np.zeros_like(test), test)


def _folded_floors(rule: _Rule, patients: np.ndarray, scored: np.ndarray, folds: int) -> Floors:
    """Protocol A's prior only scores, so it may see boxes: of the other folds' patients."""
    fold_of = rule.folds("fold", patients, _rows(scored), folds)
    used = np.unique(fold_of[fold_of >= 0])
    if used.size < 2:  # no other patient's box to make a prior of
        return ()
    return tuple(
        (
            scored & ((fold_of >= 0) & (fold_of != k))[:, None],
            scored & (fold_of == k)[:, None],
        )
        for k in used
    )


class _Rule:
    """Orders patients by sha256 of (split_seed, role, patient id)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def _ordered(self, role: str, patients: np.ndarray) -> list[int]:
        def key(patient: int) -> bytes:
            return hashlib.sha256(f"{self._seed}:{role}:{patient}".encode()).digest()

        return sorted(np.unique(patients).tolist(), key=key)

    def folds(self, role: str, patients: np.ndarray, among: np.ndarray, folds: int) -> np.ndarray:
        """[n] int64 fold of each image's patient, dealt out in turn; −1 if not `among`."""
        order = self._ordered(role, patients[among])
        fold_of = {patient: k % folds for k, patient in enumerate(order)}
        return np.array([fold_of.get(patient, -1) for patient in patients.tolist()], np.int64)

    def first(self, role: str, patients: np.ndarray, among: np.ndarray, share: float) -> np.ndarray:
        """[n] bool: images of the first `share` of the patients, at least one where share > 0."""
        order = self._ordered(role, patients[among])
        count = max(round(share * len(order)), 1) if share > 0 else 0
        return np.isin(patients, np.array(order[:count], np.int64))


def _check_arguments(
    protocol: str, folds: int, fold: int, val_fraction: float, box_share: float
) -> None:
    wrong = []
    if protocol not in _WORDS:
        wrong.append(f"--config.protocol must be A, B or C, not {protocol!r}")
    if folds < 2:
        wrong.append(f"--config.folds must be at least 2, not {folds}")
    if protocol != "A" and not 0 <= fold < folds:
        wrong.append(f"--config.fold must be 0 … {folds - 1}, not {fold}")
    if not 0 < val_fraction < 1:
        wrong.append(f"--config.data.val_fraction must be between 0 and 1, not {val_fraction}")
    if not 0 <= box_share <= 1:
        wrong.append(f"--config.data.box_share must be 0 … 1, not {box_share}")
    elif protocol == "A" and box_share > 0:
        wrong.append("protocol A trains on no box: give --config.data.box_share=0, or protocol B")
    if wrong:
        raise UserError("; ".join(wrong))


def _check_fold(
    records: Records, train: np.ndarray, test: np.ndarray, fold: int, folds: int
) -> None:
    """Each part has images and, if there are boxes at all, boxes."""
    boxes = records.has_box
    for part, mask in (("train", train), ("test", test)):
        for what, there in (("image", mask.any()), ("box", boxes[mask].any() or not boxes.any())):
            if not there:
                raise UserError(
                    f"fold {fold} of {folds} has no {what} in its {part} part: {records.root} holds "
                    f"{len(records.names)} images and {records.has_box.sum()} boxes of "
                    f"{np.unique(records.patients[_rows(records.has_box)]).size} patients; "
                    "use fewer --config.folds or another --config.fold"
                )


def _rows(mask: np.ndarray) -> np.ndarray:
    """[n c] bool → [n] bool: images with any."""
    return np.asarray(mask.any(axis=1))


def _few(values: np.ndarray) -> str:
    return ", ".join(map(str, values[:3].tolist())) + (" …" if values.size > 3 else "")


def _frozen(array: np.ndarray) -> np.ndarray:
    """A copy over immutable bytes: numpy refuses to make it writeable again."""
    array = np.asarray(array)
    return np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)
