"""Reads a radiograph in a DICOM file as a person sees it on a screen: 8 bits, 0 black … 255 white.

Stored values → modality LUT or rescale → VOI LUT or window, the first of several → inverted where white is low
(DICOM PS3.3, C.7.6.3.1.2, C.11.1, C.11.2). pydicom parses the file; its plugins decode: Pillow JPEG, OpenJPEG JPEG
2000, and GDCM what no other can, in a process of its own.
"""

from __future__ import annotations

import importlib.util
import io
import re
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from kacl_jax.images.gdcm_process import decode_by_gdcm
from kacl_jax.images.picture import Unreadable
from kacl_jax.runtime.errors import UserError

_MODALITIES = ("", "CR", "DX", "DR", "RF", "XA", "SC", "OT")
_CHEST = ("CHEST", "THORAX", "LUNG")
_NOT_FRONTAL = re.compile(r"LL|RL|[LR]?LAT|[LR][AP]O|.*(LATERAL|OBL).*")
_NAMES = ("PatientName", "OtherPatientNames", "PatientBirthName")
_NUMBERS = (
    *("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
)
# Transfer syntax → the plugin that decodes it; pydicom itself decodes the others.
_PLUGINS = {
    "1.2.840.10008.1.2.4.50": "pillow",  # JPEG baseline
    "1.2.840.10008.1.2.4.51": "gdcm",  # JPEG extended, 8 or 12 bits
    "1.2.840.10008.1.2.4.57": "gdcm",  # JPEG lossless
    "1.2.840.10008.1.2.4.70": "gdcm",  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": "gdcm",  # JPEG-LS
    "1.2.840.10008.1.2.4.81": "gdcm",  # JPEG-LS, near-lossless
    **{f"1.2.840.10008.1.2.4.{n}": "pylibjpeg" for n in (90, 91, 201, 202, 203)},  # JPEG 2000
}
_PACKAGES = ("pydicom", "gdcm", "openjpeg")
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")  # how a code is written; anything else is not repeated
_BY_RANGE = "windowed by its grey range, because the file names no window"


class Xray(NamedTuple):
    """A decoded file. pixels: uint8 [h w]. notes: what a reader of the result must know.

    patient_id, study_uid, instance_uid: '' if the file has none.
    """

    pixels: np.ndarray
    notes: tuple[str, ...]
    patient_id: str
    study_uid: str
    instance_uid: str


def is_dicom(data: bytes) -> bool:
    """Whether a file begins like DICOM: with its preamble, or, as old files do, with its first tag."""
    if data[128:132] == b"DICM":
        return True
    if data[:2] not in (b"\x02\x00", b"\x08\x00") or data[3:4] != b"\x00":
        return False
    has_representation = data[4:6].isalpha() and data[4:6].isupper()
    return has_representation or data[5:8] == b"\x00\x00\x00"


def identifiers(data: bytes) -> tuple[str, ...]:
    """The texts of a file that identify its patient or study, and the parts of names; fewer where it is damaged."""
    try:
        dataset = _parse(data, stop_before_pixels=True)
    except Unreadable:
        return ()
    texts = {_text(dataset, name) for name in (*_NAMES, *_NUMBERS)}
    parts = {part for name in _NAMES for part in re.split(r"[\^= \\]", _text(dataset, name))}
    return tuple(sorted((texts | parts) - {""}))


def size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels by the tags. Raises as `decode`."""
    dataset = _parse(data, stop_before_pixels=True)
    return int(_number(dataset, "Columns")), int(_number(dataset, "Rows"))


def decode(data: bytes, max_megapixels: int, *, any_view: bool = False) -> Xray:
    """The radiograph in a file. A file without a window is windowed by its grey range, and a note says so.

    any_view: take what is no frontal chest X-ray by its tags, too; a note says so.

    Raises:
      Unreadable: by its tags it is no frontal chest X-ray, or no single grey image of up to 16 bits and
        `max_megapixels` · 10^6 pixels; or it is damaged.
      UserError: the packages that read DICOM are not installed.
    """
    dataset = _parse(data, stop_before_pixels=False)
    notes = []
    if objection := _tag_objection(dataset):
        if not any_view:
            raise Unreadable(objection)
        notes.append(f"taken although it {objection}")
    _check_image(dataset, max_megapixels)
    stored = _stored_values(dataset, data)
    padding = _padding(dataset, stored)
    grey, note = _windowed(dataset, stored, padding)
    if note:
        notes.append(note)
    if _text(dataset, "PhotometricInterpretation") == "MONOCHROME1" or (
        _text(dataset, "PresentationLUTShape") == "INVERSE"
    ):
        grey = 1 - grey
    grey[padding] = 0
    ids = (_text(dataset, n) for n in ("PatientID", "StudyInstanceUID", "SOPInstanceUID"))
    return Xray(np.rint(255 * grey).astype(np.uint8), tuple(notes), *ids)


def _parse(data: bytes, *, stop_before_pixels: bool) -> Any:
    if missing := [name for name in _PACKAGES if not importlib.util.find_spec(name)]:
        raise UserError(
            f"DICOM files need packages that are not installed ({', '.join(missing)}); install requirements.lock, or "
            "kacl_jax[dicom]"
        )
    import pydicom

    try:
        dataset = pydicom.dcmread(
            io.BytesIO(data), force=True, stop_before_pixels=stop_before_pixels
        )
        if "TransferSyntaxUID" not in dataset.file_meta:  # an old file without a preamble
            explicit = not dataset.original_encoding[0]
            uids = pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian
            dataset.file_meta.TransferSyntaxUID = uids[0] if explicit else uids[1]
        return dataset
    # What pydicom raises depends on where the damage is.
    except Exception as error:
        raise Unreadable(f"is a damaged DICOM file ({type(error).__name__})") from error


def _value(dataset: Any, name: str) -> Any:
    """A tag's value; None if it is absent or empty."""
    try:
        value = dataset.get(name)
    except Exception as error:  # as in _parse: pydicom converts values when they are asked for
        raise Unreadable(f"has a damaged tag {name}") from error
    return None if value is None or value == "" else value


def _text(dataset: Any, name: str) -> str:
    """A tag's text, '' if it is absent or damaged. Several values are joined by a backslash."""
    try:
        value = _value(dataset, name)
    except Unreadable:
        return ""
    if value is None:
        return ""
    several = isinstance(value, list | tuple) or type(value).__name__ == "MultiValue"
    return "\\".join(map(str, value)) if several else str(value).strip()


def _number(dataset: Any, name: str, default: float | None = None) -> float:
    """A tag's first number. Raises Unreadable if it is none, or is absent and has no default."""
    value = _value(dataset, name)
    if value is None and default is not None:
        return default
    try:
        number = float(value if isinstance(value, int | float | str) else value[0])
    except (TypeError, ValueError, IndexError) as error:
        raise Unreadable(f"has no number in its tag {name}") from error
    if not np.isfinite(number):
        raise Unreadable(f"has no finite number in its tag {name}")
    return number


def _tag_objection(dataset: Any) -> str:
    """Why a file is no frontal chest X-ray by its tags, or ''. A tag that is absent raises no objection."""
    modality, part, view = (
        _text(dataset, name).upper() for name in ("Modality", "BodyPartExamined", "ViewPosition")
    )
    if modality not in _MODALITIES:
        return f"is no radiograph by its tag Modality{_shown(modality)}"
    if part and not any(word in part for word in _CHEST):
        return f"is no chest by its tag BodyPartExamined{_shown(part)}"
    if _NOT_FRONTAL.fullmatch(view):
        return f"is no frontal view by its tag ViewPosition{_shown(view)}"
    return ""


def _shown(code: str) -> str:
    return f" ({code})" if _CODE.fullmatch(code) else ""


def _check_image(dataset: Any, max_megapixels: int) -> None:
    """Raises Unreadable unless the header promises one grey image of a size that can be read."""
    photometric = _text(dataset, "PhotometricInterpretation")
    if "PixelData" not in dataset:
        raise Unreadable("has no pixels")
    if _number(dataset, "SamplesPerPixel", 1) != 1 or not photometric.startswith("MONOCHROME"):
        raise Unreadable("is in colour")
    if _number(dataset, "NumberOfFrames", 1) != 1:
        raise Unreadable("has several frames")
    height, width = _number(dataset, "Rows"), _number(dataset, "Columns")
    if not 0 < height * width <= max_megapixels * 10**6:
        limit = f"the limit is max_megapixels={max_megapixels}"
        raise Unreadable(f"is too large ({width:g} x {height:g} pixels; {limit})")
    allocated, bits = _number(dataset, "BitsAllocated"), _number(dataset, "BitsStored")
    if allocated not in (8, 16) or not 1 < bits <= allocated:
        raise Unreadable(f"has {bits:g} of {allocated:g} bits; 2 to 16 can be read")


def _stored_values(dataset: Any, data: bytes) -> np.ndarray:
    """int32 [h w]: the stored bits alone. What else a native pixel's bits hold, as old overlays, is dropped."""
    shape = (int(_number(dataset, "Rows")), int(_number(dataset, "Columns")))
    bits = int(_number(dataset, "BitsStored"))
    is_signed = _number(dataset, "PixelRepresentation", 0) == 1
    syntax = dataset.file_meta.TransferSyntaxUID
    lowest_bit = 0
    if syntax.is_transfer_syntax and not syntax.is_compressed:
        lowest_bit = max(0, int(_number(dataset, "HighBit", bits - 1)) + 1 - bits)
        dataset.BitsStored = bits + lowest_bit  # pydicom drops what is above
    pixels = _decoded(dataset, data, syntax)
    if pixels.shape != shape:
        raise Unreadable(f"has {pixels.shape} pixels where its header says {shape}")
    values = (pixels.astype(np.int32) >> lowest_bit) & ((1 << bits) - 1)
    return values - ((values >> (bits - 1)) << bits) if is_signed else values


def _decoded(dataset: Any, data: bytes, syntax: Any) -> np.ndarray:
    plugin = _PLUGINS.get(syntax, "")
    if plugin == "gdcm":
        return decode_by_gdcm(data)
    try:
        dataset.pixel_array_options(decoding_plugin=plugin)
        return np.asarray(dataset.pixel_array)
    except NotImplementedError as error:
        raise Unreadable(f"is compressed as {syntax.name}, which nothing here decodes") from error
    # As in _parse; each plugin has errors of its own, too.
    except Exception as error:
        raise Unreadable(f"has pixels that cannot be decoded ({type(error).__name__})") from error


def _padding(dataset: Any, stored: np.ndarray) -> np.ndarray:
    """bool [h w]: pixels without an image, as around a round detector."""
    if _value(dataset, "PixelPaddingValue") is None:
        return np.zeros(stored.shape, bool)
    first = _number(dataset, "PixelPaddingValue")
    last = _number(dataset, "PixelPaddingRangeLimit", first)
    return (stored >= min(first, last)) & (stored <= max(first, last))


def _windowed(dataset: Any, stored: np.ndarray, padding: np.ndarray) -> tuple[np.ndarray, str]:
    """(float64 [h w] in 0 … 1, a note or '')."""
    values = stored.astype(np.float64)
    if _value(dataset, "RescaleSlope") is not None and "RescaleIntercept" in dataset:
        values = values * _number(dataset, "RescaleSlope") + _number(dataset, "RescaleIntercept", 0)
    if _value(dataset, "ModalityLUTSequence"):
        values, _ = _look_up(dataset, "ModalityLUTSequence", stored)
    if _value(dataset, "VOILUTSequence"):
        looked_up, highest = _look_up(dataset, "VOILUTSequence", values)
        return np.clip(looked_up / highest, 0, 1), ""
    function = _text(dataset, "VOILUTFunction") or "LINEAR"
    has_window = _value(dataset, "WindowCenter") is not None
    width = _number(dataset, "WindowWidth", 0) if has_window else 0
    if width < 1 and not (width > 0 and function != "LINEAR"):
        return _by_range(values, padding), _BY_RANGE
    return _through_window(values, _number(dataset, "WindowCenter"), width, function), ""


def _look_up(dataset: Any, name: str, values: np.ndarray) -> tuple[np.ndarray, int]:
    """(the entries of the sequence's first table at these values, float64, and the highest value of an entry).

    pydicom's own function gives wrong entries for tables of 8 bits with more than 256 entries.
    """
    try:
        table = getattr(dataset, name)[0]
        number, first, bits = (int(value) for value in table.LUTDescriptor)
        number = number or 1 << 16
        if first > np.iinfo(np.int16).max and _number(dataset, "PixelRepresentation", 0) == 1:
            first -= 1 << 16
        data = table.LUTData
        if isinstance(data, bytes):
            order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
            data = np.frombuffer(data, f"{order}u2" if len(data) >= 2 * number else "u1")
        entries = np.asarray(data, np.float64)[:number]
        place = np.clip(np.floor(values) - first, 0, len(entries) - 1).astype(np.int64)
        return entries[place], (1 << bits) - 1
    # As in _parse: a table may be damaged anywhere.
    except Exception as error:
        raise Unreadable(f"has a damaged {name} ({type(error).__name__})") from error


def _through_window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, onto 0 … 1."""
    if function == "SIGMOID":
        return expit(4 * (values - center) / width)
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0, 1)
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _by_range(values: np.ndarray, padding: np.ndarray) -> np.ndarray:
    inside = values[~padding]
    low, high = (inside.min(), inside.max()) if inside.size else (0.0, 0.0)
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros(values.shape)
