"""Mutations of DICOM files: by tag, by transfer syntax, by length and by bit. The door is the reader of predict.

pydicom's own pipeline is the second decoder: of a changed file that may still be valid, the true picture, pydicom's
picture within one grey level, or a sentence are right.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

from benchmarks.fuzz.judge import REFUSED, Answer, Case, Region, Row
from benchmarks.fuzz.scene import Kind, Random, picture, take, write
from kacl_jax.images.gdcm_process import decode_by_gdcm

_JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
_NO_REGION = np.zeros(0, bool)
_SYNTAXES = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "rle": uid.RLELossless,
    "jpeg2000": uid.JPEG2000Lossless,
    "jpeg_lossless": "JPEGLosslessProcess14_1",
    "jpeg_ls": "JPEGLSLossless",
    "jpeg": uid.JPEGBaseline8Bit,
}
_TAG_VALUES: dict[str, tuple[Any, ...]] = {
    "Rows": (None, 0, 1, 7, 65535),
    "Columns": (None, 0, 1, 7, 65535),
    "BitsAllocated": (None, 0, 1, 8, 12, 16, 32, 64),
    "BitsStored": (None, 0, 1, 7, 9, 16, 17, 65535),
    "HighBit": (None, 0, 3, 15, 16, 65535),
    "PixelRepresentation": (None, 0, 1, 2, 7),
    "SamplesPerPixel": (None, 0, 1, 2, 3, 4),
    "NumberOfFrames": (None, "0", "1", "2", "-1", "x"),
    "PhotometricInterpretation": (None, "", "MONOCHROME1", "RGB", "YBR_FULL", "MONOCHROME", "é"),
    "PresentationLUTShape": ("", "INVERSE", "IDENTITY", "x"),
    "WindowCenter": ("", "0", "1e9", "-1e9", "x", "1\\2", "nan"),
    "WindowWidth": ("", "0", "-5", "1", "1e-9", "1e30", "x", "inf"),
    "RescaleSlope": ("", "0", "-1", "1e30", "x", "nan"),
    "RescaleIntercept": ("", "-1024", "1e30", "x"),
    "PixelPaddingValue": (0, 65535),
    "Modality": (None, "", "CT", "x", "DX"),
    "BodyPartExamined": (None, "", "KNEE", "chest", "x" * 99),
    "ViewPosition": (None, "", "LL", "AP", "\\"),
    "SpecificCharacterSet": ("", "x", "ISO 2022 IR 87"),
    "PatientName": ("", "é^\\^=", "x" * 300),
}


def _make(pixels: np.ndarray, **tags: Any) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.ComputedRadiographyImageStorage, "1.2.3"
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "CR", "CHEST", "PA"
    dataset.PatientName, dataset.PatientID = "DOE^JANE", "4711"
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.Rows, dataset.Columns = pixels.shape
    bits = 8 if pixels.dtype == np.uint8 else int(pixels.max()).bit_length()
    dataset.BitsAllocated, dataset.BitsStored = 8 * pixels.itemsize, max(bits, 8)
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OW"
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    return dataset


def _bytes(dataset: pydicom.Dataset) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def encode(pixels: np.ndarray, syntax: str, **tags: Any) -> bytes:
    dataset, target = _make(pixels, **tags), _SYNTAXES[syntax]
    if syntax in ("rle", "jpeg2000"):
        dataset.compress(target, generate_instance_uid=False)
    elif syntax in ("jpeg_lossless", "jpeg_ls"):
        return _by_gdcm(_bytes(dataset), target)
    elif syntax == "jpeg":
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=95)
        dataset.PixelData = encapsulate([file.getvalue()])
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = target
    else:
        dataset.file_meta.TransferSyntaxUID = target
        if syntax == "big":
            dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    return _bytes(dataset)


def _by_gdcm(data: bytes, syntax: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "a.dcm"), Path(folder, "b.dcm")
        before.write_bytes(data)
        reader, change, writer = (
            gdcm.ImageReader(),
            gdcm.ImageChangeTransferSyntax(),
            gdcm.ImageWriter(),
        )
        reader.SetFileName(str(before))
        if not reader.Read():
            raise RuntimeError("GDCM does not read what pydicom wrote")
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        writer.SetFileName(str(after))
        writer.SetFile(reader.GetFile())
        if not change.Change():
            raise RuntimeError(f"GDCM does not write {syntax}")
        writer.SetImage(change.GetOutput())
        writer.Write()
        return after.read_bytes()


def _by_range(pixels: np.ndarray) -> np.ndarray:
    """What a file without a window shows."""
    low, high = float(pixels.min()), float(pixels.max())
    return np.rint(255 * (pixels - low) / (high - low)).astype(np.uint8)


def _by_pydicom(data: bytes) -> list[np.ndarray]:
    """What pydicom's own pipeline shows, if it shows anything."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)
            values = apply_modality_lut(_decoded(dataset, data), dataset)
            shown = apply_voi_lut(values, dataset).astype(np.float64)
            low, high = shown.min(), shown.max()
            if dataset.get("WindowWidth") not in (None, ""):
                ends = dataset.WindowCenter + np.array([-9.0, 9.0]) * dataset.WindowWidth
                low, high = apply_windowing(ends, dataset)
            grey = np.clip((shown - low) / (high - low), 0, 1)
            inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
            inverted |= dataset.get("PresentationLUTShape") == "INVERSE"
            return [np.rint(255 * (1 - grey if inverted else grey)).astype(np.uint8)]
    except Exception:  # the second decoder may refuse anything
        return []


def _decoded(dataset: pydicom.Dataset, data: bytes) -> np.ndarray:
    """GDCM may end the process that it runs in."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1, *_JPEG_LS):
        return decode_by_gdcm(data)
    if syntax.is_compressed:
        plugins = {uid.JPEGBaseline8Bit: "pillow", uid.RLELossless: "pydicom"}
        dataset.pixel_array_options(decoding_plugin=plugins.get(syntax, "pylibjpeg"))
    return dataset.pixel_array


def _by_standard(pixels: np.ndarray, bits: int, high: int) -> list[np.ndarray]:
    """PS3.5, 8.1.1: the bits high … high + 1 - bits are the value. pydicom takes the lowest bits."""
    lowest = high + 1 - bits
    if not 0 <= lowest < 16:
        return []
    values = (pixels.astype(np.int64) >> lowest) & ((1 << bits) - 1)
    return [_by_range(values)] if np.ptp(values) else []


def _reader(path: Path, truths: list[np.ndarray]) -> Answer:
    """The reader of predict; a picture within one grey level of a truth counts as that truth."""
    from kacl_jax.images.reader import BrokenImage
    from kacl_jax.predict.inputs import Listed, read

    try:
        pixels = read(Listed(path.name, path)).pixels
    except BrokenImage as error:
        told = [text for text in ("DOE", "JANE", "4711") if text in str(error)]
        return Answer([(None, "" if told else str(error))], str(error))
    for truth in truths:
        if truth.shape == pixels.shape and np.abs(truth.astype(int) - pixels).max() <= 1:
            pixels = truth
    return Answer([(pixels, "")], "")


def _kind(
    mutate: Callable[[Random, np.ndarray, int], tuple[str, bytes, list[np.ndarray], bool]],
) -> Kind:
    """mutate: (what, file, the pictures that may come out, whether it may be refused). No picture: must be refused."""

    def kind(random: Random, folder: Path, turn: int) -> Case:
        pixels = picture(random, bits=int(random.choice([8, 10, 12, 16])))
        pixels = pixels.repeat(2, 0).repeat(2, 1)  # JPEG 2000 wants some size
        what, data, truths, may_refuse = mutate(random, pixels, turn)
        name = str(random.choice(["a.dcm", "a", "a.png"]))
        write(folder, {name: data})
        regions = tuple(Region(truth, _NO_REGION) for truth in truths)
        row = Row(regions, may_refuse) if regions else REFUSED
        return Case(what, lambda: _reader(folder / name, truths), [row])

    return kind


def _harmless(random: Random, pixels: np.ndarray, turn: int) -> Any:
    """All lossless transfer syntaxes, with and without preamble, white low or high, with a name that is no ASCII."""
    syntax = take([name for name in _SYNTAXES if name != "jpeg"], turn)
    tags: dict[str, Any] = {}
    truth = _by_range(pixels)
    if random.random() < 0.5:
        tags["PhotometricInterpretation"] = "MONOCHROME1"
        low, high = float(pixels.min()), float(pixels.max())
        truth = np.rint(255 * (high - pixels) / (high - low)).astype(np.uint8)
    if random.random() < 0.3:
        tags |= {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Dürr^Jöns"}
    data = encode(pixels, syntax, **tags)
    if syntax == "implicit" and random.random() < 0.3:
        data = data[data.index(b"\x08\x00\x16\x00") :]
        return f"{syntax} without preamble {tags}", data, [truth], False
    return f"{syntax} {tags}", data, [truth], False


def _tag(random: Random, pixels: np.ndarray, turn: int) -> Any:
    """One tag is missing or has another value."""
    name = take(_TAG_VALUES, turn)
    value = _TAG_VALUES[name][int(random.integers(len(_TAG_VALUES[name])))]
    dataset = _make(pixels)
    if name == "WindowCenter":
        dataset.WindowWidth = 100
    elif name == "WindowWidth":
        dataset.WindowCenter = 100
    data = _bytes(dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if value is None:
                del dataset[name]
            else:
                setattr(dataset, name, value)
            data = _bytes(dataset)
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError):  # not written
            return f"{name} stays", data, [*_by_pydicom(data), _by_range(pixels)], True
    truths = [*_by_pydicom(data), _by_range(pixels)]
    if name in ("BitsStored", "HighBit") and value is not None:
        truths += _by_standard(pixels, dataset.BitsStored, dataset.HighBit)
    return f"{name} is {value!r}", data, truths, True


def _not_a_chest(random: Random, pixels: np.ndarray, turn: int) -> Any:
    ways: list[dict[str, Any]] = [
        {"BodyPartExamined": "HIP"},
        {"ViewPosition": "LL"},
        {"ViewPosition": "LATERAL"},
        {"Modality": "MR"},
        {"NumberOfFrames": 3},
        {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3},
        {"PhotometricInterpretation": "PALETTE COLOR"},
    ]
    tags = ways[turn % len(ways)]
    return str(tags), _bytes(_make(pixels, **tags)), [], True


def _truncated(random: Random, pixels: np.ndarray, turn: int) -> Any:
    syntax = take(_SYNTAXES, turn)
    data = encode(pixels if syntax != "jpeg" else pixels.astype(np.uint8), syntax)
    cut = int(random.integers(0, len(data) - 12))
    # A compressed stream may be complete before its last bytes.
    truths = [] if syntax in ("implicit", "explicit", "big") else _by_pydicom(data[:cut])
    return f"{syntax}: {cut} of {len(data)} bytes", data[:cut], truths, True


def _bit(random: Random, pixels: np.ndarray, turn: int) -> Any:
    """One to four bits, anywhere or in the pixels."""
    syntax = take(_SYNTAXES, turn)
    data = bytearray(encode(pixels if syntax != "jpeg" else pixels.astype(np.uint8), syntax))
    start = 0 if random.random() < 0.5 else bytes(data).find(b"\xe0\x7f\x10\x00") % len(data)
    places = [int(random.integers(start, len(data))) for _ in range(int(random.integers(1, 5)))]
    for place in places:
        data[place] ^= 1 << int(random.integers(0, 8))
    truths = [*_by_pydicom(bytes(data)), _by_range(pixels)]
    return f"{syntax}: bits at {places}", bytes(data), truths, True


def _garbage(random: Random, pixels: np.ndarray, turn: int) -> Any:
    """The preamble, and then anything."""
    data = b"\0" * 128 + b"DICM" + random.bytes(int(random.integers(0, 2000)))
    return f"{len(data)} bytes", data, [], True


KINDS: dict[str, Kind] = {
    "dicom_harmless": _kind(_harmless),
    "dicom_tag": _kind(_tag),
    "dicom_not_a_chest": _kind(_not_a_chest),
    "dicom_truncated": _kind(_truncated),
    "dicom_bit": _kind(_bit),
    "dicom_garbage": _kind(_garbage),
}
