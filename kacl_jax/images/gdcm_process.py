"""GDCM in a process of its own, because a damaged file can end it: python -m kacl_jax.images.gdcm_process

It alone decodes JPEG lossless, JPEG-LS and JPEG of 12 bits under a licence that fits.
"""

from __future__ import annotations

import atexit
import io
import struct
from queue import Empty, SimpleQueue

import numpy as np

from kacl_jax.images.picture import Unreadable
from kacl_jax.runtime.piped_process import EndedError, PipedProcess, serve

_HEADER = struct.Struct(
    "<2sII"
)  # numpy's code of the dtype, height, width; all 0: it cannot be decoded
_idle: SimpleQueue[PipedProcess] = SimpleQueue()


@atexit.register
def _end_idle_processes() -> None:
    """They would end with this process in any case, but Python would warn of each."""
    while not _idle.empty():
        _idle.get().end()


def decode_by_gdcm(data: bytes) -> np.ndarray:
    """The pixels [h w] of a DICOM file, as stored. Safe to use from threads.

    Raises:
      Unreadable: they cannot be decoded.
    """
    try:
        process = _idle.get_nowait()
    except Empty:
        process = PipedProcess(__name__, quiet=True)
    try:
        reply = process.call(data)
    except EndedError as error:
        raise Unreadable(f"has pixels that end their decoder ({error})") from error
    _idle.put(process)
    dtype, height, width = _HEADER.unpack_from(reply)
    if not height:
        raise Unreadable("has pixels that cannot be decoded")
    pixels = np.frombuffer(reply, dtype.decode(), offset=_HEADER.size)
    return pixels.reshape(height, width)


def _answer(request: bytes) -> bytes:
    import pydicom

    try:
        dataset = pydicom.dcmread(io.BytesIO(request), force=True)
        dataset.pixel_array_options(decoding_plugin="gdcm")
        pixels = np.ascontiguousarray(dataset.pixel_array)
        return _HEADER.pack(pixels.dtype.str[1:].encode(), *pixels.shape) + pixels.tobytes()
    except Exception:  # what a plugin raises depends on where the damage is
        return _HEADER.pack(b"", 0, 0)


if __name__ == "__main__":
    serve(_answer)
