"""Writes PNG, TIFF and JPEG files part by part, so that a mutation can change any part of them."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
Chunk = tuple[bytes, bytes]  # type, data
_COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # by number of channels
_ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


def png(chunks: Sequence[Chunk]) -> bytes:
    return PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def png_header(
    width: int, height: int, depth: int = 8, colour: int = 0, interlace: int = 0
) -> Chunk:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)


def png_chunks(
    picture: np.ndarray,
    *,
    interlaced: bool = False,
    pieces: int = 1,
    level: int = 6,
    depth: int | None = None,
    palette: np.ndarray | None = None,
) -> list[Chunk]:
    """IHDR, PLTE where there is a palette uint8 [n 3], `pieces` IDAT, IEND.

    picture: uint8 or uint16 [h w] or [h w c] with c = 1 to 4; with `depth` 1, 2 or 4, uint8 values below 2^depth.
    """
    cube = picture if picture.ndim == 3 else picture[..., None]
    depth = depth or 8 * picture.dtype.itemsize
    colour = 3 if palette is not None else _COLOUR_TYPE[cube.shape[2]]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    lines = b"".join(
        b"\0" + _png_line(line, depth)
        for y, x, dy, dx in passes
        if cube[y::dy, x::dx].size
        for line in cube[y::dy, x::dx]
    )
    stream = zlib.compress(lines, level)
    cuts = np.linspace(0, len(stream), pieces + 1).astype(int)
    chunks = [png_header(cube.shape[1], cube.shape[0], depth, colour, int(interlaced))]
    if palette is not None:
        chunks.append((b"PLTE", palette.astype(np.uint8).tobytes()))
    chunks += [(b"IDAT", stream[a:b]) for a, b in itertools.pairwise(cuts)]
    return [*chunks, (b"IEND", b"")]


def _png_line(line: np.ndarray, depth: int) -> bytes:
    if depth >= 8:
        return line.astype(f">u{depth // 8}").tobytes()
    bits = np.unpackbits(line.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - depth :]
    return np.packbits(bits.ravel()).tobytes()


def zeros_stream(size: int) -> bytes:
    """A zlib stream of `size` zero bytes, made from one compressed part that repeats."""
    part = 1 << 23
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(part)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, zlib.DEFLATED, -15)
    end = rest.compress(bytes(size % part)) + rest.flush()
    checksum = (size % 65521) << 16 | 1
    return b"\x78\xda" + block * (size // part) + end + struct.pack(">I", checksum)


def exif(orientation: int) -> bytes:
    """An EXIF block, without the six bytes that JPEG puts before it."""
    return (
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"
        + struct.pack("<HH", orientation, 0)
        + bytes(4)
    )


_FROM_STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a),
}


def stored_for(orientation: int, upright: np.ndarray) -> np.ndarray:
    """The pixels [h w] in a file whose picture is `upright` once the EXIF orientation is applied."""
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    return np.ascontiguousarray(_FROM_STORED[inverse](upright))


# ---- TIFF ------------------------------------------------------------------------------------------------------

NONE, LZW, DEFLATE, PACKBITS = 1, 5, 8, 32773
Tags = dict[int, Sequence[int]]


def tiff(
    pictures: Sequence[np.ndarray],
    *,
    order: str = "<",
    compression: int = NONE,
    rows_per_strip: int = 1 << 16,
    tile: int = 0,
    predictor: bool = False,
    directory_first: bool = False,
    tags: Tags | None = None,
) -> bytes:
    """One page per picture [h w] or [h w c], in strips, or with `tile` in square tiles. `tags` replace what is made."""
    out = (b"II*\0" if order == "<" else b"MM\0*") + bytes(4)
    link = 4  # where the offset of the next directory goes
    for picture in pictures:
        made, blocks = _page(picture, order, compression, rows_per_strip, tile, predictor)
        room = 6 + 12 * (len(made) + len(set(tags or {}) - set(made))) + 8 * len(blocks) + 64
        start = len(out) + (room if directory_first else 0)
        offsets = start + np.cumsum([0, *map(len, blocks)])[:-1]
        made[324 if tile else 273] = offsets.tolist()
        data = b"".join(blocks) + b"\0" * (sum(map(len, blocks)) % 2)
        place = len(out) + (0 if directory_first else len(data))
        directory, next_link = _directory({**made, **(tags or {})}, order, place)
        out = out[:link] + struct.pack(order + "I", place) + out[link + 4 :]
        out += directory.ljust(room, b"\0") + data if directory_first else data + directory
        link = next_link
    return out


def _page(
    picture: np.ndarray, order: str, compression: int, rows: int, tile: int, predictor: bool
) -> tuple[Tags, list[bytes]]:
    cube = picture if picture.ndim == 3 else picture[..., None]
    height, width, channels = cube.shape
    kind = picture.dtype.kind
    tags: Tags = {
        256: [width],
        257: [height],
        258: [8 * picture.dtype.itemsize] * channels,
        259: [compression],
        262: [2 if channels >= 3 else 1],
        277: [channels],
        339: [{"u": 1, "i": 2, "f": 3}[kind]] * channels,
    }
    if channels in (2, 4):
        tags[338] = [2]
    if tile:
        padded = np.pad(cube, ((0, -height % tile), (0, -width % tile), (0, 0)))
        parts = [
            padded[y : y + tile, x : x + tile]
            for y in range(0, height, tile)
            for x in range(0, width, tile)
        ]
        tags |= {322: [tile], 323: [tile]}
    else:
        parts = [cube[y : y + rows] for y in range(0, height, rows)]
        tags[278] = [min(rows, height)]
    if predictor:
        parts = [np.concatenate([part[:, :1], part[:, 1:] - part[:, :-1]], 1) for part in parts]
        tags[317] = [2]
    raw = [part.astype(picture.dtype.newbyteorder(order)).tobytes() for part in parts]
    packed = [{DEFLATE: zlib.compress, PACKBITS: _packbits}.get(compression, bytes)(r) for r in raw]
    tags[325 if tile else 279] = [len(block) for block in packed]
    tags[324 if tile else 273] = [0]
    return tags, packed


def _packbits(data: bytes) -> bytes:
    pieces = [data[i : i + 128] for i in range(0, len(data), 128)]
    return b"".join(bytes([len(piece) - 1]) + piece for piece in pieces)


def _directory(tags: Tags, order: str, place: int) -> tuple[bytes, int]:
    """(the bytes of a directory that starts at `place`, where in the file its link to the next one is)."""
    link = place + 2 + 12 * len(tags)
    entries, extra = b"", b""
    for tag, values in sorted(tags.items()):
        short = tag not in (256, 257, 273, 279, 324, 325)
        data = struct.pack(f"{order}{len(values)}{'H' if short else 'I'}", *values)
        if len(data) > 4:
            extra, data = extra + data, struct.pack(order + "I", link + 4 + len(extra))
        entries += struct.pack(order + "HHI", tag, 3 if short else 4, len(values))
        entries += data.ljust(4, b"\0")
    return struct.pack(order + "H", len(tags)) + entries + bytes(4) + extra, link


# ---- JPEG, and what another decoder says -----------------------------------------------------------------------


def jpeg(picture: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", **options)
    return out.getvalue()


def jpeg_segments(data: bytes) -> list[tuple[int, int]]:
    """(start, end) of each segment before the pixels, and last of the pixels with their header."""
    segments, start = [], 2
    while data[start + 1] != 0xDA:
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
        segments.append((start, end))
        start = end
    return [*segments, (start, len(data))]


def by_pillow(data: bytes) -> list[np.ndarray]:
    """The grey pictures [h w] that Pillow finds in a file: stored, and upright by its EXIF; none where it refuses."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            pictures = [image, upright]
            return [
                np.asarray(p.convert("L") if p.mode not in ("L", "I;16", "I;16B", "F", "I") else p)
                for p in pictures
            ]
    except Exception:  # Pillow raises whatever a broken file makes it raise
        return []
