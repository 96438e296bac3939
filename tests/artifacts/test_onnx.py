"""`tune-ssl export --onnx`: the file is run by a real onnxruntime and compared with the network itself."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from tests.support.helpers import small_spec
from tests.support.runs import run_here
from tune_ssl import __version__, methods
from tune_ssl.artifacts import onnx_files
from tune_ssl.artifacts.model_files import Card, Model, load_model
from tune_ssl.base.errors import UserError
from tune_ssl.data.batch import Task
from tune_ssl.data.loading import Normalizer
from tune_ssl.methods import find_method, method_names, plugins
from tune_ssl.methods.supervised import SupervisedStage

LABELS = "data.num_labels=100"
EXPORT = ("export", "one", "--condition", LABELS, "-o", "model")
PLUGIN = Path(__file__).parents[2] / "docs/examples/entropy_min.py"
CPU = torch.device("cpu")
CLASSES = ["cat", "dog", "ünknown"]


def untrained(method: str, channels: int, size: tuple[int, int], **values) -> Model:
    """A model of random weights for images of `size`; of a classical method, fitted to random images."""
    torch.manual_seed(0)
    spec = small_spec(method, **values)
    task = Task(len(CLASSES), channels, *size)
    network = None
    for stage in spec.stages():
        network = stage.build(task, spec.model, network)
    normalizer = Normalizer([0.4] * channels, [0.2] * channels, CPU)
    network.eval().requires_grad_(False)
    if stage.fits:
        labeled = network.encoder(normalizer.normalize(pixels(30, channels, size)))
        stage.fit(network, labeled, torch.arange(30) % 3, labeled + torch.randn_like(labeled) / 9)
    if method == "supervised":  # probabilities from near 0 to near 1, as a trained network has them
        inputs = normalizer.normalize(pixels(30, channels, size))
        logits = stage.predict(network, inputs).logits_NK
        last = network.classifier
        last.weight.mul_(3 / logits.std(dim=0)[:, None])
        last.bias.copy_(last.bias - stage.predict(network, inputs).logits_NK.mean(dim=0))
    card = Card(
        schema_version=1,
        tune_ssl=__version__,
        trial="c0-confirm-s3",
        condition="all",
        seed=3,
        spec={},
        stage=stage.name,
        classes=CLASSES,
        channels=channels,
        image_size=size[0],
        image_width=size[1],
        mean=[0.4] * channels,
        std=[0.2] * channels,
        data="",
        split="",
    )
    return Model(card, spec, stage, network.eval(), CPU)


def pixels(count: int, channels: int, size: tuple[int, int], seed: int = 7) -> torch.Tensor:
    """Images that are half noise and half plain, so that not all of them are alike."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, channels, *size), dtype=np.uint8)
    images[::2] = images[::2] // 8 + rng.integers(0, 224, (len(images[::2]), channels, 1, 1))
    return torch.from_numpy(images)


@pytest.fixture
def record(request):
    """The largest difference of a probability in each comparison; `pytest -s` prints it."""
    differences: list[float] = []
    yield differences
    print(f"{request.node.name}: {max(differences, default=0):.1e}")


def own(model: Model, images: torch.Tensor) -> np.ndarray:
    """Logits (N, K), as `tune-ssl predict` computes them."""
    inputs = Normalizer(model.card.mean, model.card.std, CPU).normalize(images)
    with torch.no_grad():
        return model.stage.predict(model.network, inputs).logits_NK.numpy()


def opened(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits_NK).softmax(dim=1).numpy()


def assert_same(model: Model, path: Path, images: torch.Tensor, record) -> None:
    logits_NK = own(model, images)
    probabilities, logits = opened(path).run(None, {"images": images.numpy()})
    assert probabilities.dtype == logits.dtype == np.float32
    assert probabilities.shape == logits.shape == (len(images), len(model.card.classes))
    difference = np.abs(probabilities - softmax(logits_NK)).max()
    record.append(float(difference))
    assert difference < onnx_files.TOLERANCE
    likely = probabilities > 1e-3  # of others a logit may be log 1e-12 here and log 1e-9 there
    assert np.abs(logits - logits_NK)[likely].max() < 1e-2
    if len(images) > 1:
        assert np.ptp(probabilities, axis=0).max() > 1e-3  # it does not say the same of all images


# ---- networks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoder, channels, size",
    [
        ("small_cnn", 1, (8, 8)),
        ("small_cnn", 3, (12, 8)),
        ("keras_cnn", 3, (16, 16)),
        ("resnet18", 3, (8, 8)),
        ("resnet18", 1, (41, 41)),  # its large stem
        ("wrn_28_2", 3, (16, 16)),
        ("timm:tf_efficientnet_lite0", 3, (32, 32)),
        ("timm:vit_tiny_patch16_224", 3, (32, 32)),
        ("timm:convnext_atto", 3, (32, 32)),
    ],
)
def test_an_encoders_network_says_the_same_as_onnx(tmp_path, record, encoder, channels, size):
    model = untrained("supervised", channels, size, **{"model.encoder": encoder})
    path = tmp_path / "model.onnx"
    assert onnx_files.write_onnx(model, path) < onnx_files.TOLERANCE
    assert_same(model, path, pixels(4, channels, size), record)


@pytest.mark.parametrize(
    "scaling, channels, size",
    [("none", 1, (8, 8)), ("standard", 3, (6, 9)), ("unit", 1, (8, 8))],
)
@pytest.mark.parametrize(
    "method, options",
    [
        ("nearest_neighbors", {"method.weights": "uniform"}),
        ("nearest_neighbors", {"method.weights": "distance"}),
        ("nearest_neighbors", {"method.k": 100}),  # more than there are
        ("label_spreading", {}),
        ("logistic_regression", {}),
    ],
)
def test_a_classical_method_says_the_same_as_onnx(
    tmp_path, record, method, options, scaling, channels, size
):
    model = untrained(method, channels, size, **{"method.scaling": scaling}, **options)
    path = tmp_path / "model.onnx"
    head = model.network.head
    assert onnx_files.write_onnx(model, path) < onnx_files.TOLERANCE
    assert model.network.head is head  # its own, in the end
    fitted_to = pixels(30, channels, size)[:5]  # some are at distance 0
    images = torch.cat([fitted_to, pixels(6, channels, size, seed=8)])
    assert_same(model, path, images, record)


@pytest.mark.parametrize("method", [name for name in method_names() if name != "supervised"])
def test_every_method_that_gives_classes_can_be_exported(tmp_path, record, method):
    last = find_method(method).stage_types[-1]
    model = untrained(method, 1, (8, 8))
    path = tmp_path / "model.onnx"
    if "classifier" not in last.evaluators and not last.fits:
        with pytest.raises(UserError, match="has no classes"):
            onnx_files.write_onnx(model, path)
        assert not path.exists()
        return
    onnx_files.write_onnx(model, path)
    assert_same(model, path, pixels(4, 1, (8, 8)), record)


def test_a_file_takes_any_number_of_images_and_says_what_it_is(tmp_path, record):
    model = untrained("supervised", 3, (8, 12))
    path = tmp_path / "model.onnx"
    onnx_files.write_onnx(model, path)
    for count in (1, 2, 17, 300):
        assert_same(model, path, pixels(count, 3, (8, 12)), record)
    session = opened(path)
    (images,), outputs = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["N", 3, 8, 12])
    assert [(out.name, out.shape) for out in outputs] == [
        ("probabilities", ["N", 3]),
        ("logits", ["N", 3]),
    ]
    said = session.get_modelmeta().custom_metadata_map
    assert {key: json.loads(said.pop(key)) for key in ("classes", "mean", "std")} == {
        "classes": CLASSES,
        "mean": [0.4] * 3,
        "std": [0.2] * 3,
    }
    assert said == {"tune_ssl": __version__, "trial": "c0-confirm-s3", "condition": "all"}
    onnx.checker.check_model(onnx.load(path), full_check=True)
    for part in (str(Path.cwd()), "site-packages", ".py"):
        assert part.encode() not in path.read_bytes()  # nothing of the machine it was made on


def test_a_bank_of_neighbours_is_in_the_file_once(tmp_path):
    model = untrained("nearest_neighbors", 1, (8, 8))
    model.network.head.fill(torch.randn(2000, 64), torch.rand(2000, 3).softmax(dim=1))
    onnx_files.write_onnx(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size < 1.2 * 4 * 2000 * 64


def test_neighbours_that_are_equally_near_refuse_no_export(tmp_path, record):
    """Nine images have twenty neighbours at one distance, and five of these vote."""
    model = untrained("nearest_neighbors", 1, (8, 8), **{"method.weights": "uniform"})
    head = model.network.head
    classify = onnx_files._classifier(model)
    pool = onnx_files._random_images(model.card, onnx_files.POOL)
    with torch.no_grad():
        inputs = Normalizer([0.4], [0.2], CPU).normalize(pool[:9]).flatten(1)
    shifted = inputs.repeat_interleave(20, dim=0) + 1e-3 * torch.randn(20 * 9, 64).sign()
    head.fill(torch.cat([head.bank_BD, shifted]), torch.rand(30 + 20 * 9, 3).softmax(dim=1))
    chosen = onnx_files._without_ties(model, classify, pool)
    assert torch.equal(chosen, pool[9:13])
    onnx_files.write_onnx(model, tmp_path / "model.onnx")
    assert_same(model, tmp_path / "model.onnx", chosen, record)


# ---- the command -------------------------------------------------------------------------------


@pytest.fixture
def exported(command):
    code, out, err = command(*EXPORT, "--onnx")
    first, second = out.splitlines()
    assert (code, first, err) == (0, f"model: model ({LABELS}, c1-confirm-s3)", "")
    assert re.fullmatch(
        r"onnx: model.onnx in it, probabilities differ by at most \d\.\de-\d+", second
    )
    return command


def test_the_confirmed_network_says_the_same_of_image_files(exported, record):
    assert sorted(path.name for path in Path("model").iterdir()) == [
        "README.md",
        "model.json",
        "model.onnx",
        "model.safetensors",
    ]
    images = pixels(20, 1, (8, 8))
    Path("images").mkdir()
    for i, image in enumerate(images.numpy()):
        Image.fromarray(image[0]).save(f"images/{i:02d}.png")
    code, out, _ = exported("predict", "model", "images")
    rows = list(csv.DictReader(out.splitlines()))
    predicted = np.array([[float(row[f"p_{k}"]) for k in range(10)] for row in rows])
    session = opened(Path("model/model.onnx"))
    probabilities = session.run(["probabilities"], {"images": images.numpy()})[0]
    assert code == 0 and np.abs(probabilities - predicted).max() < 1e-5  # six digits are printed
    assert_same(load_model(Path("model")), Path("model/model.onnx"), images, record)


def code_in(card: str) -> list[str]:
    section = card.partition("## How to use it without tune-ssl\n")[2]
    return [line[4:] for line in section.splitlines() if line.startswith("    ")]


def test_the_lines_of_the_card_classify_an_image_without_tune_ssl(exported, monkeypatch):
    text = Path("model/README.md").read_text()
    assert re.search(r"at most \d\.\de-\d+, measured on random", text)
    lines = code_in(text)
    assert len(lines) == 6
    for i, image in enumerate(pixels(3, 1, (8, 8)).numpy()):
        Image.fromarray(image[0]).save("model/photo.png")
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)],
            cwd="model",
            capture_output=True,
            text=True,
            check=True,
        )
        row = next(csv.DictReader(exported("predict", "model", "model/photo.png")[1].splitlines()))
        assert done.stdout == f"{row['class']}\n", i


def test_the_lines_of_a_colour_networks_card_fit_a_photo_of_any_size(tmp_path, monkeypatch, capsys):
    model = untrained("supervised", 3, (8, 12))
    onnx_files.write_onnx(model, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    lines = code_in("\n".join(onnx_files.usage(model.card, 1e-7)))
    image = pixels(1, 3, (8, 12))
    shown = image.numpy()[0].transpose(1, 2, 0)
    for photo in (shown, np.repeat(np.repeat(shown, 3, axis=0), 3, axis=1)):
        Image.fromarray(photo).save("photo.png")
        found = {}
        exec("\n".join(lines), found)
        assert found["probabilities"].shape == (1, 3)
    Image.fromarray(shown).save("photo.png")
    exec("\n".join(lines), found)
    assert np.abs(found["probabilities"] - softmax(own(model, image))).max() < 1e-5
    best = CLASSES[int(own(model, image).argmax())]
    assert capsys.readouterr().out.splitlines()[-1] == best


def test_without_onnx_nothing_of_it_is_written_or_loaded(command):
    assert command(*EXPORT)[0] == 0
    assert not Path("model/model.onnx").exists()
    assert "onnx" not in Path("model/README.md").read_text()
    code = (
        "import sys\nsys.argv = ['tune-ssl', 'export', '--help']\n"
        "from tune_ssl.cli import main as cli\ntry:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "import tune_ssl.artifacts.export, tune_ssl.artifacts.onnx_files\n"
        "print('LOADED', *[m for m in ('onnx', 'onnxruntime', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--onnx" in done.stdout and done.stdout.splitlines()[-1].split() == ["LOADED"]


@pytest.mark.parametrize(
    "missing, expected",
    [
        (["onnx"], "the package onnx is not installed"),
        (["onnxruntime"], "the package onnxruntime is not installed"),
        (["onnx", "onnxruntime"], "the packages onnx and onnxruntime are not installed"),
    ],
)
def test_a_missing_package_is_named_and_nothing_is_written(
    command, tmp_path, monkeypatch, missing, expected
):
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    before = sorted(tmp_path.rglob("*"))
    line = f"{expected}; pip install 'tune-ssl[onnx]'\n"
    assert command(*EXPORT, "--onnx") == (2, "", line)
    assert sorted(tmp_path.rglob("*")) == before


def has_no_counterpart(prediction):
    return prediction._replace(logits_NK=torch.special.bessel_j0(prediction.logits_NK))


def breaks(prediction):
    raise RuntimeError("first\nsecond")


def depends_on_the_batch(prediction):
    """What a trace of two images takes for a constant."""
    factor = 1 if len(prediction.logits_NK) == onnx_files.TRACED else 2
    return prediction._replace(logits_NK=prediction.logits_NK * factor)


def is_not_finite(prediction):
    return prediction._replace(logits_NK=prediction.logits_NK * float("nan"))


def has_no_classes(prediction):
    return prediction._replace(logits_NK=None)


@pytest.mark.parametrize(
    "wrong, expected",
    [
        (has_no_counterpart, r"cannot be exported as ONNX: \w+: .*bessel_j0.*"),
        (breaks, "cannot be exported as ONNX: RuntimeError: first"),
        (
            depends_on_the_batch,
            r"gives other probabilities as ONNX: one differs by 0\.\d+, at most 0.0001 may be",
        ),
        (is_not_finite, "gives probabilities that are not finite"),
        (has_no_classes, "has no classes: its last stage, train, gives features only"),
    ],
)
def test_a_network_that_cannot_be_exported_is_one_line_and_writes_nothing(
    command, tmp_path, monkeypatch, wrong, expected
):
    predict = SupervisedStage.predict

    def changed(stage, network, images):
        prediction = predict(stage, network, images)
        late = wrong in (has_no_counterpart, breaks)  # its own predictions are all right
        return prediction if late and not torch.jit.is_tracing() else wrong(prediction)

    monkeypatch.setattr(SupervisedStage, "predict", changed)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = command(*EXPORT, "--onnx")
    assert (code, out) == (2, "")
    assert re.fullmatch(f"c1-confirm-s3 {expected}\n", err)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_exporter_that_fails_prints_nothing_of_its_own(tmp_path, monkeypatch, capfd):
    predict = SupervisedStage.predict
    monkeypatch.setattr(
        SupervisedStage, "predict", lambda *given: has_no_counterpart(predict(*given))
    )
    with pytest.raises(UserError, match="bessel_j0"):
        onnx_files.write_onnx(untrained("supervised", 1, (8, 8)), tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "") and list(tmp_path.iterdir()) == []


def test_weights_that_one_file_cannot_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "LARGEST", 1000)
    with pytest.raises(UserError, match="its weights are larger than 2 GiB"):
        onnx_files.write_onnx(untrained("supervised", 1, (8, 8)), tmp_path / "model.onnx")


def test_a_file_that_onnxruntime_cannot_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "_exported", lambda *_: b"no model")
    expected = f"cannot be run by onnxruntime {onnxruntime.__version__}: "
    with pytest.raises(UserError, match=expected) as caught:
        onnx_files.write_onnx(untrained("supervised", 1, (8, 8)), tmp_path / "model.onnx")
    assert len(str(caught.value).splitlines()) == 1 and list(tmp_path.iterdir()) == []


def test_a_runs_plugin_is_loaded_for_its_network(command, tmp_path, monkeypatch):
    body = (
        "fixed: {data: {num_labels: 20, batch_size: 8}, model: {feature_dim: 16}, "
        "method: {name: entropy_min}, budget: {steps: 2, eval_every: 2}}\n"
        "study: {num_trials: 1, finalists: 1, seeds: [0]}\n"
    )
    plugin = Path(shutil.copy(PLUGIN, "mine.py"))

    def forget():  # as in another process
        monkeypatch.setattr(plugins, "_loaded", {})
        methods.register(os.path.abspath(plugin), [])

    run_here(tmp_path, body, "plugged", (plugin,))
    forget()
    try:
        assert command("export", "plugged", "-o", "entropy", "--onnx")[::2] == (0, "")
        assert opened(Path("entropy/model.onnx")).get_inputs()[0].shape == ["N", 1, 8, 8]
    finally:
        forget()
