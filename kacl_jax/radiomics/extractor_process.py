"""A process that measures regions by pyradiomics: python -m kacl_jax.radiomics.extractor_process BIN_WIDTH BIN_COUNT

BIN_COUNT is 0 where a width is used. It never imports jax, nor the script that started it.
"""

from __future__ import annotations

import struct
import sys

import numpy as np

from kacl_jax.radiomics.host import Extractor
from kacl_jax.runtime.piped_process import serve

_REGION = struct.Struct("<?II")  # whether the pixels are float32, height, width
_FEATURES, _REASON = b"F", b"R"  # how a reply begins


def encode_region(pixels: np.ndarray, mask: np.ndarray) -> bytes:
    """pixels: uint8 or float32 [h w]. mask: bool [h w]."""
    header = _REGION.pack(pixels.dtype == np.float32, *pixels.shape)
    return header + pixels.tobytes() + mask.tobytes()


def decode_reply(reply: bytes) -> np.ndarray | str:
    """The features float64 [f] of a region, or the reason why it has none."""
    kind, content = reply[:1], reply[1:]
    return np.frombuffer(content, np.float64) if kind == _FEATURES else content.decode()


def _decode_region(request: bytes) -> tuple[np.ndarray, np.ndarray]:
    is_float, height, width = _REGION.unpack_from(request)
    dtype = np.dtype(np.float32 if is_float else np.uint8)
    n_pixels, start = height * width, _REGION.size
    pixels = np.frombuffer(request, dtype, n_pixels, start)
    mask = np.frombuffer(request, bool, n_pixels, start + pixels.nbytes)
    return pixels.reshape(height, width), mask.reshape(height, width)


def _encode_reply(result: np.ndarray | str) -> bytes:
    return _REASON + result.encode() if isinstance(result, str) else _FEATURES + result.tobytes()


def main() -> None:
    extractor = Extractor(float(sys.argv[1]), int(sys.argv[2]) or None)
    serve(lambda request: _encode_reply(extractor.features_or_reason(*_decode_region(request))))


if __name__ == "__main__":
    main()
