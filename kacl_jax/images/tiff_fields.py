"""The fields of a TIFF directory, in TIFF files and in the EXIF part of PNG and JPEG files (TIFF 6.0, section 2)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from kacl_jax.images.picture import Unreadable

_ORIENTATION = 274
# Code of a field's type → its format in `struct`; BYTE, SHORT and LONG are whole numbers.
_FORMATS = dict(enumerate(["B", "c", "H", "I", "II", "b", "c", "h", "i", "ii", "f", "d"], start=1))
_WHOLE_NUMBERS = (1, 3, 4)


class Directory(NamedTuple):
    """Tag → values of the fields that hold whole numbers, and whether another directory follows."""

    fields: dict[int, tuple[int, ...]]
    has_next: bool


def read_directory(data: bytes) -> Directory:
    """The first directory of a TIFF file.

    Raises:
        Unreadable: it does not lie within these bytes.
    """
    try:
        order = {b"II": "<", b"MM": ">"}[data[:2]]
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        entries = [
            struct.unpack_from(order + "HHI", data, start + 2 + 12 * k) for k in range(count)
        ]
        fields = {}
        for k, (tag, kind, length) in enumerate(entries):
            if kind not in _FORMATS or length == 0:
                continue
            size = length * struct.calcsize(order + _FORMATS[kind])
            at = start + 2 + 12 * k + 8
            if size > 4:
                (at,) = struct.unpack_from(order + "I", data, at)
            if at + size > len(data):
                raise struct.error
            if kind in _WHOLE_NUMBERS:
                fields[tag] = struct.unpack_from(f"{order}{length}{_FORMATS[kind]}", data, at)
        (following,) = struct.unpack_from(order + "I", data, start + 2 + 12 * count)
    except (struct.error, KeyError) as error:
        raise Unreadable("is truncated (its directory is not complete)") from error
    return Directory(fields, following != 0)


def exif_orientation(data: bytes) -> int:
    """The orientation in a block of EXIF data, 1 … 8; 1, as stored, if the block has none or is damaged."""
    try:
        (orientation,) = read_directory(data).fields.get(_ORIENTATION, (1,))
    except (Unreadable, ValueError):
        return 1
    return orientation if 1 <= orientation <= 8 else 1
