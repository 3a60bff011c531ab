"""config.json of a workdir: what a later command must repeat, and what an older commit's run counts as."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from kacl_jax import config as config_keys
from kacl_jax.config import keys
from kacl_jax.config.stored import PIXELS, check_config, keep_old_values, read_config, write_config
from kacl_jax.runtime.errors import UserError

CONFIG = {**config_keys.flatten(config_keys.default()), "data.root": "/a"}
SUMS = {"BBox_List_2017.csv": "12ab"}
# As tiny_run.py of commit 22a5f99 wrote it, the first one whose form can be read.
OLDEST = json.loads((Path(__file__).parents[1] / "train/oldest_config.json").read_text())


def store(workdir: Path, config: dict[str, Any]) -> None:
    (workdir / "config.json").write_text(json.dumps({"config": config, "data": SUMS}))


def start(workdir: Path, config: dict[str, Any], data: dict[str, str]) -> None:
    check_config(workdir, config, data)
    write_config(workdir, config, data)


def change_default(patch: pytest.MonkeyPatch, key: str, value: Any) -> None:
    patch.setitem(keys.KEYS, key, dataclasses.replace(keys.KEYS[key], default=value))


def test_a_changed_config_is_refused_with_its_changes(tmp_path: Path) -> None:
    start(tmp_path, CONFIG, SUMS)
    start(tmp_path, CONFIG, SUMS)
    with pytest.raises(UserError, match="seed: 0 → 1") as told:
        start(tmp_path, {**CONFIG, "seed": 1, "data.root": "/b"}, SUMS)
    assert "data.root" not in str(told.value)


def test_what_cannot_change_a_result_may_change(tmp_path: Path) -> None:
    start(tmp_path, CONFIG, SUMS)
    start(tmp_path, {**CONFIG, "feedback.workers": 4, "data.root": "/b"}, SUMS)


def test_a_root_with_other_tables_is_another_data_set(tmp_path: Path) -> None:
    start(tmp_path, CONFIG, SUMS)
    with pytest.raises(UserError, match=r"data\.root: '/a' → '/b'"):
        start(tmp_path, {**CONFIG, "data.root": "/b"}, {"BBox_List_2017.csv": "ffff"})


def test_other_pixels_are_another_data_set_and_an_older_workdir_gets_their_hash(
    tmp_path: Path,
) -> None:
    start(tmp_path, CONFIG, SUMS)
    start(tmp_path, {**CONFIG, "data.root": "/b"}, {**SUMS, PIXELS: "1234"})
    assert json.loads((tmp_path / "config.json").read_text())["data"] == {**SUMS, PIXELS: "1234"}
    with pytest.raises(UserError, match=f"{PIXELS} of data.root: 1234 → 5678"):
        start(tmp_path, CONFIG, {**SUMS, PIXELS: "5678"})


@pytest.mark.parametrize("content", [{}, CONFIG, []])
def test_a_config_of_another_form_is_told(tmp_path: Path, content: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"config\.json was written by another version.*--workdir"):
        read_config(tmp_path)
    with pytest.raises(UserError, match=r"config\.json was written by another version.*--workdir"):
        start(tmp_path, CONFIG, SUMS)


@pytest.mark.parametrize(
    "key, value", [("seed", "1"), ("seed", True), ("cam.relu", 1), ("loss.temperature", []), ("profile.steps", "")]
)  # fmt: skip
def test_a_value_of_another_type_is_named(tmp_path: Path, key: str, value: Any) -> None:
    store(tmp_path, {**CONFIG, "loss.temperature": 1, key: value})
    with pytest.raises(UserError, match=rf"config\.json: {key} is .*restore the file"):
        read_config(tmp_path)


def test_a_key_that_every_version_wrote_is_missed(tmp_path: Path) -> None:
    store(tmp_path, {key: value for key, value in CONFIG.items() if key != "cam.threshold"})
    with pytest.raises(UserError, match=r"config\.json has no cam\.threshold, which every version"):
        read_config(tmp_path)


def test_every_key_that_the_oldest_version_did_not_write_says_what_its_code_did() -> None:
    younger = {name for name, key in keys.KEYS.items() if key.before is not None}
    assert younger == keys.KEYS.keys() - OLDEST["config"].keys()
    for name in younger:
        key = keys.KEYS[name]
        assert type(key.before) is type(key.default)
        assert key.rule().test(key.before)


@pytest.mark.parametrize(
    "key, did, new_default",
    [
        ("data.shards", 1, 2),
        ("loss.positive", "radiomics", "augmented"),
        ("cam.stage", 4, 3),
        ("roi.shape", "mask", "box"),
        ("radiomics.families", "shape2D,firstorder,glcm,glrlm,glszm,gldm,ngtdm", "glcm"),
    ],
)
def test_a_new_default_is_refused_where_the_code_did_something_else(
    key: str, did: Any, new_default: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path, OLDEST["config"])
    change_default(monkeypatch, key, new_default)
    assert read_config(tmp_path)[key] == did
    others = {n: k.before for n, k in keys.KEYS.items() if n != key and k.before is not None}
    typed_again = {
        **config_keys.flatten(config_keys.default()), **others, **OLDEST["config"]
    }  # fmt: skip
    with pytest.raises(UserError) as told:
        start(tmp_path, typed_again, SUMS)
    assert str(told.value).splitlines()[1:-1] == [f"  {key}: {did!r} → {new_default!r}"]
    start(tmp_path, {**typed_again, key: did}, SUMS)
    assert json.loads((tmp_path / "config.json").read_text())["config"][key] == did


def test_a_new_default_is_nothing_to_a_run_that_has_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path, CONFIG)
    change_default(monkeypatch, "cam.stage", 3)
    assert read_config(tmp_path) == CONFIG


def test_a_run_that_began_before_a_key_keeps_what_its_code_did(tmp_path: Path) -> None:
    """Also where another default is today's; but a value that the user chose is kept, and then refused."""
    began, later = tmp_path / "began", tmp_path / "later"
    began.mkdir()
    later.mkdir()
    store(began, OLDEST["config"])
    store(later, CONFIG)
    now = config_keys.default()
    assert keep_old_values(now, [tmp_path / "none", began, later]) == [
        "data.split_version=1", "model.input=imagenet", "loss.turned_box=hull"
    ]  # fmt: skip
    start(began, {**config_keys.flatten(now), **OLDEST["config"]}, SUMS)
    assert keep_old_values(config_keys.default(), [began]) == []  # it has the keys now
    assert keep_old_values(config_keys.default(), [later, tmp_path / "none"]) == []
    chosen = config_keys.default()
    chosen.model.input = "lite"
    store(began, OLDEST["config"])
    assert keep_old_values(chosen, [began]) == ["data.split_version=1", "loss.turned_box=hull"]
    with pytest.raises(UserError, match=r"model\.input: 'imagenet' → 'lite'"):
        start(began, {**config_keys.flatten(chosen), **OLDEST["config"]}, SUMS)
