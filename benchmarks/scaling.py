"""The numbers of docs/scaling.md that the code itself can give: what a step computes, stores and sends.

    python -m benchmarks.scaling                    counts of parameters and statistics; seconds
    python -m benchmarks.scaling flops              FLOPs of a train step from XLA's own cost analysis; minutes
    python -m benchmarks.scaling collectives        what XLA sends between two devices; a minute
    python -m benchmarks.scaling host FOLDER        CPU time of a region and of a PNG (X-rays in FOLDER); a minute
    python -m benchmarks.scaling throughput         the estimate of images/s from the constants below; at once

Only the last is an estimate. Nothing was measured on the machines that it lists.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# Two devices on any machine are enough for XLA to compile the collectives.
if __name__ == "__main__" and "collectives" in sys.argv:
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import cv2
import jax
import numpy as np

from benchmarks import bare, hlo
from kacl_jax.radiomics.host import Extractor
from kacl_jax.runtime.devices import DataParallel
from kacl_jax.step import regions
from kacl_jax.step.programs import Programs

ENCODERS = ("resnet18", "resnet50", "efficientnet_lite0")

# Per image, of a KACL train step (from `flops`).
GFLOP = {
    ("resnet18", 224): 9.99,
    ("resnet18", 512): 54.33,
    ("resnet50", 224): 24.05,
    ("resnet50", 512): 127.51,
}
# CPU ms (from `host`): measuring a region whose side is 29 % of the image's; marking it, in the one thread of each
# process that runs the loop; decoding a PNG of 1024 px.
REGION_MS = {224: 7.4, 512: 16.5}
MARK_MS = {224: 0.35, 512: 1.85}
PNG_MS = 6.4
# Peak bf16 TFLOP/s of one accelerator, number of accelerators, hosts, physical cores of all hosts; sources in
# docs/scaling.md.
MACHINES = {
    "v5e-8": (197, 8, 1, 112),
    "v4-32": (275, 16, 4, 480),
    "8×H100": (989, 8, 1, 104),
}
MFU = (0.05, 0.12)  # assumed; the memory of v4-32 allows ResNet-18 no more, see docs/scaling.md
# Images of NIH's training list without a tenth for validation; the default number of epochs.
TRAINING, EPOCHS = 77_900, 20


def state_shapes(program: Programs, size: int) -> Any:
    """The shapes of the TrainState, without computing anything."""
    return jax.eval_shape(lambda: program.init(bare.initial_variables(program.model, size), size))


def count_numbers(tree: Any) -> int:
    """How many numbers all leaves hold together."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def compile_step(encoder: str, size: int, b: int) -> Any:
    """The train step as XLA compiles it for the devices of this machine."""
    program = bare.make_programs(encoder)
    step = DataParallel("shard_map").compile(
        program.train_step, ("replicated", "replicated", "sharded")
    )
    return step.lower(state_shapes(program, size), bare.random_batch(size, b)).compile()


def counts() -> None:
    print(f"{'encoder':20}{'parameters':>12}{'statistics':>12}{'gradient MB':>13}{'state MB':>10}")
    for encoder in ENCODERS:
        state = state_shapes(bare.make_programs(encoder), 512)
        p, s = count_numbers(state.params), count_numbers(state.batch_stats)
        print(
            f"{encoder:20}{p:12,}{s:12,}{4 * p / 1e6:13.1f}{4 * count_numbers(state) / 1e6:10.1f}"
        )


def flops(b: int = 8) -> None:
    # Without EfficientNet, because the analysis counts its depthwise convolutions as if they were dense.
    for encoder in ("resnet18", "resnet50"):
        for size in (224, 512):
            step = compile_step(encoder, size, b)
            work = step.cost_analysis()["flops"] / b / 1e9
            held = step.memory_analysis().temp_size_in_bytes / b / 1e6
            print(f"{encoder:10}{size:5} px{work:9.2f} GFLOP/image{held:9.1f} MB/image", flush=True)


def collectives(b: int = 32) -> None:
    """Bytes that enter each kind of collective, per device: in every step, and more in a step that is logged."""
    for encoder in ENCODERS:
        program = hlo.Program(compile_step(encoder, 64, b).as_text())
        for when, sent in program.collectives().items():
            sizes = "  ".join(f"{kind} {total.bytes:,} B" for kind, total in sorted(sent.items()))
            print(f"{encoder:20}{when:20}{sizes}", flush=True)


def host(folder: str) -> None:
    """Medians of the process time on one core, which hardly depends on how busy the machine is."""
    extractor = Extractor(bin_width=25.0)
    grey = [
        cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in sorted(Path(folder).glob("*.png"))[:32]
    ]
    for side in (60, 150, 300):
        mask = np.zeros((512, 512), bool)
        mask[100 : 100 + side, 100 : 100 + side] = True
        pixels = [cv2.resize(image, (512, 512), interpolation=cv2.INTER_AREA) for image in grey]
        ms = _median_ms([partial(extractor.extract, image, mask) for image in pixels])
        print(f"region of {side:3} px, tuned pyradiomics {ms:8.1f} ms")
    maps = np.random.default_rng(0).normal(size=(32, 16, 16)).astype(np.float32)
    for side in (224, 512):
        mark = partial(regions.threshold_map, size=side, relu=True, threshold=0.5)
        ms = _median_ms([partial(mark, cv2.GaussianBlur(cam, (0, 0), 2)) for cam in maps])
        print(f"region marked from a map, {side:4} px {ms:11.2f} ms, on the loop's own thread")
    for side in (1024, 512):
        files = [cv2.imencode(".png", cv2.resize(image, (side, side)))[1] for image in grey]
        ms = _median_ms([partial(cv2.imdecode, file, cv2.IMREAD_GRAYSCALE) for file in files])
        print(f"PNG of {side:4} px, decoded {ms:18.1f} ms")


def _median_ms(calls: list[Callable[[], Any]]) -> float:
    times = []
    for call in calls * 3:
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times)


def throughput() -> None:
    """Estimates of images/s: the devices alone at the assumed MFU, each task of the hosts alone, and the minimum."""
    print(
        "machine  encoder    px        devices   PNG 1024   measured    marked        least  minutes: alone    least"
    )
    for machine, (peak, n, hosts, cores) in MACHINES.items():
        for (encoder, size), gflop in GFLOP.items():
            devices = [peak * n * 1e3 / gflop * mfu for mfu in MFU]
            measured, marked = cores / REGION_MS[size] * 1e3, hosts / MARK_MS[size] * 1e3
            least = [min(rate, measured, marked) for rate in devices]
            print(
                f"{machine:8}{encoder:9}{size:4}{_span(devices):>15}{_rounded(cores / PNG_MS * 1e3):>11}"
                f"{_rounded(measured):>11}{_rounded(marked):>10}{_span(least):>13}"
                f"{_span(_minutes(devices)):>16}{_span(_minutes(least)):>9}"
            )


def _minutes(rates: list[float]) -> list[float]:
    return [TRAINING * EPOCHS / rate / 60 for rate in reversed(rates)]


def _span(values: list[float]) -> str:
    low, high = (_rounded(value) for value in values)
    return low if low == high else f"{low}–{high}"


def _rounded(value: float) -> str:
    """Two digits; more would suggest a precision that the estimate does not have."""
    return f"{float(f'{value:.1e}'):,.0f}" if value >= 1 else f"{value:.1f}"


if __name__ == "__main__":
    command = sys.argv[1] if len(sys.argv) > 1 else "counts"
    {f.__name__: f for f in (counts, flops, collectives, host, throughput)}[command](*sys.argv[2:])
