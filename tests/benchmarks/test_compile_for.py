"""The command that compiles for machines that are not there: its account, and what it needs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import compile_for
from benchmarks.hlo import Bytes, Part
from kacl_jax.runtime.devices import AXIS, DataParallel
from kacl_jax.runtime.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
def test_the_shapes_to_compile_for_are_those_of_placed_arrays(mode: Any) -> None:
    parallel = DataParallel(mode, jax.devices()[:2])
    state, batch = {"w": np.ones((3, 5), np.float32)}, {"x": np.ones((4, 7), np.uint8)}

    def describe(x: Any) -> Any:
        return x.shape, x.dtype, x.sharding

    for tree, layout, place in (
        (state, "replicated", parallel.replicate),
        (batch, "sharded", parallel.shard),
    ):
        shapes = compile_for.placed(parallel, tree, layout)
        assert jax.tree.map(describe, shapes) == jax.tree.map(describe, place(tree))


@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
def test_the_account_of_a_product_and_a_sum_over_two_devices(mode: Any) -> None:
    """Per image: 2·64·32 FLOP of the product; per step: an all-reduce of one number."""
    parallel = DataParallel(mode, jax.devices()[:2])

    def step(weights: Any, rows: Any) -> tuple[Any, Any]:
        product = rows @ weights
        return jax.lax.psum(product.sum(), AXIS), product

    task = compile_for.Task(
        step,
        ("replicated", "sharded"),
        jax.ShapeDtypeStruct((64, 32), jnp.float32),
        jax.ShapeDtypeStruct((2 * 16, 64), jnp.float32),
    )
    report, text = compile_for.compile_task(task, parallel, 16)
    assert report["compiles"]
    assert report["flop_per_image"] == pytest.approx(2 * 64 * 32, rel=0.05)
    assert report["collectives"]["every step"] == {"all-reduce": {"number": 1, "bytes": 4}}
    assert report["memory_bytes"]["arguments"] == 4 * (64 * 32 + 16 * 64)
    # The product reads rows and weights and writes itself, and the sum reads that again.
    product = 4 * (64 * 32 + 16 * 64 + 16 * 32)
    assert product <= 16 * report["main_bytes_per_image"] <= 2 * product
    assert "ENTRY" in text


def test_bytes_of_inner_loops_count_as_often_as_they_turn() -> None:
    def part(path: str, n_bytes: int, turns: int | None = None) -> Part:
        return Part(path, 1, Bytes(n_bytes, 7), turns)

    parts = [
        part("entry", 1),
        part("entry/loop 1", 10, 3),
        part("entry/loop 1/loop 1", 100, 2),
        part("entry/loop 2", 1000),
        part("entry/branch 1", 10_000),
    ]
    assert compile_for.main_bytes(parts) == 1 + 3 * 10 + 3 * 2 * 100 + 1000


@pytest.mark.parametrize("topology,package", [("v5e:2x4", "libtpu"), ("h100", "jax\\[cuda12\\]==")])
def test_a_missing_compiler_is_named_with_the_way_to_install_it(
    topology: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"{package}.* is not installed.*pip install '{package}"):
        compile_for.target_devices(topology)


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
def test_a_small_evaluation_step_compiles_for_eight_tpus(mode: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.compile_for", "--topology=v5e:2x4", "--what=eval"]
    command += ["--encoder=efficientnet_lite0", "--image_size=64", "--batch_size=64"]
    command += [f"--parallel={mode}", f"--json={tmp_path / 'report.json'}"]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    report = json.loads((tmp_path / "report.json").read_text())["programs"]["eval"]
    assert report["compiles"]
    assert report["memory_bytes"]["together"] < 1e9
    assert report["collectives"]["every step"] == {}


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_an_unknown_topology_is_refused_with_examples() -> None:
    command = [sys.executable, "-m", "benchmarks.compile_for", "--topology=v9:2x4"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1].startswith("--topology=v9:2x4 is no machine")
