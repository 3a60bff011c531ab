"""One reader for all: what it gives for each kind of file, and what it refuses.

The radiomics command's own view of the same is in tests/radiomics/test_command_inputs.py.
"""

from __future__ import annotations

import contextlib
import io
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from kacl_jax.config import keys
from kacl_jax.images import reader
from kacl_jax.images.reader import BrokenImage, read_grey, read_image


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, "PNG", **options)
    return path


def noise(shape: tuple[int, ...] = (33, 47), top: int = 256) -> np.ndarray:
    return np.random.default_rng(3).integers(0, top, shape).astype(np.uint16)


def grey() -> Image.Image:
    return Image.fromarray(noise().astype(np.uint8))


def opaque(bands: int) -> Image.Image:
    alpha = Image.new("L", grey().size, 255)
    return Image.merge("LA" if bands == 1 else "RGBA", [grey()] * bands + [alpha])


MODES = {
    "L": grey,
    "1": lambda: grey().point(lambda v: 255 * (v > 127), "1"),
    "LA": lambda: opaque(1),
    "RGBA": lambda: opaque(3),
    "RGB": lambda: Image.fromarray(noise((33, 47, 3)).astype(np.uint8)),
    "P grey": lambda: grey().convert("P"),
    "P colour": lambda: Image.fromarray(noise((33, 47, 3)).astype(np.uint8)).quantize(64),
    "P 4 colours": lambda: grey().quantize(4),
    "1×1": lambda: Image.new("L", (1, 1), 77),
}


@pytest.mark.parametrize("mode", MODES)
def test_pictures_agree_with_pillow(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "a.png", MODES[mode]())
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.asarray(Image.open(path).convert("L")))


def test_16_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    """Pillow's convert('L') clips here; the oracle is the formula on the written values."""
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    image = read_image(save(tmp_path / "a.png", Image.fromarray(ramp)))
    np.testing.assert_array_equal(image, np.rint(ramp / 257.0))
    assert np.unique(image).size == 256


def png(kind: int, bits: int, shape: tuple[int, int], raw: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4)

    head = shape[1].to_bytes(4) + shape[0].to_bytes(4) + bytes([bits, kind, 0, 0, 0])
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_formats_that_pillow_does_not_write(tmp_path: Path) -> None:
    values = noise((5, 4), top=65536)
    rgba = np.stack([values, values, values, np.full_like(values, 65535)], -1).astype(">u2")
    for kind, pixels in ((4, rgba[..., [0, 3]]), (6, rgba), (2, rgba[..., :3])):
        raw = b"".join(b"\0" + row.tobytes() for row in pixels)
        (tmp_path / "a.png").write_bytes(png(kind, 16, (5, 4), raw))
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rint(values / 257.0))
    two_bits = png(0, 2, (1, 4), b"\0" + bytes([0b00011011]))
    (tmp_path / "b.png").write_bytes(two_bits)
    assert read_image(tmp_path / "b.png").tolist() == [[0, 85, 170, 255]]


def test_broken_files_are_told_apart(tmp_path: Path) -> None:
    complete_file = save(
        tmp_path / "whole.png", Image.fromarray(noise((200, 200)).astype(np.uint8))
    )
    data = complete_file.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    see_through = opaque(3)
    see_through.putpixel((3, 3), (9, 9, 9, 254))
    buffer = io.BytesIO()
    see_through.save(buffer, "PNG")
    short = png(0, 8, (9, 9), b"\0" * 20)
    bomb = png(0, 8, (1 << 20, 1 << 20), b"")
    cases = {
        b"": "zero bytes",
        b"Not found": "not a PNG",
        b"\xff\xd8\xff\xe0 a jpeg": "truncated",
        bytes(flipped): "checksum",
        buffer.getvalue(): "transparent",
        short: "cannot be decoded",
        bomb: "too large",
    }
    cases |= {data[:cut]: "truncated" for cut in (8, 20, 33, len(data) // 2, len(data) - 1)}
    cases |= {data[:-12]: "truncated"}
    path = tmp_path / "a.png"
    for content, reason in cases.items():
        path.write_bytes(content)
        with pytest.raises(BrokenImage, match=reason) as caught:
            read_image(path)
        assert caught.value.path == path
        assert reason in caught.value.reason
    with pytest.raises(BrokenImage, match="cannot be opened"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(BrokenImage, match=r"cannot be opened \(it is a folder"):
        read_image(tmp_path)


# ---- other kinds than PNG


def smooth(seed: int = 5) -> Image.Image:
    """93×61 px; JPEG changes it by little."""
    pixels = np.random.default_rng(seed).uniform(0, 255, (61, 93)).astype(np.float32)
    pixels = cv2.normalize(cv2.GaussianBlur(pixels, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: encode(smooth(), "PNG"),
    "JPEG": lambda: encode(smooth(), "JPEG"),
    "JPEG progressive": lambda: encode(smooth(), "JPEG", progressive=True),
    "JPEG colour": lambda: encode(smooth().convert("RGB"), "JPEG", quality=40),
    "JPEG colour progressive": lambda: encode(smooth().convert("RGB"), "JPEG", progressive=True),
    "JPEG with restarts": lambda: encode(smooth(), "JPEG", restart_marker_rows=1),
    "JPEG colour with restarts": lambda: encode(
        smooth().convert("RGB"), "JPEG", restart_marker_blocks=5, progressive=True
    ),
    "TIFF": lambda: encode(smooth(), "TIFF"),
    "TIFF LZW": lambda: encode(smooth(), "TIFF", compression="tiff_lzw"),
    "TIFF deflate": lambda: encode(smooth(), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF packbits": lambda: encode(smooth(), "TIFF", compression="packbits"),
    "TIFF JPEG": lambda: encode(smooth(), "TIFF", compression="jpeg"),
    "TIFF strips": lambda: encode(smooth(), "TIFF", compression="tiff_lzw", strip_size=500),
    "BMP": lambda: encode(smooth(), "BMP"),
}


@pytest.mark.parametrize("name", FILES)
def test_each_kind_agrees_with_pillow(tmp_path: Path, name: str) -> None:
    path = tmp_path / "no ending"
    path.write_bytes(FILES[name]())
    with Image.open(path) as image:
        expected = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(read_grey(path), expected)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    whole = FILES[name]()
    path = tmp_path / "cut"
    for end in [*np.linspace(1, len(whole) - 1, 60).astype(int), len(whole) - 2]:
        path.write_bytes(whole[:end])
        with pytest.raises(BrokenImage):
            read_image(path)


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("JPEG")])
def test_a_jpeg_whose_data_end_early_is_refused(tmp_path: Path, name: str) -> None:
    """Wherever it ends, although it has its end marker; libjpeg fills the rest with grey."""
    whole = FILES[name]()
    start = whole.index(b"\xff\xda") + 20
    path = tmp_path / "cut"
    for end in range(start, len(whole) - 2, 3):
        path.write_bytes(whole[:end].rstrip(b"\xff") + b"\xff\xd9")
        with pytest.raises(BrokenImage):
            read_image(path)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some damaged fields
@pytest.mark.parametrize("name", FILES)
def test_a_wrong_byte_gives_a_picture_or_a_reason(tmp_path: Path, name: str) -> None:
    """Never another error. The headers lie within the first and last bytes."""
    whole = FILES[name]()
    path = tmp_path / "wrong"
    for at in {*range(160), *range(len(whole) - 160, len(whole))}:
        path.write_bytes(whole[:at] + b"\0" + whole[at + 1 :])
        with contextlib.suppress(BrokenImage):
            read_image(path)


def test_bytes_after_a_jpeg_do_not_matter_but_a_second_picture_does(tmp_path: Path) -> None:
    whole = FILES["JPEG"]()
    path = tmp_path / "a.jpg"
    path.write_bytes(whole)
    expected = read_image(path)
    path.write_bytes(whole + b"\0\0\0")
    np.testing.assert_array_equal(read_image(path), expected)
    path.write_bytes(whole + whole)
    with pytest.raises(BrokenImage, match="holds more than one picture"):
        read_image(path)


def test_training_scales_and_radiomics_does_not(tmp_path: Path) -> None:
    """The two rules, on 14 bits in 16, floats, signed numbers and labels over 65535."""
    path = tmp_path / "a.tif"
    values = noise((40, 30), top=1 << 14)
    cv2.imwrite(str(path), values)
    np.testing.assert_array_equal(read_image(path), np.rint(values / 257))
    grey = read_grey(path)
    assert grey.dtype == np.float32
    np.testing.assert_array_equal(grey, values)
    for other in (
        values / np.float32(3),
        values.astype(np.int16) - 99,
        values.astype(np.int32) << 8,
    ):
        cv2.imwrite(str(path), other)
        np.testing.assert_array_equal(read_grey(path), other)
        with pytest.raises(BrokenImage, match="values; save it in 8 or 16 bits"):
            read_image(path)
    cv2.imwrite(str(path), values.astype(np.int32) + (1 << 25))
    with pytest.raises(BrokenImage, match="float32 cannot hold"):
        read_grey(path)


def tiff(image: Image.Image, **tags: int) -> bytes:
    return encode(image, "TIFF", tiffinfo={int(tag[1:]): value for tag, value in tags.items()})


def colour_16() -> bytes:
    return cv2.imencode(".tif", noise((9, 9, 3)) * 100)[1].tobytes()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: encode(smooth(), "TIFF", save_all=True, append_images=[smooth(1)]),
            "more than one",
        ),
        (lambda: tiff(smooth(), t262=0), "counts grey from white"),
        (lambda: tiff(Image.merge("LA", [smooth()] * 2)), "transparent"),
        (lambda: tiff(Image.merge("RGBA", [smooth()] * 4)), "transparent"),
        (lambda: tiff(Image.merge("CMYK", [smooth()] * 4)), "has CMYK colours"),
        (lambda: tiff(Image.merge("LAB", [smooth()] * 3)), "has LAB colours"),
        (colour_16, "has colours of 16 bits"),
        (lambda: encode(Image.merge("CMYK", [smooth()] * 4), "JPEG"), "has CMYK colours"),
        (lambda: encode(smooth(), "PNG", transparency=smooth().getpixel((4, 4))), "transparent"),
        (lambda: encode(smooth().convert("P"), "PNG", transparency=100), "transparent"),
        (lambda: encode(smooth(), "PNG", save_all=True, append_images=[smooth(1)]), "an animation"),
        (lambda: encode(smooth().convert("RGBA"), "BMP"), "may have opacity"),
        (lambda: encode(smooth(), "GIF"), "is not a PNG, JPEG, TIFF or BMP file"),
    ],
)
def test_what_has_no_single_grey_picture_is_refused(
    tmp_path: Path, make: Callable[[], bytes], reason: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(make())
    for read in (read_image, read_grey):
        with pytest.raises(BrokenImage, match=reason):
            read(path)


def test_the_header_is_looked_at_before_a_pixel_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(data: bytes) -> np.ndarray:
        raise AssertionError("decoded")

    image = Image.new("L", (1001, 1000))
    for name, kind in reader.KINDS.items():
        path = tmp_path / name
        image.save(path, name)
        monkeypatch.setitem(reader.KINDS, name, kind._replace(decode=decode))
        with pytest.raises(
            BrokenImage, match=r"too large \(1001 x 1000 pixels; .*max_megapixels=1"
        ):
            read_image(path, 1)
        with pytest.raises(AssertionError, match="decoded"):
            read_image(path, 2)


def test_the_limit_is_the_same_everywhere() -> None:
    assert keys.KEYS["data.max_megapixels"].default == reader.MAX_MEGAPIXELS


def test_files_are_read_in_threads(tmp_path: Path) -> None:
    """Pillow and cv2 share nothing between pictures."""
    paths = []
    for k, name in enumerate([*FILES] * 3):
        paths.append(tmp_path / str(k))
        paths[-1].write_bytes(FILES[name]())
    expected = [read_image(path) for path in paths]
    seen: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda k=k: seen.update({k: read_image(paths[k])}))
        for k in range(len(paths))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, image in enumerate(expected):
        np.testing.assert_array_equal(seen[k], image)
