"""Mutations of PNG files: by chunk, by field of the header and by bit."""

from __future__ import annotations

import struct

import numpy as np

from benchmarks.fuzz import formats
from benchmarks.fuzz.formats import png, png_chunks
from benchmarks.fuzz.scene import Kind, Mutant, Random, file_kind


def harmless(random: Random, pixels: np.ndarray) -> Mutant:
    """The same pixels written in another way."""
    chunks = png_chunks(pixels)
    deep = pixels.dtype == np.uint16
    ways = {
        "interlaced": lambda: png_chunks(pixels, interlaced=True),
        "many IDAT": lambda: png_chunks(pixels, pieces=int(random.integers(2, 40))),
        "not compressed": lambda: png_chunks(pixels, level=0),
        "an empty IDAT": lambda: [*chunks[:-1], (b"IDAT", b""), chunks[-1]],
        "a text": lambda: _with(random, chunks, (b"tEXt", b"Comment\0grey")),
        "gamma": lambda: _with(
            random, chunks, (b"gAMA", struct.pack(">I", 100000)), after_pixels=False
        ),
        "a time": lambda: _with(random, chunks, (b"tIME", b"\x07\xea\x01\x01\x01\x01\x01")),
        "an unknown part": lambda: _with(random, chunks, (b"teSt", bytes(50))),
        "grey in three planes": lambda: png_chunks(np.stack([pixels] * 3, -1)),
        "a grey palette": lambda: _grey_palette(random, pixels),
    }
    if deep:
        del ways["a grey palette"]
    way = str(random.choice(list(ways)))
    return Mutant(way, png(ways[way]()), [pixels], may_refuse=False)


def _with(
    random: Random, chunks: list[formats.Chunk], extra: formats.Chunk, after_pixels: bool = True
) -> list[formats.Chunk]:
    place = int(random.choice([1, len(chunks) - 1])) if after_pixels else 1
    return [*chunks[:place], extra, *chunks[place:]]


def _grey_palette(random: Random, pixels: np.ndarray) -> list[formats.Chunk]:
    """The palette's entries in another order than their greys."""
    order = random.permutation(256)
    return png_chunks(np.argsort(order)[pixels].astype(np.uint8), palette=np.stack([order] * 3, -1))


def few_bits(random: Random, pixels: np.ndarray) -> Mutant:
    """1, 2 or 4 bits: the file's own values, or spread over 8 bits as decoders do it."""
    depth = int(random.choice([1, 2, 4]))
    small = (
        (pixels > 0)
        if pixels.max() <= 1
        else pixels // (np.iinfo(pixels.dtype).max // 2**depth + 1)
    )
    small = small.astype(np.uint8)
    spread = small * np.uint8(255 // (2**depth - 1))
    return Mutant(
        f"{depth} bits", png(png_chunks(small, depth=depth)), [small, spread], False, ".png"
    )


def truncated(random: Random, pixels: np.ndarray) -> Mutant:
    data = png(
        png_chunks(pixels, interlaced=random.random() < 0.3, pieces=int(random.integers(1, 4)))
    )
    cut = int(random.integers(0, len(data)))
    return Mutant(f"{cut} of {len(data)} bytes", data[:cut])


def bit(random: Random, pixels: np.ndarray) -> Mutant:
    """One bit. Every chunk has a checksum, so only a bit outside of what makes the pixels may go unseen."""
    chunks = png_chunks(pixels, pieces=2)
    chunks.insert(1, (b"tEXt", b"Comment\0this does not matter to the pixels"))
    data = bytearray(png(chunks))
    place = int(random.integers(0, len(data)))
    data[place] ^= 1 << int(random.integers(0, 8))
    start, vital = 8, False
    for kind, content in chunks:
        end = start + 12 + len(content)
        if start <= place < end:
            vital = kind in (b"IHDR", b"IDAT")
        start = end
    return Mutant(f"bit at byte {place}", bytes(data), () if vital else [pixels])


def field(random: Random, pixels: np.ndarray) -> Mutant:
    """A field of the header has another value and a right checksum."""
    chunks = png_chunks(pixels)
    values = list(struct.unpack(">IIBBBBB", chunks[0][1]))
    place = int(random.integers(0, 7))
    others = [
        [0, 1, values[place] - 1, values[place] + 1, 2 * values[place], 70000, 2**31 - 1, 2**32 - 1]
    ] * 2
    others += [[0, 1, 2, 3, 4, 7, 8, 16, 32], [0, 1, 2, 3, 4, 5, 6, 7], [1, 2], [1, 64], [1, 2]]
    values[place] = int(random.choice(others[place]))
    chunks[0] = b"IHDR", struct.pack(">IIBBBBB", *values)
    name = ("width", "height", "depth", "colour", "compression", "filter", "interlace")[place]
    data = png(chunks)
    return Mutant(f"{name} {values[place]}", data, formats.by_pillow(data))


def chunk(random: Random, pixels: np.ndarray) -> Mutant:
    """A chunk is lost, twice there, in another place, or its content is damaged under a right checksum."""
    head, *body, end = png_chunks(pixels, pieces=4)
    stream = bytearray(b"".join(data for _, data in body))
    place = int(random.integers(2, len(stream) - 4))
    stream[place] ^= 1 << int(random.integers(0, 8))
    ways = {
        "lost IDAT": [head, *body[:1], *body[2:], end],
        "last IDAT lost": [head, *body[:-1], end],
        "swapped IDAT": [head, body[1], body[0], *body[2:], end],
        "IDAT twice": [head, body[0], *body, end],
        "IDAT apart": [head, *body[:2], (b"tEXt", b"Comment\0x"), *body[2:], end],
        "no IEND": [head, *body],
        "no IHDR": [*body, end],
        "two IHDR": [head, formats.png_header(8, 8), *body, end],
        "no IDAT": [head, end],
        "wrong bit in the stream": [head, (b"IDAT", bytes(stream)), end],
        "wrong checksum of the stream": [
            head,
            (b"IDAT", bytes(b"".join(d for _, d in body)[:-4]) + b"\1\2\3\4"),
            end,
        ],
    }
    way = str(random.choice(list(ways)))
    harmless_to_pixels = ("IDAT apart", "wrong checksum of the stream", "two IHDR")
    return Mutant(way, png(ways[way]), [pixels] if way in harmless_to_pixels else ())


def transparent(random: Random, pixels: np.ndarray) -> Mutant:
    top = np.iinfo(pixels.dtype).max
    alpha = np.full(pixels.shape, top, pixels.dtype)
    alpha[pixels > np.median(pixels)] = 0
    if random.random() < 0.3:
        alpha[:] = random.integers(0, top)
    if (alpha == top).all():
        alpha[: len(alpha) // 2] = 0
    key = struct.pack(">H", int(pixels.flat[random.integers(0, pixels.size)]))
    ways = {
        "grey and opacity": lambda: png_chunks(np.dstack([pixels, alpha])),
        "RGB and opacity": lambda: png_chunks(np.dstack([pixels] * 3 + [alpha])),
        "one grey is transparent": lambda: _with(random, png_chunks(pixels), (b"tRNS", key), False),
        "opaque": lambda: png_chunks(np.dstack([pixels, np.full_like(alpha, top)])),
    }
    way = str(random.choice(list(ways)))
    return Mutant(way, png(ways[way]()), [pixels] if way == "opaque" else ())


def animated(random: Random, pixels: np.ndarray) -> Mutant:
    head, stream, end = png_chunks(pixels)
    h, w = pixels.shape

    def frame(number: int) -> formats.Chunk:
        return b"fcTL", struct.pack(">IIIIIHHBB", number, w, h, 0, 0, 1, 10, 0, 0)

    control = b"acTL", struct.pack(">II", 2, 0)
    second = b"fdAT", struct.pack(">I", 2) + png_chunks(pixels[::-1])[1][1]
    return Mutant("2 frames", png([head, control, frame(0), stream, frame(1), second, end]))


def colour(random: Random, pixels: np.ndarray) -> Mutant:
    """Planes that say different things."""
    planes = np.stack([pixels, pixels[::-1], pixels[:, ::-1]], -1)
    if pixels.dtype == np.uint8 and random.random() < 0.4:
        data = png(png_chunks(pixels, palette=random.integers(0, 256, (256, 3))))
        return Mutant("a colour palette", data, for_reader=formats.by_pillow(data))
    wide = planes.astype(np.uint64) @ np.array([19595, 38470, 7471], np.uint64)
    luma = ((wide + 0x8000) >> 16).astype(pixels.dtype)
    return Mutant("RGB", png(png_chunks(planes)), for_reader=[luma])


KINDS: dict[str, Kind] = {
    "png_harmless": file_kind(harmless),
    "png_few_bits": file_kind(few_bits, ("image", "mask")),
    "png_truncated": file_kind(truncated),
    "png_bit": file_kind(bit),
    "png_field": file_kind(field),
    "png_chunk": file_kind(chunk),
    "png_transparent": file_kind(transparent),
    "png_animated": file_kind(animated),
    "png_colour": file_kind(colour, ("image", "reader")),
}
