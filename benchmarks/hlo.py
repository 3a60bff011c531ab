"""What a compiled program does, read from its scheduled HLO text (`compiled.as_text()`): kernels, bytes, messages.

    python -m benchmarks.hlo FILE [images]        kernels and bytes of each part, over the number of images

`cost_analysis()["bytes accessed"]` counts the operands inside fusions too, which never leave the chip. Here a kernel is
one scheduled instruction. It reads its operands and writes its results, once each. Of an operand that it only slices or
gathers from, it reads what it takes; of a result that it updates in place, it writes the update. A GPU's cache may hold
what is counted here, and a convolution may read an operand twice. An array is as large as its padded tiles, and an
array that XLA places in a TPU's fast memory is counted apart.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Nothing runs for these. A copy in the background counts where it ends.
_FREE = {"parameter", "tuple", "get-tuple-element", "constant", "bitcast", "after-all", "domain"}
_FREE |= {"partition-id", "replica-id", "opt-barrier", "add-dependency", "async-update"}
_FREE_CUSTOM_CALL = re.compile('custom_call_target="(ConcatBitcast|AllocateBuffer|.*Indices.*)"')
_TAKE_A_PART = {"slice", "dynamic-slice", "gather"}
_COLLECTIVE = re.compile(
    "(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-done)?"
)

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(?:calls|body|condition|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:true|false)_computation=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")
_CHAIN = re.compile(r'chain_id="(\d+)"')
_TURNS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\](?:\{([\d,]*)([^}]*)\})?")


class Bytes(NamedTuple):
    """main: in the device's main memory. on_chip: in a TPU's fast memory."""

    main: int
    on_chip: int


class Part(NamedTuple):
    """What the entry, one turn of a loop or one branch does, without the loops and branches inside it.

    path: 'entry', 'entry/loop 2', 'entry/loop 2/branch 1' …, numbered in the order of the text.
    kernels: how many. turns: of a loop, where XLA knows them.
    """

    path: str
    kernels: int
    bytes: Bytes
    turns: int | None


class Sent(NamedTuple):
    """Collectives of one kind: how many, and the bytes of their results."""

    number: int
    bytes: int


class _Array(NamedTuple):
    bytes: int
    on_chip: bool


class _Instruction(NamedTuple):
    name: str
    type: str
    operation: str
    arguments: str
    attributes: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)


class Program:
    """The computations of one compiled program. text: of a program after XLA's scheduling."""

    def __init__(self, text: str) -> None:
        self._computations: dict[str, list[_Instruction]] = {}
        current: list[_Instruction] = []
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                current = self._computations.setdefault(header[2], [])
                if header[1]:
                    self._entry = header[2]
            elif x := _INSTRUCTION.match(line):
                arguments, attributes = _split_call(x[5])
                current.append(_Instruction(x[2], x[3], x[4], arguments, attributes, bool(x[1])))

    def parts(self) -> list[Part]:
        """The entry first, then each loop's turn and each branch."""
        return list(self._parts(self._entry, "entry", None))

    def collectives(self) -> dict[str, dict[str, Sent]]:
        """When → kind → the collectives. A step that is logged takes a branch. What a loop sends counts once.

        A TPU may send in the background of a chain of kernels, each of which names the same collective.
        """
        in_branches, chains = self._in_branches(), set[str]()
        sent: dict[str, dict[str, Sent]] = {"every step": {}, "more when logged": {}}
        for name, instructions in self._computations.items():
            kinds = sent["more when logged" if name in in_branches else "every step"]
            for x in instructions:
                kind, chain = _COLLECTIVE.fullmatch(x.operation), _CHAIN.search(x.attributes)
                if not kind or (chain and chain[1] in chains):
                    continue
                if chain:
                    chains.add(chain[1])
                before = kinds.get(kind[1], Sent(0, 0))
                size = sum(array.bytes for array in _arrays(x.type, padded=False))
                kinds[kind[1]] = Sent(before.number + 1, before.bytes + size)
        return sent

    def _parts(self, computation: str, path: str, turns: int | None) -> Iterator[Part]:
        instructions = {x.name: x for x in self._inlined(computation)}
        moved = [
            self._arrays_moved(x, instructions) for x in instructions.values() if self._runs(x)
        ]
        yield Part(path, len(moved), _total([array for arrays in moved for array in arrays]), turns)
        loops = [x for x in instructions.values() if x.operation == "while"]
        for number, loop in enumerate(loops, 1):
            known = _TURNS.search(loop.attributes)
            body = re.findall(r"body=%?([\w.\-]+)", loop.attributes)[0]
            yield from self._parts(body, f"{path}/loop {number}", int(known[1]) if known else None)
        branches = [name for x in instructions.values() for name in _branches(x)]
        for number, branch in enumerate(branches, 1):
            yield from self._parts(branch, f"{path}/branch {number}", None)

    def _inlined(self, computation: str) -> Iterator[_Instruction]:
        """The instructions of a computation and of those that it calls, as a GPU's command buffers are."""
        for x in self._computations[computation]:
            yield x
            if x.operation == "call":
                yield from self._inlined(_CALLED.findall(x.attributes)[0])

    def _runs(self, x: _Instruction) -> bool:
        """Whether x is a kernel."""
        if x.operation in _FREE or x.operation in ("while", "conditional", "call"):
            return False
        return not x.operation.endswith("-start") and not _FREE_CUSTOM_CALL.search(x.attributes)

    def _arrays_moved(self, x: _Instruction, instructions: dict[str, _Instruction]) -> list[_Array]:
        """What the kernel x reads and writes."""
        results = _arrays(x.type)
        if x.operation.endswith("-done"):
            x = instructions[x.operands[0]]
        operands = [_arrays(instructions[n].type) for n in x.operands if n in instructions]
        body = self._fused(x)
        if x.operation.removesuffix("-start") in _TAKE_A_PART:
            operands[0] = _resized(operands[0], sum(array.bytes for array in results))
        elif x.operation == "dynamic-update-slice":
            operands[0], results = [], operands[1]
        elif body:
            for index, taken in _taken_of_parameters(body).items():
                whole = sum(array.bytes for array in operands[index])
                operands[index] = _resized(operands[index], min(taken, whole))
            results = [
                array if update is None else array._replace(bytes=update)
                for array, update in zip(results, _updates(body, len(results)), strict=True)
            ]
        return [array for arrays in (*operands, results) for array in arrays]

    def _fused(self, x: _Instruction) -> list[_Instruction]:
        if x.operation != "fusion":
            return []
        return self._computations[_CALLED.findall(x.attributes)[0]]

    def _in_branches(self) -> set[str]:
        """The computations that run in a branch only, as what a step computes when it logs."""
        instructions = [x for computation in self._computations.values() for x in computation]
        todo, reached = [name for x in instructions for name in _branches(x)], set[str]()
        while todo:
            name = todo.pop()
            if name not in reached:
                reached.add(name)
                for x in self._computations[name]:
                    todo += _CALLED.findall(x.attributes)
        return reached


def _split_call(text: str) -> tuple[str, str]:
    """'a, b(c)), d=e' → ('a, b(c)', ', d=e'): what the call's own parentheses hold, and the rest."""
    depth = 1
    for place, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return text[:place], text[place + 1 :]
    return text, ""


def _branches(x: _Instruction) -> list[str]:
    if x.operation != "conditional":
        return []
    return re.findall(
        r"[\w.\-]+", " ".join(" ".join(pair) for pair in _BRANCHES.findall(x.attributes))
    )


def _arrays(type_: str, *, padded: bool = True) -> list[_Array]:
    """The arrays of a type such as 'f32[4,100]{1,0:T(8,128)S(1)}', or of a tuple of these."""
    arrays = []
    for kind, bits, dimensions, order, layout in _ARRAY.findall(type_):
        sides = [int(side) for side in dimensions.split(",") if side]
        if padded and sides and (tile := re.match(r":T\(([\d,]+)\)", layout)):
            minor_first = [int(axis) for axis in order.split(",")]
            for axis, multiple in zip(minor_first, reversed(tile[1].split(",")), strict=False):
                sides[axis] = -(-sides[axis] // int(multiple)) * int(multiple)
        width = int(bits) if bits else 8 if kind == "pred" else 0
        arrays.append(_Array(math.prod(sides) * width // 8, "S(1)" in layout))
    return arrays


def _resized(arrays: list[_Array], size: int) -> list[_Array]:
    """The first array with `size` bytes."""
    return [arrays[0]._replace(bytes=size)] if arrays else []


def _total(arrays: list[_Array]) -> Bytes:
    on_chip = sum(array.bytes for array in arrays if array.on_chip)
    return Bytes(sum(array.bytes for array in arrays) - on_chip, on_chip)


def _taken_of_parameters(body: list[_Instruction]) -> dict[int, int]:
    """Index of a fusion's parameter → the bytes that it reads of it, where it takes parts or updates it in place."""
    taken = {}
    for parameter in body:
        users = [x for x in body if parameter.name in x.operands]
        if parameter.operation == "parameter" and all(_is_partial(x, parameter) for x in users):
            parts = [x for x in users if x.operation in _TAKE_A_PART]
            taken[int(parameter.arguments)] = sum(a.bytes for x in parts for a in _arrays(x.type))
    return taken


def _is_partial(x: _Instruction, operand: _Instruction) -> bool:
    """Whether x touches a part of `operand` only, which is its first operand and not one of the indices."""
    partial = x.operation in _TAKE_A_PART or x.operation == "dynamic-update-slice"
    return partial and x.operands.index(operand.name) == 0 and x.operands.count(operand.name) == 1


def _updates(body: list[_Instruction], n_results: int) -> list[int | None]:
    """Per result of a fusion: the bytes of the update where it is updated in place, else None."""
    by_name = {x.name: x for x in body}
    root = next(x for x in body if x.is_root)
    outputs = [by_name[name] for name in root.operands] if root.operation == "tuple" else [root]
    if len(outputs) != n_results:  # a result that is a tuple itself
        return [None] * n_results
    return [
        _arrays(by_name[x.operands[1]].type)[0].bytes
        if x.operation == "dynamic-update-slice"
        else None
        for x in outputs
    ]


def main(file: str, images: str = "1") -> None:
    for part in Program(Path(file).read_text()).parts():
        main_memory, on_chip = (f"{size / int(images) / 1e6:10.2f} MB" for size in part.bytes)
        turns = f", {part.turns} turns" if part.turns else ""
        print(f"{part.path:24}{part.kernels:6} kernels{main_memory} main{on_chip} on chip{turns}")


if __name__ == "__main__":
    main(*sys.argv[1:])
