"""Weight files that were made to do harm. The oracle: a sentence, and a folder that only a pickle's code would make."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

from benchmarks.fuzz.judge import Case
from benchmarks.fuzz.scene import Kind, Random, take
from benchmarks.fuzz.torch_files import LEGACY_HEAD, to_bytes
from benchmarks.fuzz.weights import loaded_case, small_weights, stored


class _Call:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments, state) if state else (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def _evil(random: Random, bait: Path, turn: int) -> tuple[str, bytes]:
    """(what, a pickle that makes the folder `bait`, hangs or fills the memory where it is loaded without care)."""
    text = f"__import__('os').mkdir({str(bait)!r})"
    deep: Any = {}
    for _ in range(300):
        deep = {"a": deep}
    wide: Any = {}
    for _ in range(60):
        wide = {"a": wide, "b": wide}
    loop: Any = {}
    loop["a"] = loop
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n"
    made = str(bait).encode()
    argument = b"X" + len(made).to_bytes(4, "little") + made
    ways = {
        "mkdir": pickle.dumps({"w": _Call(os.mkdir, str(bait))}),
        "eval": pickle.dumps({"w": _Call(eval, text)}, 0),
        "exec": pickle.dumps(_Call(exec, text), 4),
        "in an OrderedDict": pickle.dumps(OrderedDict(w=[_Call(os.mkdir, str(bait))]), 2),
        "getattr": pickle.dumps(_Call(getattr, "", "join"), 2),
        "INST": b"(S'" + made + b"'\nios\nmkdir\n.",
        "OBJ": b"(cos\nmkdir\nS'" + made + b"'\no.",
        "NEWOBJ": b"\x80\x02cos\nmkdir\n" + argument + b"\x85\x81.",
        "BUILD of a class": b"\x80\x02cos\nsystem\n}X\x01\x00\x00\x00aK\x01sb.",
        "BUILD of a function": b"\x80\x02" + tensor + b"N}X\x08\x00\x00\x00__code__K\x01s\x86b.",
        "a tensor of a function": b"\x80\x02" + tensor + b"(cos\nmkdir\nK\x00))}tR.",
        "a persistent id": b"\x80\x02X\x03\x00\x00\x00abcQ.",
        "a module's id": b"\x80\x02X\x06\x00\x00\x00modulecos\nmkdir\n\x86Q" + argument + b"\x85R.",
        "a memo with gaps": b"\x80\x02}r\xff\xff\xff\xff.",
        "a long text": b"\x80\x02X\xff\xff\xff\xffabc.",
        "a longer text": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        "many bytes": b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\x00\x00abc.",
        "a long number": b"I" + b"9" * 100_000 + b"\n.",
        "a longer number": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
        "depth": pickle.dumps(deep),
        "more depth": b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 100_000 + b"}" + b"s" * 100_000 + b".",
        "width": pickle.dumps(wide),
        "a loop": pickle.dumps(loop),
        "a lone surrogate": pickle.dumps({"\udcff": _Call(os.mkdir, str(bait))}),
        "an odd name": b"\x80\x04X\x03\x00\x00\x00a\x00bX\x02\x00\x00\x00\xc3\xa9\x93)R.",
        "an extension": b"\x80\x02\x82\x01.",
        "no end": b"\x80\x02}",
        "a frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
    }
    what = take(ways, turn)
    return what, ways[what]


def _hostile_pickle(random: Random, folder: Path, turn: int) -> Case:
    """A pickle with code, or one that reserves memory, in an archive, behind the head of an old file, or alone."""
    what, pickled = _evil(random, folder / "bait", turn)
    form = str(random.choice(["archive", "behind a head", "alone"]))
    out = io.BytesIO()
    if form == "archive":
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/data/0", bytes(64))
    else:
        head = [pickle.dumps(part, 2) for part in LEGACY_HEAD] if form == "behind a head" else []
        out.write(b"".join([*head, pickled, pickle.dumps(["0"]), bytes(64)]))
    return loaded_case(f"{what}, {form}", folder, out.getvalue(), None)


def _hostile_file(random: Random, folder: Path, turn: int) -> Case:
    """An archive that unpacks to gigabytes, tensors that reach past their storage, headers that lie, other files."""
    weights = small_weights(random)
    whole = to_bytes(weights)
    ways = {
        "a compressed archive": lambda: _repacked(whole, compressed=True),
        "an archive of zeros": lambda: _bomb(),
        "two pickles": lambda: _repacked(whole, more={"other/data.pkl": b"."}),
        "a storage less": lambda: _repacked(whole, less="archive/data/0"),
        "a storage of another length": lambda: _repacked(whole, more={"archive/data/0": bytes(3)}),
        "another byte order": lambda: _repacked(whole, more={"archive/byteorder": b"big"}),
        "a huge shape": lambda: _repacked(whole, change=(b"K\x08K\x03", b"J\xff\xff\xff\x7fK\x03")),
        "a shape of text": lambda: _repacked(whole, change=(b"K\x08K\x03", b"U\x018K\x03")),
        "a negative shape": lambda: _repacked(
            whole, change=(b"K\x08K\x03", b"J\xff\xff\xff\xffK\x03")
        ),
        "another storage type": lambda: _repacked(
            whole, change=(b"FloatStorage", b"QUInt8Storage")
        ),
        "another function": lambda: _repacked(
            whole, change=(b"_rebuild_tensor_v2", b"_rebuild_qtensor")
        ),
        "an archive in an archive": lambda: _repacked(whole, more={"archive/data.pkl": whole}),
        "an empty file": lambda: b"",
        "an empty archive": lambda: b"PK\x05\x06" + bytes(18),
        "a page": lambda: b"<html>404 not found</html>",
        "noise": lambda: random.bytes(int(random.integers(1, 5000))),
        "safetensors named so": lambda: stored(weights, "safetensors"),
    }
    headers = {
        "a huge header": (1 << 62).to_bytes(8, "little") + b"{}",
        "a header past the end": (1 << 20).to_bytes(8, "little") + b"{}",
        "a header of a list": _safetensors([]),
        "deep JSON": _safetensors(None, b"[" * 100_000),
        "offsets that overlap": _safetensors({n: _entry([0, 4]) for n in weights}),
        "offsets past the end": _safetensors({"a": _entry([0, 1 << 40])}),
        "negative offsets": _safetensors({"a": _entry([-4, 0])}),
        "an unknown type": _safetensors({"a": _entry([0, 4]) | {"dtype": "F3"}}),
        "eight bits": _safetensors({"a": _entry([0, 1]) | {"dtype": "F8_E4M3"}}),
        "a shape that overflows": _safetensors({"a": _entry([0, 4]) | {"shape": [1 << 33, 1 << 33]}}),
        "a name twice": _safetensors(None, b'{"a":1,"a":2}'),
        "a pickle named so": whole,
    }  # fmt: skip
    what = take([*ways, *headers], turn)
    if what in ways:
        return loaded_case(what, folder, ways[what](), None)
    return loaded_case(what, folder, headers[what], None, layout="safetensors")


def _entry(offsets: list[int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [1], "data_offsets": offsets}


def _safetensors(header: Any, text: bytes = b"") -> bytes:
    text = text or json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


def _repacked(
    whole: bytes,
    *,
    compressed: bool = False,
    more: dict[str, bytes] | None = None,
    less: str = "",
    change: tuple[bytes, bytes] = (b"", b""),
) -> bytes:
    """The archive again, with other entries or with other bytes in its pickle."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name != less}
    pickled = files["archive/data.pkl"].replace(*change) if change[0] else files["archive/data.pkl"]
    files |= {"archive/data.pkl": pickled} | (more or {})
    out = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def _bomb() -> bytes:
    """A few kilobytes that unpack to 512 MB of pickle."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data.pkl", "w") as file,
    ):
        for _ in range(512):
            file.write(bytes(1 << 20))
    return out.getvalue()


KINDS: dict[str, Kind] = {"weights_pickle": _hostile_pickle, "weights_file": _hostile_file}
