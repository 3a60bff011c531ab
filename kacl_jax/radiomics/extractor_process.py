"""A process that measures regions by pyradiomics. It never imports jax, nor the script that started it.

    python -m kacl_jax.radiomics.extractor_process BIN_WIDTH BIN_COUNT

BIN_COUNT is 0 where a width is used. Raw bytes go through its pipes. It writes READY once it can measure. A region on
its standard input is REGION, the pixels, then the mask; the answer on its standard output is REPLY, then the reason or
the features. It ends when its input ends, so it never outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from typing import BinaryIO

import numpy as np

from kacl_jax.radiomics.host import Extractor

READY = b"R"
REGION = struct.Struct("<?II")  # whether the pixels are float32, height, width
REPLY = struct.Struct("<?I")  # whether there are features, number of bytes that follow


def encode_region(pixels: np.ndarray, mask: np.ndarray) -> bytes:
    """pixels: uint8 or float32 [h w]. mask: bool [h w]."""
    header = REGION.pack(pixels.dtype == np.float32, *pixels.shape)
    return header + pixels.tobytes() + mask.tobytes()


def decode_reply(stream: BinaryIO) -> np.ndarray | str:
    """The features float64 [f] of a region, or the reason why it has none. Raises EOFError if the process has ended."""
    has_features, size = REPLY.unpack(_read(stream, REPLY.size))
    data = _read(stream, size)
    return np.frombuffer(data, np.float64) if has_features else data.decode()


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _decode_region(stream: BinaryIO) -> tuple[np.ndarray, np.ndarray]:
    is_float, height, width = REGION.unpack(_read(stream, REGION.size))
    dtype = np.dtype(np.float32 if is_float else np.uint8)
    pixels = np.frombuffer(_read(stream, height * width * dtype.itemsize), dtype)
    mask = np.frombuffer(_read(stream, height * width), bool)
    return pixels.reshape(height, width), mask.reshape(height, width)


def _encode_reply(result: np.ndarray | str) -> bytes:
    data = result.encode() if isinstance(result, str) else result.tobytes()
    return REPLY.pack(not isinstance(result, str), len(data)) + data


def main() -> None:
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints goes to standard error, not among the replies
    extractor = Extractor(float(sys.argv[1]), int(sys.argv[2]) or None)
    message = READY
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            replies.write(message)
            replies.flush()
            region = _decode_region(sys.stdin.buffer)
            message = _encode_reply(extractor.features_or_reason(*region))


if __name__ == "__main__":
    main()
