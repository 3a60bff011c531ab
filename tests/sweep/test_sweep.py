"""The sweep: which points, in which order, and that it outlives whatever happens to one of them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from absl import flags
from finished_run import write_run
from ml_collections import config_flags

from kacl_jax import config as config_keys
from kacl_jax.config import keys
from kacl_jax.runtime.errors import DONE, INTERRUPTED, USER_ERROR, UserError, WorkdirInUseError
from kacl_jax.runtime.workdir import lock_workdir
from kacl_jax.sweep import __main__ as sweep
from kacl_jax.sweep import hyper, jobs
from kacl_jax.sweep.finished import FinishedPoints
from kacl_jax.sweep.hyper import Arm, Point, Sweep
from kacl_jax.sweep.plan import Plan, expand

REPO = Path(__file__).resolve().parents[2]
ABLATIONS = "configs/ablations.py"

CONFIG = """
from kacl_jax import config
from kacl_jax.sweep import hyper
from kacl_jax.sweep.hyper import Arm, Sweep

def get_config(variant=""):
    c = config.default()
    c.protocol = "C"
    c.data.root = "phantom"
    c.train.epochs = 2
    c.loss.focal_weight = 1.0
    return c

def get_hyper(variant=""):
    arms = [Arm("good"), Arm("other", {"train.learning_rate": 3e-4, "cam.relu": False}, ("good",))]
    if variant:
        arms.append(Arm(variant, {"loss.box_weight": 0.1} if variant == "refused" else {}))
    return Sweep(arms, hyper.points(arms, folds=[0, 1], seeds=[0]))
"""

# In place of kacl_jax.main: leaves the files of a finished run, or behaves as the arm's name says.
FAKE = """
import json, os, pathlib, shutil, signal, sys, time
given = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
place = pathlib.Path(given["workdir"])
arm, fold = place.parent.name, place.name[4]
(place / "called.json").write_text(json.dumps([*sys.argv[1:], os.environ.get("CUDA_VISIBLE_DEVICES")]))
(place / "environment.json").write_text(json.dumps(dict(os.environ)))
if arm == "dies":
    print("first line\\n\\nKeyError: the reason", file=sys.stderr)
    os._exit(1)
if arm == "vanishes":
    shutil.rmtree(place)
    sys.exit(1)
if arm == "taken" and not (place / "taken").exists():
    (place / "taken").touch()
    sys.exit(77)
if arm == "explodes":
    sys.exit(76)
if arm == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if arm == "slow" and not (place / "saved").exists():
    signals = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    (place / "ready").touch()
    while not signals:
        time.sleep(0.01)
    time.sleep(0.3)  # a second signal would come by now
    (place / "saved").write_text(str(len(signals)))
    sys.exit(75)
if arm == "together":
    (place / "here").touch()
    while len(list(place.parent.glob("*/here"))) < 2:
        time.sleep(0.01)
print("running", arm)
shutil.copytree(pathlib.Path(__file__).parent / ("fold" + fold), place, dirs_exist_ok=True)
"""


@pytest.fixture
def fake(tmp_path: Path) -> tuple[str, ...]:
    """The command of a main that needs no time."""
    rng = np.random.default_rng(0)
    for fold in range(2):
        labels = np.arange(24).reshape(12, 2) // 2 % 2
        write_run(
            tmp_path / "fake" / f"fold{fold}",
            scores=rng.random((12, 2)),
            labels=labels,
            patients=np.arange(12),
            fold=fold,
        )
        (tmp_path / "fake" / f"fold{fold}" / "config.json").unlink()
    (tmp_path / "fake" / "main.py").write_text(FAKE)
    return sys.executable, str(tmp_path / "fake" / "main.py")


def plan_of(tmp_path: Path, variant: str = "", **typed: Any) -> Plan:
    """As `python -m kacl_jax.sweep --config=….py:variant --config.key=value` would expand it."""
    path = tmp_path / "sweep_config.py"
    path.write_text(CONFIG)
    name = f"{path}:{variant}" if variant else str(path)
    words = [f"--config={name}", *(f"--config.{key}={value}" for key, value in typed.items())]
    return expand(name, parsed(words), tmp_path / "out")


def parsed(words: list[str]) -> Any:
    """What main's own flag makes of these words."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["main", *words])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # ml_collections' way to load a file
        values(["main", *words])
    return values.config


def write_configs(plan: Plan) -> None:
    """config.json of every point, which main would write and the fake cannot."""
    for point in plan.sweep.points:
        plan.point_workdir(point).mkdir(parents=True, exist_ok=True)
        config = config_keys.flatten(plan.point_config(point))
        (plan.point_workdir(point) / "config.json").write_text(
            json.dumps({"config": config, "data": {}})
        )


def recorded_arguments(plan: Plan, point: Point) -> list[str] | None:
    path = plan.point_workdir(point) / "called.json"
    return json.loads(path.read_text()) if path.exists() else None


# ---- which points -----------------------------------------------------------------------------------------------


def test_products_and_zips() -> None:
    assert hyper.product(a=(1, 2), b="xy") == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]
    assert hyper.zipped(a=(1, 2), b="xy") == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    with pytest.raises(ValueError, match="longer"):
        hyper.zipped(a=(1, 2), b="xyz")


def test_a_sweep_that_contradicts_itself_is_refused() -> None:
    a = Arm("a")
    for arms, points, told in (
        ([a, Arm("a", {"seed": 1})], [], "a appears twice"),
        ([Arm("b", {"seed": 1})], [], "b sets seed"),
        ([Arm("b", against=("c",))], [], "b is compared with c"),
        ([Arm("b", against=("b",))], [], "b is compared with b"),
        ([Arm("../b")], [], "not a valid name"),
        ([Arm("prior_map")], [], "prior_map is the name of a floor"),
        ([a, Arm("b", against=["a"])], [], r"b has against=\['a'\]; write \('focal',\)"),  # type: ignore[arg-type]
        ([a, Arm("b", against="a")], [], "b has against='a'; write"),  # type: ignore[arg-type]
        ([a], [Point(a, 0, 0), Point(a, 0, 0)], "a/fold0-seed0 appears twice"),
        ([a], [Point(Arm("b"), 0, 0)], "b/fold0-seed0 belongs to no arm"),
    ):
        with pytest.raises(UserError, match=told):
            Sweep(arms, points)


HYPER = """
import runpy
from kacl_jax.sweep import hyper
get_config = runpy.run_path("configs/demo.py")["get_config"]
"""


@pytest.mark.parametrize(
    "body, told",
    [
        ("def get_hyper():\n    return hyper.zipped(a=(1, 2), b=(3,))", "line 6: zip() argument 2"),
        (
            "def get_hyper():\n    return hyperr.Sweep([], [])",
            "line 6: name 'hyperr' is not defined",
        ),
        ("def get_hyper():\n    pass", "get_hyper returns None, not a kacl_jax.sweep.hyper.Sweep"),
    ],
)
def test_a_mistake_in_get_hyper_is_told_with_its_line(
    tmp_path: Path, body: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPO)
    path = tmp_path / "mine.py"
    path.write_text(HYPER + body)
    with pytest.raises(UserError, match=re.escape(told)) as error:
        expand(str(path), parsed([f"--config={path}"]), tmp_path / "out")
    assert str(path) in str(error.value)


# Many calls of the command, each in a process of its own, that share the time of the imports.
COMMANDS = """
import atexit, json, os, sys
from absl import app
from kacl_jax.config import command_line
from kacl_jax.sweep import __main__ as sweep

for number, words in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if not child:
        sys.argv = ["sweep", *words]
        for stream in (1, 2):
            os.dup2(os.open(f"{number}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
        atexit.register(lambda: print("jax" in sys.modules))
        os.chdir(REPO)
        app.run(sweep.main, flags_parser=command_line.parse)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class Ended(NamedTuple):
    code: int
    out: str
    told: str  # on stderr
    imported_jax: bool


def run_commands(folder: Path, *commands: Sequence[str]) -> list[Ended]:
    """`python -m kacl_jax.sweep` with each of these words."""
    done = subprocess.run(
        [sys.executable, "-c", f"REPO = {str(REPO)!r}\n{COMMANDS}", json.dumps(commands)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    ended = []
    for number, code in enumerate(done.stdout.split()):
        *out, jax = (folder / f"{number}.1").read_text().splitlines()
        told = (folder / f"{number}.2").read_text()
        ended.append(Ended(int(code), "\n".join(out), told, jax == "True"))
    return ended


def dry_runs(folder: Path, *commands: Sequence[str]) -> list[list[str]]:
    """The lines of a dry run with each of these words; it must not need jax."""
    ended = run_commands(folder, *(("--dry_run", *words) for words in commands))
    for each in ended:
        assert each.code == DONE, each.told
        assert not each.imported_jax
    return [each.out.splitlines() for each in ended]


def test_a_dry_run_lists_the_points_in_order_and_runs_nothing(tmp_path: Path) -> None:
    lines, only = dry_runs(
        tmp_path,
        (f"--config={ABLATIONS}:main", f"--workdir={tmp_path / 'w'}", "--config.folds=6"),
        (f"--config={ABLATIONS}", "--only=kacl_lag0,kacl"),
    )
    assert not (tmp_path / "w").exists()
    weak = ["focal", "kacl", "kacl_random_roi", "simclr"]
    boxed = ["guided_focal", "guided_kacl", "guided_kacl_random_roi", "kacl_truth_roi"]
    expected = [
        f"{arm}/fold{f}-seed{s}" for s in range(3) for arm in weak + boxed for f in range(5)
    ]
    assert [line.split("  ")[0] for line in lines] == expected
    assert lines[7] == "kacl/fold2-seed0  --config.folds=6 --config.fold=2 --config.seed=0"
    assert lines[20] == (
        "guided_focal/fold0-seed0  --config.folds=6 --config.fold=0 --config.seed=0 --config.data.box_share=1.0 "
        "--config.loss.box_weight=0.1 --config.cam.relu=False --config.cam.threshold=0.8 "
        "--config.loss.focal_weight=1.0"
    )
    assert [line.split("  ")[0] for line in only] == (
        [f"kacl/fold{f}-seed{s}" for s in range(3) for f in range(5)]
        + [f"kacl_lag0/fold{f}-seed{s}" for s in range(3) for f in range(5)]
    )


@pytest.mark.parametrize("variant", ["all", "main", "batchnorm", "384", "512", "phantom"])
def test_every_point_of_the_ablations_is_a_config_that_main_understands(variant: str) -> None:
    """What a point's words say, read by main's own flags, is the base with the arm's keys, and passes the check."""
    name = f"{REPO / ABLATIONS}:{variant}"
    plan = expand(name, parsed([f"--config={name}", "--config.data.root=phantom"]), Path("w"))
    seen = set()
    for point in plan.sweep.points:
        config = plan.point_config(point)
        config_keys.check(config, n_devices=1)
        if point.arm not in seen:
            assert parsed(plan.arguments(point)[:-1]).to_dict() == config.to_dict()
            seen.add(point.arm)
        base = config_keys.flatten(plan.config) | {"fold": point.fold, "seed": point.seed}
        assert config_keys.flatten(config) == {**base, **point.arm.overrides}
        if point.arm.selection_boxes == 0 and "kacl_truth" not in point.arm.name:
            assert (config.data.box_share, config.loss.box_weight) == (0, 0)
    assert {arm.name for arm in plan.sweep.arms} == {arm.name for arm in seen}


def test_no_two_arms_of_the_ablations_are_the_same() -> None:
    name = str(REPO / ABLATIONS)
    plan = expand(name, parsed([f"--config={name}"]), Path("w"))
    base = config_keys.flatten(plan.config)
    full = [json.dumps({**base, **arm.overrides}, sort_keys=True) for arm in plan.sweep.arms]
    assert len(set(full)) == len(full)


def test_a_paired_difference_is_of_the_keys_that_it_claims() -> None:
    name = str(REPO / ABLATIONS)
    plan = expand(name, parsed([f"--config={name}"]), Path("w"))
    base = config_keys.flatten(plan.config)
    full = {arm.name: {**base, **arm.overrides} for arm in plan.sweep.arms}

    def differing(arm: str, other: str) -> set[str]:
        return {key for key in base if full[arm][key] != full[other][key]}

    pairs = [(arm.name, other) for arm in plan.sweep.arms for other in arm.against]
    loop, region = {"loss.focal_weight"}, {"roi.source"}
    for start in ("", "guided_"):
        for end in ("", "_share05", "_share20", "_share50") if start else ("",):
            focal, kacl, random = (
                f"{start}{arm}{end}" for arm in ("focal", "kacl", "kacl_random_roi")
            )
            assert {(kacl, focal), (kacl, random), (random, focal)} <= set(pairs)
            assert differing(kacl, focal) == loop
            assert differing(kacl, random) == region
            assert differing(random, focal) == loop | region
    for arm, other in pairs:
        assert 1 <= len(differing(arm, other)) <= 2, (arm, other)


# ---- what runs --------------------------------------------------------------------------------------------------


def test_a_point_runs_in_its_own_workdir_and_a_finished_one_is_skipped(
    tmp_path: Path, fake: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(tmp_path, log_every=5)
    write_configs(plan)
    points = list(plan.sweep.points)
    assert sweep.run_sweep(plan, points, command=fake) == DONE
    told = capfd.readouterr()
    assert "[4/4] other/fold1-seed0 done in 0:0" in told.err
    assert "elapsed, about 0:00:00 left" in told.err
    assert told.out.count("| other − good | 2 × 1 |") == 1
    assert recorded_arguments(plan, points[2]) == [
        f"--config={tmp_path / 'sweep_config.py'}",
        "--config.log_every=5",
        "--config.fold=0",
        "--config.seed=0",
        "--config.train.learning_rate=0.0003",
        "--config.cam.relu=False",
        f"--workdir={tmp_path / 'out' / 'other' / 'fold0-seed0'}",
        os.environ.get("CUDA_VISIBLE_DEVICES"),
    ]
    log = (plan.point_workdir(points[2]) / "log.txt").read_text()
    assert log.startswith(f"$ {shlex.join(fake)}")
    assert log.endswith("running other\n")
    table = (tmp_path / "out" / "sweep.md").read_bytes()
    assert "Sweep" in (tmp_path / "out" / "report.html").read_text()

    shutil.rmtree(plan.point_workdir(points[1]))
    results = plan.point_workdir(points[2]) / "results.json"
    results.write_text(results.read_text().replace('"trained_steps": 6', '"trained_steps": 3'))
    for point in points:
        (plan.point_workdir(point) / "called.json").unlink(missing_ok=True)
    write_configs(again := plan_of(tmp_path, log_every=5))
    assert sweep.run_sweep(again, points, command=fake) == DONE
    assert [recorded_arguments(plan, point) is not None for point in points] == [
        False,
        True,
        True,
        False,
    ]
    assert "good/fold0-seed0 is finished; skipped" in capfd.readouterr().err
    assert (tmp_path / "out" / "sweep.md").read_bytes() == table
    with pytest.raises(UserError, match="another config: log_every: 5 → 10"):
        FinishedPoints(plan_of(tmp_path)).write_table()


def test_the_sweep_outlives_failed_points_and_names_them(
    tmp_path: Path, fake: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    for variant, (what, word) in (
        ("dies", ("exit code 1", "KeyError: the reason")),
        ("explodes", ("the loss was not finite", "no message")),
        ("killed", ("killed by SIGKILL", "no message")),
        ("vanishes", ("exit code 1", "its log cannot be read .*")),
    ):
        plan = plan_of(tmp_path, variant)
        write_configs(plan)
        points = [p for p in plan.sweep.points if p.arm.name in (variant, "good")][::-1]
        assert sweep.run_sweep(plan, points, command=fake) == USER_ERROR
        shown = capfd.readouterr()
        told = rf"failed: {variant}/fold1-seed0: {what} after 0:0\d:\d\d: {word}\n"
        assert re.search(told, shown.err)
        assert f"- {variant}: every point" in shown.out
        assert "first line" in shown.err or variant != "dies"
        if variant == "dies":
            assert "first line" in (plan.point_workdir(points[0]) / "log.txt").read_text()
        assert recorded_arguments(plan, points[-1]) is not None
        shutil.rmtree(tmp_path / "out")


def test_several_points_run_at_once_each_with_its_devices(
    tmp_path: Path, fake: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    plan = plan_of(tmp_path, "together")  # each waits for the other
    write_configs(plan)
    points = [p for p in plan.sweep.points if p.arm.name == "together"]
    assert sweep.run_sweep(plan, points, parallel=2, command=fake) == DONE
    devices = [(recorded_arguments(plan, point) or [])[-1] for point in points]
    assert devices == ["0,2,4", "1,3"]
    shared = jobs._device_variables(6)
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shared] == ["0", "1", "2", "3", "4", "0"]
    # Sharing a GPU, none may take most of its memory at the start.
    assert {share["XLA_PYTHON_CLIENT_PREALLOCATE"] for share in shared} == {"false"}
    assert "XLA_PYTHON_CLIENT_PREALLOCATE" not in jobs._device_variables(5)[0]
    for hidden, shares in (("-1", [{}, {}]), ("3,1,-1,2", ["3", "1"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert [
            share.get("CUDA_VISIBLE_DEVICES", {}) for share in jobs._device_variables(2)
        ] == shares


def test_points_share_the_cores_and_what_is_compiled(
    tmp_path: Path, fake: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setattr(sweep.os, "cpu_count", lambda: 5)
    plan = plan_of(tmp_path)
    write_configs(plan)
    broken = plan.workdir / "compilation_cache" / "jit_step-cache"
    broken.parent.mkdir()
    broken.write_bytes(b"")  # what a kill leaves
    first, *others = plan.sweep.points[:3]
    assert sweep.run_sweep(plan, [first], command=fake) == DONE
    assert sweep.run_sweep(plan, others, parallel=2, command=fake) == DONE
    assert not broken.exists()
    words = [
        [w for w in recorded_arguments(plan, p) or [] if "workers" in (w or "")]
        for p in (first, *others)
    ]
    assert words == [[], *[["--config.feedback.workers=2"]] * 2]
    for point in (first, *others):
        environment = json.loads((plan.point_workdir(point) / "environment.json").read_text())
        assert environment["JAX_COMPILATION_CACHE_DIR"] == str(broken.parent.absolute())
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    (tmp_path / "counted").mkdir()
    counted = plan_of(tmp_path / "counted", **{"feedback.workers": 3})
    write_configs(counted)
    assert sweep.run_sweep(counted, counted.sweep.points[:1], parallel=2, command=fake) == DONE
    place = counted.point_workdir(counted.sweep.points[0])
    environment = json.loads((place / "environment.json").read_text())
    assert environment["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"
    assert "--config.feedback.workers=3" in json.loads((place / "called.json").read_text())


@pytest.fixture
def reads() -> Iterator[Counter[Path]]:
    """How often this process opens each file to read it while the test runs."""
    counts: Counter[Path] = Counter()
    is_counting = True

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if is_counting and event == "open" and str(arguments[1]).startswith("r"):
            counts[Path(arguments[0])] += isinstance(arguments[0], str)

    sys.addaudithook(count)  # nothing removes it
    yield counts
    is_counting = False


def test_each_point_is_read_once_however_many_follow(
    tmp_path: Path, fake: tuple[str, ...], reads: Counter[Path]
) -> None:
    plan = plan_of(tmp_path)
    write_configs(plan)
    points = list(plan.sweep.points)
    assert sweep.run_sweep(plan, points[:1], command=fake) == DONE  # finished when the next begins
    reads.clear()
    assert sweep.run_sweep(plan, points, command=fake) == DONE
    for point in points:
        names = {p.name: n for p, n in reads.items() if p.parent == plan.point_workdir(point)}
        # The config of a workdir that is not finished is checked before the point starts.
        assert names.pop("config.json") == (1 if point is points[0] else 2)
        assert names == dict.fromkeys(
            ("results.json", "run.json", "metrics.jsonl", "predictions.csv", "boxes.csv"), 1
        )


def test_a_broken_point_and_one_without_features_are_named_and_left_out(
    tmp_path: Path, fake: tuple[str, ...]
) -> None:
    plan = plan_of(tmp_path)
    write_configs(plan)
    points = list(plan.sweep.points)
    assert sweep.run_sweep(plan, points, command=fake) == DONE
    good = plan.workdir / points[0].name
    faults: list[tuple[str, Callable[[bytes], bytes], str]] = [
        ("results.json", lambda old: b"[]", "does not hold the results of a run"),
        (
            "results.json",
            lambda old: old.replace(b'"findings"', b'"f"'),
            "does not hold the results",
        ),
        ("run.json", lambda old: b"[]", "run.json does not say where the run comes from"),
        ("metrics.jsonl", lambda old: b"3\n" + old, "metrics.jsonl, line 1"),
        ("metrics.jsonl", lambda old: old.replace(b"0.5", b'"0.5"'), "line 1: auroc is no number"),
        ("boxes.csv", lambda old: b"\xff", "does not fit"),
        (
            "results.json",
            _with_digest,
            "predictions.csv was changed after results.json was written",
        ),
        ("results.json", _without_features, "No region gave radiomic features"),
    ]
    for name, change, says in faults:
        path = good / name
        whole = path.read_bytes()
        path.write_bytes(change(whole))
        table = FinishedPoints(plan).write_table()
        assert (
            f"{len(points)} of {len(points)} points are finished. 1 of these are left out" in table
        )
        (line,) = (line for line in table.splitlines() if line.startswith(f"- {points[0].name}: "))
        assert says in line
        assert points[0].name in (plan.workdir / "report.html").read_text()
        path.write_bytes(whole)
    assert "are left out" not in FinishedPoints(plan).write_table()


def _with_digest(results: bytes) -> bytes:
    """Of another predictions.csv."""
    return json.dumps(json.loads(results) | {"digests": {"predictions.csv": "0" * 64}}).encode()


def _without_features(results: bytes) -> bytes:
    content = json.loads(results)
    content["feedback"] |= {"hit_rate": 0.0, "failures": {"too few pixels": 9}}
    return json.dumps(content).encode()


def test_the_next_points_run_during_a_refresh_and_share_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_ended = threading.Event()
    lines = []

    def print_line(line: str) -> None:
        lines.append(line)
        if line.startswith("[3/3] c done"):
            all_ended.set()

    monkeypatch.setattr(jobs, "print_line", print_line)
    queue = [jobs.Job(name, [sys.executable, "-S", "-c", ""], tmp_path / name) for name in "abc"]
    n_calls = 0

    def refresh() -> None:
        nonlocal n_calls
        n_calls += 1
        assert all_ended.wait(60)
        if n_calls == 2:
            raise UserError("no room")

    outcome = jobs.run_jobs(queue, parallel=1, refresh=refresh, environment={})
    assert n_calls == 2
    assert outcome.failed == {"b": "no room", "c": "no room"}
    assert lines[-2:] == ["[2/3] b: no room", "[3/3] c: no room"]


def test_a_bug_in_a_refresh_is_raised(tmp_path: Path) -> None:
    job = jobs.Job("a", [sys.executable, "-S", "-c", ""], tmp_path / "a")
    with pytest.raises(ZeroDivisionError):
        jobs.run_jobs([job], parallel=1, refresh=lambda: 1 / 0, environment={})


def test_how_points_ended_is_told_without_a_table(
    tmp_path: Path,
    fake: tuple[str, ...],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_of(tmp_path, "dies")
    write_configs(plan)
    points = [p for p in plan.sweep.points if p.arm.name == "dies"]
    tables = iter([""])  # before the first point; afterwards the disk is full

    def write_table(_: FinishedPoints) -> str:
        for table in tables:
            return table
        raise UserError("no table")

    monkeypatch.setattr(FinishedPoints, "write_table", write_table)
    assert sweep.run_sweep(plan, points, command=fake) == USER_ERROR
    told = capfd.readouterr().err
    assert "no table" in told
    assert "failed: dies/fold1-seed0" in told


STOPPED_SWEEP = """
import sys, pathlib
sys.path[:0] = ["tests", "tests/sweep"]
sys.argv = sys.argv[:1]
from kacl_jax.sweep import __main__ as sweep
from test_sweep import write_configs, plan_of
plan = plan_of(pathlib.Path({tmp!r}), "slow")
write_configs(plan)
points = [p for p in plan.sweep.points if p.arm.name == "slow"]
sys.exit(sweep.run_sweep(plan, points, command={fake!r}))
"""


def test_a_signal_stops_the_running_point_once_and_the_same_command_goes_on(
    tmp_path: Path, fake: tuple[str, ...]
) -> None:
    """Ctrl-C in a terminal reaches the whole process group: the point must not be told twice."""
    code = STOPPED_SWEEP.format(tmp=str(tmp_path), fake=fake)
    folds = [tmp_path / "out" / "slow" / f"fold{fold}-seed0" for fold in (0, 1)]
    for number, place in zip((signal.SIGINT, signal.SIGTERM), folds, strict=True):
        sweeping = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=REPO,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while not (place / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(sweeping.pid, number)
        _, told = sweeping.communicate(timeout=60)
        assert sweeping.returncode == INTERRUPTED, told
        assert f"slow/{place.name} stopped after 0:0" in told
        assert (place / "saved").read_text() == "1"
        assert (folds[1] / "called.json").exists() is (place == folds[1])
    plan = plan_of(tmp_path, "slow")
    points = [p for p in plan.sweep.points if p.arm.name == "slow"]
    assert FinishedPoints(plan).is_finished(points[0])
    assert sweep.run_sweep(plan, points, command=fake) == DONE
    assert FinishedPoints(plan).is_finished(points[1])


HOLDER = """
import pathlib, sys, time
from kacl_jax.runtime.workdir import lock_workdir
place = pathlib.Path(sys.argv[1])
with lock_workdir(place):
    (place / "locked").touch()
    while not (place / "release").exists():
        time.sleep(0.01)
"""


def test_a_point_that_another_process_still_runs_is_waited_for(
    tmp_path: Path, fake: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a sweep that was killed: its points run on. One that they finish is not run again."""
    plan = plan_of(tmp_path)
    write_configs(plan)
    left, finished = plan.sweep.points[:2]
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLDER, str(plan.point_workdir(point))], cwd=REPO)
        for point in (left, finished)
    ]
    for point in (left, finished):
        while not (plan.point_workdir(point) / "locked").exists():
            time.sleep(0.02)
    lines = []

    def print_line(line: str) -> None:
        lines.append(line)
        for point, holder in zip((left, finished), holders, strict=True):
            if line == f"{point.name} still runs in another process; waiting for it to end":
                assert recorded_arguments(plan, left) is None
                if point is finished:
                    shutil.copytree(
                        tmp_path / "fake" / "fold1", plan.point_workdir(point), dirs_exist_ok=True
                    )
                (plan.point_workdir(point) / "release").touch()
                assert holder.wait(60) == 0

    monkeypatch.setattr(jobs, "print_line", print_line)
    assert sweep.run_sweep(plan, list(plan.sweep.points), command=fake) == DONE
    assert len([line for line in lines if "still runs" in line]) == 2
    assert recorded_arguments(plan, left) is not None
    assert recorded_arguments(plan, finished) is None


def test_a_point_that_another_process_starts_first_is_no_failure(
    tmp_path: Path, fake: tuple[str, ...]
) -> None:
    """Its command ends with 77; then it is waited for and started again."""
    plan = plan_of(tmp_path, "taken")
    write_configs(plan)
    points = [p for p in plan.sweep.points if p.arm.name == "taken"]
    assert sweep.run_sweep(plan, points, command=fake) == DONE
    for point in points:
        assert (plan.point_workdir(point) / "log.txt").read_text().count("$ ") == 2


def test_single_points_run_beside_others_and_write_no_table(
    tmp_path: Path, fake: tuple[str, ...]
) -> None:
    """As under a scheduler that starts `--points=I` on many machines at once."""
    plan = plan_of(tmp_path, "dies")
    write_configs(plan)
    points = list(plan.sweep.points)
    with lock_workdir(plan.workdir):  # another process runs the sweep
        assert sweep.run_alone(plan, points[1:2], command=fake) == DONE
        assert sweep.run_alone(plan, points[1:2], command=fake) == DONE  # it is finished
        assert sweep.run_alone(plan, points[-1:], command=fake) == USER_ERROR
    ran = [point for point in points if recorded_arguments(plan, point)]
    assert ran == [points[1], points[-1]]
    assert (plan.point_workdir(points[1]) / "log.txt").read_text().count("$ ") == 1
    assert not (plan.workdir / "sweep.md").exists()
    FinishedPoints(plan).write_table()
    assert "1 of 6 points are finished" in (plan.workdir / "sweep.md").read_text()


def test_points_are_numbered_as_a_dry_run_lists_them(tmp_path: Path) -> None:
    words = (f"--config={ABLATIONS}:main", "--only=simclr,kacl")
    lines, two = dry_runs(tmp_path, words, (*words, "--points=7,0"))
    assert two == [lines[0], lines[7]]


# ---- what is refused before anything runs -----------------------------------------------------------------------


def test_all_points_are_checked_before_the_first_one_starts(
    tmp_path: Path, fake: tuple[str, ...]
) -> None:
    plan = plan_of(tmp_path, "refused")
    with pytest.raises(UserError, match=r"refused/fold0-seed0 and 1 more: .*\n.*box_weight needs"):
        sweep.run_sweep(plan, list(plan.sweep.points), command=fake)
    plan = plan_of(tmp_path, **{"data.root": "/not/there"})
    with pytest.raises(UserError, match=r"good/fold0-seed0 and 3 more: .*/not/there"):
        sweep.run_sweep(plan, list(plan.sweep.points), command=fake)
    plan = plan_of(tmp_path, **{"model.pretrained": "/not/there.pth"})
    with pytest.raises(UserError, match=r"good/fold0-seed0 and 3 more: .*/not/there.pth"):
        sweep.run_sweep(plan, list(plan.sweep.points), command=fake)
    plan = plan_of(tmp_path)
    write_configs(plan)
    path = plan.point_workdir(plan.sweep.points[3]) / "config.json"
    path.write_text(path.read_text().replace('"cam.relu": false', '"cam.relu": true'))
    with pytest.raises(UserError, match=r"other/fold1-seed0: .* cam\.relu: True → False"):
        sweep.run_sweep(plan, list(plan.sweep.points), command=fake)
    assert not any(recorded_arguments(plan, point) for point in plan.sweep.points)
    with lock_workdir(plan.workdir), pytest.raises(WorkdirInUseError):
        sweep.run_sweep(plan, list(plan.sweep.points), command=fake)


def test_a_point_of_an_older_commit_counts_as_what_its_code_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path)
    write_configs(plan)
    path = plan.point_workdir(plan.sweep.points[0]) / "config.json"
    old = json.loads(path.read_text())
    del old["config"]["roi.shape"]
    path.write_text(json.dumps(old))
    sweep.check_points(plan, list(plan.sweep.points), FinishedPoints(plan))
    shape = dataclasses.replace(keys.KEYS["roi.shape"], default="box")
    monkeypatch.setitem(keys.KEYS, "roi.shape", shape)
    # The whole sweep is finished as it began, also the points that did not begin.
    plan = plan_of(tmp_path)
    sweep.check_points(plan, list(plan.sweep.points), FinishedPoints(plan))
    assert all("--config.roi.shape=mask" in plan.arguments(point) for point in plan.sweep.points)
    path.unlink()
    assert plan_of(tmp_path).config.roi.shape == "box"


def test_an_arms_keys_exist_and_are_not_typed_for_every_point(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--config\.cam\.relu cannot be given .* set it: other"):
        plan_of(tmp_path, **{"cam.relu": "False"})
    with pytest.raises(UserError, match=r"--config\.seed cannot be given"):
        plan_of(tmp_path, seed=4)
    path = tmp_path / "sweep_config.py"
    path.write_text(CONFIG.replace("cam.relu", "cam.rleu"))
    with pytest.raises(UserError, match=r"arm other sets cam\.rleu, which is not a key"):
        expand(str(path), parsed([f"--config={path}"]), tmp_path)
    path.write_text(CONFIG.replace('"cam.relu": False', '"cam.relu": "no"'))
    plan = expand(str(path), parsed([f"--config={path}"]), tmp_path)
    with pytest.raises(UserError, match="arm other: "):
        sweep.check_points(plan, list(plan.sweep.points), FinishedPoints(plan))


MISTAKES = [
    ((), "Which config? Give one"),
    (("--config=configs/nih.py",), "configs/nih.py defines no function get_hyper"),
    (
        (f"--config={ABLATIONS}", "--only=kalc"),
        "There is no arm kalc; choose from: focal, kacl,",
    ),
    (
        (f"--config={ABLATIONS}:main", "--points=119,120"),
        "--points=120: give numbers from 0 to 119, as --dry_run lists the points",
    ),
    ((f"--config={ABLATIONS}", "--wait"), "--slurm and --wait need --on=slurm"),
    ((f"--config={ABLATIONS}", "--mode=eval"), "Unknown command line flag 'mode'"),
    ((f"--config={ABLATIONS}",), "focal/fold0-seed0 and 524 more: The config cannot be run:"),
]


def test_a_mistake_is_told_in_a_sentence(tmp_path: Path) -> None:
    commands = [[f"--workdir={tmp_path / 'w'}", *words] for words, _ in MISTAKES]
    for (_, told), ended in zip(MISTAKES, run_commands(tmp_path, *commands), strict=True):
        assert ended.code == USER_ERROR, ended.told
        assert told in ended.told
        assert "Traceback" not in ended.told
