"""A DICOM is shown as pydicom's own pipeline shows it, for each tag and transfer syntax, or refused by its reason."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kacl_jax.images import dicom
from kacl_jax.images.picture import Unreadable
from kacl_jax.images.reader import BrokenImage, read_grey, read_image, read_size
from kacl_jax.runtime.errors import UserError

pydicom = pytest.importorskip("pydicom")
from pydicom import uid  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.pixels import apply_modality_lut, apply_voi_lut  # noqa: E402

H, W = 40, 56


def picture(bits: int, *, signed: bool = False) -> np.ndarray:
    """int [40 56], smooth with noise, over most of the range."""
    rows, columns = np.mgrid[:H, :W]
    noise = np.random.default_rng(bits).random((H, W)) * 0.1
    share = 0.9 * (rows / H + columns / W) / 2 + noise
    values = np.floor(share * (2**bits - 1)).astype(np.int64)
    return values - 2 ** (bits - 1) if signed else values


def make(values: np.ndarray, bits: int, *, signed: bool = False, **tags: Any) -> Dataset:
    """A frontal chest CR of these stored values."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.ComputedRadiographyImageStorage, "1.2.3"
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "CR", "CHEST", "PA"
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.Rows, dataset.Columns = values.shape[:2]
    allocated = 8 if bits <= 8 else 16
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    raw = values & (2**bits - 1)
    dataset.PixelData = raw.astype(f"<u{allocated // 8}").tobytes()
    dataset["PixelData"].VR = "OW"
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    return dataset


def to_bytes(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def by_pydicom(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    """float [h w] in 0 … 255: pydicom's own modality and VOI steps, scaled from their range."""
    values = apply_modality_lut(stored, dataset)
    with np.errstate(over="ignore"):  # in the exponential of a narrow window
        shown = apply_voi_lut(values, dataset).astype(np.float64)
    if "VOILUTSequence" in dataset:
        low, high = 0.0, float(2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1)
    elif "WindowWidth" in dataset:
        # A window far below and far above everything shows the ends of pydicom's output range.
        extremes = dataset.WindowCenter + np.array([-9.0, 9.0]) * dataset.WindowWidth
        low, high = (float(v) for v in pydicom.pixels.apply_windowing(extremes, dataset))
    else:
        low, high = shown.min(), shown.max()
    grey = 255 * (shown - low) / (high - low)
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    return 255 - grey if inverted else grey


def assert_shown(dataset: Dataset, stored: np.ndarray, *, notes: tuple[str, ...] = ()) -> None:
    found = dicom.decode(to_bytes(dataset), 64)
    difference = np.abs(found.pixels - by_pydicom(dataset, stored))
    assert difference.max() <= 1
    assert np.ptp(found.pixels) > 100
    assert found.notes == notes


NO_WINDOW = ("windowed by its grey range, because the file names no window",)


@pytest.mark.parametrize("bits", range(8, 17))
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_every_depth_sign_and_photometry(bits: int, signed: bool, photometric: str) -> None:
    values = picture(bits, signed=signed)
    window = {"WindowCenter": float(np.median(values)), "WindowWidth": float(np.ptp(values) / 2)}
    plain = make(values, bits, signed=signed, PhotometricInterpretation=photometric)
    assert_shown(plain, values, notes=NO_WINDOW)
    windowed = make(values, bits, signed=signed, PhotometricInterpretation=photometric, **window)
    assert_shown(windowed, values)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("width", [1, 2, 300, 5000])
def test_every_window_function(function: str, width: int) -> None:
    values = picture(12)
    tags = {"WindowCenter": 2000, "WindowWidth": width, "VOILUTFunction": function}
    dataset = make(values, 12, **tags)
    found = dicom.decode(to_bytes(dataset), 64).pixels
    assert np.abs(found - by_pydicom(dataset, values)).max() <= 1


def test_the_first_of_several_windows_counts() -> None:
    values = picture(12)
    several = make(values, 12, WindowCenter=[1000, 3000], WindowWidth=[900, 100])
    one = make(values, 12, WindowCenter=1000, WindowWidth=900)
    first = dicom.decode(to_bytes(several), 64).pixels
    np.testing.assert_array_equal(first, dicom.decode(to_bytes(one), 64).pixels)


@pytest.mark.parametrize("slope, intercept", [(1, -1024), (2.5, 10), (0.01, 0), (-1, 4095)])
def test_rescale_comes_before_the_window(slope: float, intercept: float) -> None:
    values = picture(12)
    shown = values * slope + intercept
    tags = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    width = max(2.0, float(np.ptp(shown) / 2))
    window = {"WindowCenter": float(np.median(shown)), "WindowWidth": width}
    assert_shown(make(values, 12, **tags, **window), values)


def lut(entries: np.ndarray, first: int, bits: int) -> Any:
    item = Dataset()
    item.LUTDescriptor = [len(entries) % 65536, first, bits]
    item.LUTData = entries.astype("<u2").tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    return pydicom.Sequence([item])


@pytest.mark.parametrize("bits", [12, 16])
def test_a_voi_lut_is_looked_up_and_goes_before_a_window(bits: int) -> None:
    values = picture(10)
    curve = np.rint((np.arange(1024) / 1023) ** 2 * (2**bits - 1))
    dataset = make(values, 10, VOILUTSequence=lut(curve, 0, bits), WindowCenter=1, WindowWidth=2)
    assert_shown(dataset, values)


@pytest.mark.parametrize("dtype", ["<u1", "<u2"])
def test_a_voi_lut_of_8_bits_may_have_more_than_256_entries(dtype: str) -> None:
    values = picture(10)
    curve = np.rint((np.arange(1024) / 1023) ** 2 * 255)
    sequence = lut(curve, 0, 8)
    sequence[0].LUTData = curve.astype(dtype).tobytes()
    found = dicom.decode(to_bytes(make(values, 10, VOILUTSequence=sequence)), 64).pixels
    np.testing.assert_array_equal(found, curve[values])


def test_a_lut_begins_at_its_first_value_and_ends_at_its_last() -> None:
    values = picture(10, signed=True)
    curve = np.rint(np.linspace(0, 4095, 200))
    sequence = lut(curve, 65536 - 100, 12)
    dataset = make(values, 10, signed=True, VOILUTSequence=sequence)
    found = dicom.decode(to_bytes(dataset), 64).pixels
    expected = curve[np.clip(values + 100, 0, 199)] / 4095 * 255
    np.testing.assert_allclose(found, expected, atol=0.5)


def test_a_modality_lut_is_looked_up() -> None:
    values = picture(10)
    table = np.rint(np.sqrt(np.arange(1024) / 1023) * 4095)
    dataset = make(values, 10, ModalityLUTSequence=lut(table, 0, 16))
    dataset.WindowCenter, dataset.WindowWidth = 2048, 3000
    assert_shown(dataset, values)


@pytest.mark.parametrize(
    "photometric, shape, inverted",
    [
        ("MONOCHROME1", "INVERSE", True),  # once, not twice
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
    ],
)
def test_white_is_turned_once(photometric: str, shape: str, inverted: bool) -> None:
    values = picture(12)
    tags = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape}
    found = dicom.decode(to_bytes(make(values, 12, **tags)), 64).pixels
    plain = dicom.decode(to_bytes(make(values, 12)), 64).pixels
    np.testing.assert_allclose(found, 255 - plain if inverted else plain, atol=1)


def test_an_overlay_in_the_unused_bits_is_dropped() -> None:
    values = picture(12)
    dataset = make(values, 12, WindowCenter=2048, WindowWidth=4096)
    expected = dicom.decode(to_bytes(dataset), 64).pixels
    dataset.PixelData = (values | 0xF000).astype("<u2").tobytes()
    np.testing.assert_array_equal(dicom.decode(to_bytes(dataset), 64).pixels, expected)
    shifted = make(values << 4, 16, WindowCenter=2048, WindowWidth=4096)
    shifted.BitsStored, shifted.HighBit = 12, 15
    np.testing.assert_array_equal(dicom.decode(to_bytes(shifted), 64).pixels, expected)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_has_no_part_in_the_range(photometric: str) -> None:
    values = picture(12)
    values[:5] = 4095
    tags = {"PixelPaddingValue": 4095, "PhotometricInterpretation": photometric}
    dataset = make(values, 12, **tags)
    dataset["PixelPaddingValue"].VR = "US"
    found = dicom.decode(to_bytes(dataset), 64).pixels
    assert (found[:5] == 0).all()
    inside = values[5:].astype(float)
    expected = 255 * (inside - inside.min()) / np.ptp(inside)
    expected = 255 - expected if photometric == "MONOCHROME1" else expected
    assert np.abs(found[5:] - expected).max() <= 1


# ---- transfer syntaxes ----------------------------------------------------------------------------------------


def jpeg(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def native(syntax: str) -> Callable[[Dataset], bytes]:
    def write(dataset: Dataset) -> bytes:
        dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
        if syntax == uid.ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        return to_bytes(dataset)

    return write


def compressed_by_pydicom(syntax: str) -> Callable[[Dataset], bytes]:
    def write(dataset: Dataset) -> bytes:
        dataset.compress(syntax, generate_instance_uid=False)
        return to_bytes(dataset)

    return write


def compressed_by_gdcm(syntax: str) -> Callable[[Dataset], bytes]:
    def write(dataset: Dataset) -> bytes:
        gdcm = pytest.importorskip("gdcm")
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder, "a.dcm"), Path(folder, "b.dcm")
            before.write_bytes(to_bytes(dataset))
            reader = gdcm.ImageReader()
            reader.SetFileName(str(before))
            assert reader.Read()
            change = gdcm.ImageChangeTransferSyntax()
            number = getattr(gdcm.TransferSyntax, syntax)
            change.SetTransferSyntax(gdcm.TransferSyntax(number))
            change.SetInput(reader.GetImage())
            assert change.Change()
            writer = gdcm.ImageWriter()
            writer.SetFileName(str(after))
            writer.SetFile(reader.GetFile())
            writer.SetImage(change.GetOutput())
            assert writer.Write()
            return after.read_bytes()

    return write


LOSSLESS = {
    "implicit": native(uid.ImplicitVRLittleEndian),
    "explicit": native(uid.ExplicitVRLittleEndian),
    "big endian": native(uid.ExplicitVRBigEndian),
    "deflated": native(uid.DeflatedExplicitVRLittleEndian),
    "RLE": compressed_by_pydicom(uid.RLELossless),
    "JPEG 2000": compressed_by_pydicom(uid.JPEG2000Lossless),
    "JPEG lossless": compressed_by_gdcm("JPEGLosslessProcess14_1"),
    "JPEG lossless, any predictor": compressed_by_gdcm("JPEGLosslessProcess14"),
    "JPEG-LS": compressed_by_gdcm("JPEGLSLossless"),
}


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_every_lossless_transfer_syntax(syntax: str, bits: int) -> None:
    values = picture(bits)
    expected = dicom.decode(to_bytes(make(values, bits)), 64).pixels
    try:
        data = LOSSLESS[syntax](make(values, bits))
    except (AssertionError, AttributeError) as error:
        pytest.skip(f"nothing here writes it ({error})")
    assert dicom.is_dicom(data)
    np.testing.assert_array_equal(dicom.decode(data, 64).pixels, expected)


def test_jpeg_baseline() -> None:
    values = picture(8)
    dataset = make(values, 8)
    dataset.PixelData = encapsulate([jpeg(values)])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    with Image.open(io.BytesIO(jpeg(values))) as decoded:
        stored = np.asarray(decoded).astype(np.int64)
    assert_shown(dataset, stored, notes=NO_WINDOW)


# ---- refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tags, reason",
    [
        ({"NumberOfFrames": 2}, "has several frames"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "is in colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is in colour"),
        ({"PixelData": None}, "has no pixels"),
        ({"PixelData": b"\1\2\3\4"}, "cannot be decoded"),
        ({"Rows": 60000, "Columns": 60000}, "is too large (60000 x 60000 pixels"),
        ({"Rows": None}, "has no number in its tag Rows"),
        ({"BitsAllocated": 32}, "has 12 of 32 bits"),
        ({"BitsStored": 17}, "has 17 of 16 bits"),
    ],
)
def test_what_is_no_single_grey_image(tags: dict[str, Any], reason: str) -> None:
    data = to_bytes(make(picture(12), 12, **tags))
    with pytest.raises(Unreadable) as error:
        dicom.decode(data, 64)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    "tags, reason",
    [
        ({"BodyPartExamined": "HIP"}, "is no chest by its tag BodyPartExamined (HIP)"),
        ({"ViewPosition": "LL"}, "is no frontal view by its tag ViewPosition (LL)"),
        ({"ViewPosition": "LATERAL"}, "is no frontal view by its tag ViewPosition (LATERAL)"),
        ({"ViewPosition": "RAO"}, "is no frontal view by its tag ViewPosition (RAO)"),
        ({"Modality": "CT"}, "is no radiograph by its tag Modality (CT)"),
    ],
)
def test_what_is_no_frontal_chest_by_its_tags(tags: dict[str, Any], reason: str) -> None:
    data = to_bytes(make(picture(12), 12, **tags))
    with pytest.raises(Unreadable) as error:
        dicom.decode(data, 64)
    assert str(error.value) == reason
    taken = dicom.decode(data, 64, any_view=True)
    assert taken.notes == (f"taken although it {reason}", *NO_WINDOW)


@pytest.mark.parametrize("tags", [
    {"BodyPartExamined": "PORT CHEST"}, {"BodyPartExamined": ""}, {"BodyPartExamined": None},
    {"ViewPosition": None}, {"ViewPosition": ""}, {"ViewPosition": "AP"}, {"Modality": "DX"},
    {"ViewPosition": "AP_SUPINE"},
])  # fmt: skip
def test_what_may_be_a_frontal_chest_is_taken(tags: dict[str, Any]) -> None:
    assert dicom.decode(to_bytes(make(picture(12), 12, **tags)), 64).notes == NO_WINDOW


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.99])
def test_a_truncated_file(share: float) -> None:
    data = to_bytes(make(picture(12), 12))
    with pytest.raises(Unreadable):
        dicom.decode(data[: int(len(data) * share)], 64)


def test_a_file_that_ends_its_decoder_costs_no_other_file() -> None:
    """GDCM aborts at a picture of 17 bits; the next file gets a new process."""
    good = LOSSLESS["JPEG lossless"](make(picture(12), 12))
    expected = dicom.decode(good, 64).pixels
    frame = good.index(b"\xff\xc3\x00\x0b") + 4
    bad = good[:frame] + bytes([17]) + good[frame + 1 :]
    with pytest.raises(Unreadable, match=r"has pixels that (end their decoder|cannot be decoded)"):
        dicom.decode(bad, 64)
    np.testing.assert_array_equal(dicom.decode(good, 64).pixels, expected)


def test_a_missing_package_is_one_sentence(monkeypatch) -> None:
    monkeypatch.setattr(dicom, "_PACKAGES", ("pydicom", "no_such_package"))
    with pytest.raises(UserError, match=r"\(no_such_package\); install requirements\.lock"):
        dicom.decode(to_bytes(make(picture(12), 12)), 64)


def test_a_tag_without_a_code_is_not_repeated() -> None:
    with pytest.warns(UserWarning, match="CS"):
        data = to_bytes(make(picture(12), 12, BodyPartExamined="knee of J. Doe"))
    with pytest.raises(Unreadable, match=r"BodyPartExamined$"):
        dicom.decode(data, 64)


def test_identifiers_are_all_found() -> None:
    tags = {"PatientName": "DOE^JANE=X", "PatientID": "4711", "AccessionNumber": "A9"}
    found = dicom.identifiers(to_bytes(make(picture(12), 12, **tags, StudyInstanceUID="1.5.9")))
    assert {"DOE", "JANE", "4711", "A9", "1.5.9", "1.2.3"} <= set(found)
    assert dicom.identifiers(b"\0" * 128 + b"DICM" + b"\xff" * 50) == ()


def test_only_dicom_is_dicom(tmp_path: Path) -> None:
    data = to_bytes(make(picture(12), 12))
    assert dicom.is_dicom(data)
    group_8 = data.index(b"\x08\x00\x16\x00")
    old = data[group_8:]  # as files without a preamble are
    assert dicom.is_dicom(old)
    np.testing.assert_array_equal(dicom.decode(old, 64).pixels, dicom.decode(data, 64).pixels)
    others = [
        b"",
        b"\x08",
        b"II*\0" + bytes(200),
        b"BM" + bytes(200),
        b"a,b,c\n" * 50,
        jpeg(picture(8)),
    ]
    assert not any(map(dicom.is_dicom, others))


def test_training_sees_what_a_person_sees_and_radiomics_ask_for_the_values(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    data = to_bytes(make(picture(12), 12))
    path.write_bytes(data)
    np.testing.assert_array_equal(read_image(path), dicom.decode(data, 1).pixels)
    with pytest.raises(BrokenImage, match="is a DICOM file; save the grey values"):
        read_grey(path)


# ---- real files -----------------------------------------------------------------------------------------------


def test_real_files(odd_root: Path) -> None:
    shown = {
        "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm": NO_WINDOW,
        "RG1_J2KI.dcm": (),
        "gdcm-CR-MONO1-10-chest.dcm": (),
    }
    for name, notes in shown.items():
        data = (odd_root / name).read_bytes()
        dataset = pydicom.dcmread(io.BytesIO(data))
        found = dicom.decode(data, 64)
        assert np.abs(found.pixels - by_pydicom(dataset, dataset.pixel_array)).max() <= 1
        assert found.notes == notes
    with pytest.raises(Unreadable, match=r"is no chest by its tag BodyPartExamined \(HIP\)"):
        dicom.decode((odd_root / "RG2_J2KR.dcm").read_bytes(), 64)
    assert not dicom.is_dicom((odd_root / "16747_3_1.jpg").read_bytes())


def test_the_size_comes_from_the_tags(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(to_bytes(make(picture(12), 12)))
    assert read_size(tmp_path / "a.dcm") == (W, H)
    (tmp_path / "b.dcm").write_bytes(to_bytes(make(picture(12), 12, Rows=None)))
    with pytest.raises(BrokenImage, match="no number in its tag Rows"):
        read_size(tmp_path / "b.dcm")
