"""Compiles a run's programs for a machine that is not there, and says what the compiler made of them.

    python -m benchmarks.compile_for --topology=v5e:2x4 [--what=train,eval,radiomics] [--encoder=resnet18]
        [--image_size=224] [--batch_size=512] [--dtype=float32] [--parallel=shard_map|pmap] [--radiomics=jax]
        [--json=FILE] [--hlo=FOLDER]

topology: a TPU slice by jax's name (v4:2x2x4, v5e:2x4, v5e:8x8, v6e:16x16 …), or h100 for one NVIDIA H100, h100:8 for
a host of eight. TPUs need the package libtpu, GPUs need jax[cuda12]. Give each a virtual environment of its own.
what: the train step, the evaluation step, and the radiomics of `--radiomics=jax` alone.
batch_size: over all devices together. json: the numbers. hlo: the compiled programs as text, for `benchmarks.hlo`.

Nothing runs, so no number here is a time. "At most" is what the memory's speed allows if each kernel reads and writes
its operands once, and each loop without a known number of turns turns once.
"""

from __future__ import annotations

import os

# Before jax is imported. libtpu asks for a TPU's own environment, and lets one process load it unless this is said.
if __name__ == "__main__":
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from benchmarks import bare, devices
from benchmarks.hlo import Part, Program
from kacl_jax import config as config_keys
from kacl_jax.runtime.devices import AXIS, DataParallel, Layout
from kacl_jax.runtime.errors import UserError
from kacl_jax.step.in_step_radiomics import InStepRadiomics
from kacl_jax.train import network

WHAT = ("train", "eval", "radiomics")
_H100 = Path(__file__).with_name("h100.txtpb")
_INSTALL = (
    "{package} is not installed, which compiles for {topology}. Install it in a virtual environment of its own: "
    "python3 -m venv VENV && VENV/bin/pip install -r requirements.lock && VENV/bin/pip install '{package}'"
)


class Task(NamedTuple):
    """A per-device function and the shapes of its arguments over all devices together; see `DataParallel.compile`."""

    function: Callable[[Any, Any], Any]
    outputs: tuple[Layout, ...]
    state: Any
    batch: Any
    donate_state: bool = False


def target_devices(topology: str) -> list[jax.Device]:
    """Devices that only compile. Raises UserError if the compiler is missing or does not know the topology."""
    kind, _, shape = topology.partition(":")
    try:
        if kind == "h100":
            _require("jax_cuda12_plugin", f"jax[cuda12]=={jax.__version__}", topology)
            return topologies.get_topology_desc(
                platform="cuda",
                topology_name="h100",
                topology=f"1x1x{int(shape or 1)}",
                target_config=_H100.read_text(),
            ).devices
        _require("libtpu", "libtpu", topology)
        options: dict[str, Any] = {"chip_config_name": "megacore"} if kind == "v4" else {}
        if shape == "2x4":  # eight chips of one host; larger slices have four a host
            options["chips_per_host_bounds"] = (2, 4, 1)
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        ).devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise UserError(
            f"--topology={topology} is no machine that can be compiled for ({str(error).splitlines()[0]}). Examples: "
            "v4:2x2x4, v5e:2x4, v5e:8x8, v6e:2x4, v6e:16x16, h100, h100:8"
        ) from error


def _require(module: str, package: str, topology: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(_INSTALL.format(package=package, topology=topology))


def make_tasks(config: ConfigDict) -> dict[str, Task]:
    """The programs of a run with this config, by their names in WHAT."""
    rule = network.region_rule(config)
    programs = network.programs(config, 1, rule, bare.FINDINGS)
    size, b = config.data.image_size, config.train.batch_size
    state = jax.eval_shape(lambda: programs.init(network.init_variables(programs, config), size))
    batch = {
        name: jax.ShapeDtypeStruct((b, *column.shape[1:]), column.dtype)
        for name, column in bare.random_batch(size, 2).items()
    }
    pictures = {name: batch[name] for name in ("image", "boxes")}
    pictures["cam"] = jax.ShapeDtypeStruct((b, *state.cam_mean.shape[1:]), jnp.float32)
    pictures["box_finding"] = jax.ShapeDtypeStruct((b,), jnp.int32)
    in_step = InStepRadiomics(rule, config.radiomics.bin_width)

    def measure(_: Any, rows: Any) -> tuple[Any]:
        images = rows["image"][..., 0]
        return (in_step.measure(images, rows["cam"], rows["box_finding"], rows["boxes"]),)

    train_outputs: tuple[Layout, ...] = ("replicated", "replicated", "sharded")
    return {
        "train": Task(programs.train_step, train_outputs, state, batch, donate_state=True),
        "eval": Task(programs.eval_step, ("sharded",), state, {"image": batch["image"]}),
        "radiomics": Task(measure, ("sharded",), (), pictures),
    }


def placed(parallel: DataParallel, tree: Any, layout: Layout) -> Any:
    """The shapes that `parallel.replicate` and `parallel.shard` would give, on devices that hold no array."""
    n, is_pmap = parallel.n_devices, parallel.mode == "pmap"
    spec = PartitionSpec(AXIS) if is_pmap or layout == "sharded" else PartitionSpec()

    def place(x: Any) -> jax.ShapeDtypeStruct:
        shape = x.shape
        if is_pmap:
            rows = x.shape if layout == "replicated" else (x.shape[0] // n, *x.shape[1:])
            shape = (n, *rows)
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=NamedSharding(parallel.mesh, spec))

    return jax.tree.map(place, tree)


def compile_task(task: Task, parallel: DataParallel, images: int) -> tuple[dict[str, Any], str]:
    """What the compiler says of the task, per chip and per image of its `images`, and the compiled text."""
    start = time.perf_counter()
    step: Any = parallel.compile(task.function, task.outputs, donate_state=task.donate_state)
    lowered = step.lower(
        placed(parallel, task.state, "replicated"), placed(parallel, task.batch, "sharded")
    )
    lower_s = time.perf_counter() - start
    # Without a GPU there is nothing to try kernels on.
    options = {"xla_gpu_autotune_level": "0"} if parallel.devices[0].platform == "gpu" else {}
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        return {"compiles": False, "why": str(error).splitlines()[0]}, ""
    compile_s = time.perf_counter() - start - lower_s
    memory, text = compiled.memory_analysis(), compiled.as_text()
    costs = compiled.cost_analysis()
    program = Program(text)
    parts = program.parts()
    held = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    return {
        "compiles": True,
        "lower_s": lower_s,
        "compile_s": compile_s,
        "memory_bytes": {**held, "together": sum(held.values())},
        "flop_per_image": costs["flops"] / images if costs else None,
        "parts": [_part_numbers(part, images) for part in parts],
        "main_bytes_per_image": main_bytes(parts) / images,
        "collectives": {
            when: {kind: sent._asdict() for kind, sent in kinds.items()}
            for when, kinds in program.collectives().items()
        },
    }, text


def _part_numbers(part: Part, images: int) -> dict[str, Any]:
    main, on_chip = (size / images for size in part.bytes)
    return {
        "path": part.path,
        "turns": part.turns,
        "kernels": part.kernels,
        "main_bytes_per_image": main,
        "on_chip_bytes_per_image": on_chip,
    }


def main_bytes(parts: list[Part]) -> int:
    """What the entry and its loops move in main memory; a loop without a known number of turns turns once."""
    turns = {part.path: part.turns or 1 for part in parts}
    total = 0
    for part in parts:
        times = 1
        for end in range(1, part.path.count("/") + 2):
            times *= turns["/".join(part.path.split("/")[:end])]
        total += times * part.bytes.main if "branch" not in part.path else 0
    return total


def describe(name: str, report: dict[str, Any], device: jax.Device) -> list[str]:
    """The report for people: the program, the loops and branches that move a hundredth of its bytes, the messages."""
    if not report["compiles"]:
        return [f"{name:10}does not compile: {report['why']}"]
    chip = devices.memory(device)
    flop, moved = report["flop_per_image"], report["main_bytes_per_image"]
    entry, *inner = report["parts"]
    lines = [
        f"{name:10}compiles in {report['compile_s']:.0f} s, "
        f"{report['memory_bytes']['together'] / 1e9:.2f} of {chip.size / 1e9:.0f} GB a chip"
        + (f", {flop / 1e9:.2f} GFLOP an image" if flop else "")
        + f", {_kernels(entry)}; at most {chip.speed / moved:,.0f} images/s a chip"
    ]
    for part in inner:
        if _moved(part) < _moved(entry) / 100:
            continue
        turns = f", {part['turns']} turns" if part["turns"] else ""
        lines.append(f"{'':10}{part['path'].removeprefix('entry/')}: {_kernels(part)}{turns}")
    for when, kinds in report["collectives"].items():
        sent = ", ".join(f"{n['number']} {kind} {n['bytes']:,} B" for kind, n in kinds.items())
        if sent:
            lines.append(f"{'':10}sent, {when}: {sent}")
    return lines


def _moved(part: dict[str, Any]) -> float:
    return part["main_bytes_per_image"] + part["on_chip_bytes_per_image"]


def _kernels(part: dict[str, Any]) -> str:
    main, on_chip = part["main_bytes_per_image"] / 1e6, part["on_chip_bytes_per_image"] / 1e6
    chip = f" (and {on_chip:.2f} in fast memory)" if on_chip else ""
    return f"{part['kernels']:,} kernels with {main:.2f} MB an image{chip}"


def main(arguments: list[str]) -> None:
    flags = _parse(arguments)
    target = target_devices(flags.topology)
    parallel = DataParallel(flags.parallel, target)
    config = config_keys.default()
    config.model.encoder, config.model.dtype = flags.encoder, flags.dtype
    config.data.image_size, config.train.batch_size = flags.image_size, flags.batch_size
    config.eval.batch_size = flags.batch_size
    config.parallel.mode, config.radiomics.backend = flags.parallel, flags.radiomics
    config.data.root = "phantom"  # nothing is read
    config_keys.check(config, n_devices=len(target))
    images = flags.batch_size // len(target)
    print(
        f"{flags.topology}: {len(target)} × {target[0].device_kind}, {images} images each, {flags.encoder}, "
        f"{flags.image_size} px, {flags.dtype}, {flags.parallel}, jax {jax.__version__}",
        flush=True,
    )
    reports: dict[str, Any] = {}
    for name, task in make_tasks(config).items():
        if name not in flags.what:
            continue
        reports[name], text = compile_task(task, parallel, images)
        print(*describe(name, reports[name], target[0]), sep="\n", flush=True)
        if flags.hlo and text:
            flags.hlo.mkdir(parents=True, exist_ok=True)
            (flags.hlo / f"{name}.hlo").write_text(text)
    if flags.json:
        settings = {
            name: value for name, value in vars(flags).items() if name not in ("json", "hlo")
        }
        flags.json.write_text(json.dumps({**settings, "programs": reports}, indent=2) + "\n")


def _parse(arguments: list[str]) -> argparse.Namespace:
    defaults = config_keys.default()
    parser = argparse.ArgumentParser(prog="benchmarks.compile_for", allow_abbrev=False)
    parser.add_argument("--topology", required=True)
    parser.add_argument("--what", type=lambda text: text.split(","), default=list(WHAT))
    parser.add_argument("--encoder", default=defaults.model.encoder)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--dtype", default=defaults.model.dtype)
    parser.add_argument("--parallel", default=defaults.parallel.mode)
    parser.add_argument("--radiomics", default=defaults.radiomics.backend)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--hlo", type=Path)
    flags = parser.parse_args(arguments)
    if unknown := set(flags.what) - set(WHAT):
        parser.error(f"--what={','.join(sorted(unknown))}: there are {', '.join(WHAT)}")
    return flags


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
