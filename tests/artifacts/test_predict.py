"""`tune-ssl export` and `predict`: the network that was confirmed, on images that it never saw."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.runs import called, run_here
from tune_ssl.artifacts.model_files import load_model, read_card
from tune_ssl.data.image_files import Decoding, decode
from tune_ssl.data.loading import load_data
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.training.evaluation import predict

ONE = Path("runs/one")
LABELS = "data.num_labels=100"
PLUGIN = Path(__file__).parents[2] / "docs/examples/entropy_min.py"


@pytest.fixture
def exported(command):
    """`command`, in a folder with the exported network of the second condition in model/."""
    code, out, err = command("export", "one", "--condition", LABELS, "-o", "model")
    assert (code, out, err) == (0, f"model: model ({LABELS}, c1-confirm-s3)\n", "")
    return command


def written(folder: str, name: str, pixels: np.ndarray) -> Path:
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def columns(found: list[dict[str, str]]) -> np.ndarray:
    """(N, K) of the probabilities"""
    names = [name for name in found[0] if name.startswith("p_")]
    return np.array([[float(row[name]) for name in names] for row in found])


# ---- export ------------------------------------------------------------------------------------


def test_what_is_exported_is_the_saved_model_and_a_card_for_people(exported):
    source = ONE / "models" / "1"
    assert sorted(path.name for path in Path("model").iterdir()) == [
        "README.md",
        "model.json",
        "model.safetensors",
    ]
    for name in (log.WEIGHTS, log.MODEL):
        assert (Path("model") / name).read_bytes() == (source / name).read_bytes()
    card, text = read_card(source), Path("model/README.md").read_text()
    ended = Ledger.read(ONE).ended
    metrics = [ended[f"c1-confirm-s{seed}"]["metrics"] for seed in (3, 4)]
    values = [m["test/mean_class_accuracy"] for m in metrics]
    assert text.startswith("# supervised on digits, 100 labels\n")
    assert (
        f"Test accuracy {metrics[0]['test/accuracy']:.4f}, mean over classes {values[0]:.4f}, on 359 "
        "test images: this network alone, seed 3.\n"
    ) in text
    assert (
        f"The same config on all 2 fresh seeds: mean {np.mean(values):.4f}, from {min(values):.4f} to "
        f"{max(values):.4f}."
    ) in text
    for fact in (
        card.data,
        card.split,
        "trial c1-confirm-s3 of run one",
        "10: 0, 1, 2, 3",
        "1 x 8 x 8",
    ):
        assert fact in text
    assert "    tune-ssl predict model IMAGES... -o predictions.csv\n" in text


def test_an_empty_folder_is_filled_and_the_condition_of_a_single_one_need_not_be_named(command):
    text = (ONE / "study.yaml").read_text()
    head, _, rest = text.partition("- id: data.num_labels=100")
    (ONE / "study.yaml").write_text(head + rest.partition("validation: 288\n")[2])
    Path("empty").mkdir()
    code, out, _ = command("export", "one", "-o", "empty")
    assert (code, out) == (0, "model: empty (data.num_labels=20, c0-confirm-s3)\n")
    assert load_model(Path("empty")).card.condition == "data.num_labels=20"


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (
            ["-o", "new"],
            "runs/one has 2 conditions: give --condition with one of data.num_labels=20, ",
        ),
        (
            ["--condition", "x", "-o", "new"],
            "--condition is 'x', but must be a known condition (kno",
        ),
        (
            ["--condition", LABELS, "-o", "runs"],
            "runs is not empty: give a new folder, or empty this",
        ),
        (["--condition", LABELS, "-o", "a.txt"], "a.txt exists already and is no folder"),
        (["--condition", LABELS, "-o", "a.txt/b"], "a.txt/b cannot be written: "),
    ],
)
def test_an_export_that_cannot_be_is_one_line_and_writes_nothing(
    command, tmp_path, arguments, expected
):
    Path("a.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = command("export", "one", *arguments)
    assert (code, out) == (2, "") and err.startswith(expected) and len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_torn_or_missing_model_is_not_exported(command):
    weights = ONE / "models" / "1" / log.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-9])
    arguments = ("export", "one", "--condition", LABELS, "-o", "new")
    assert command(*arguments)[::2] == (2, f"{weights} is torn or no safetensors file\n")
    weights.unlink()
    assert command(*arguments)[::2] == (2, f"{weights} cannot be read: No such file or directory\n")
    shutil.rmtree(weights.parent)
    assert "runs/one has no saved model of condition" in command(*arguments)[2]
    assert not Path("new").exists()


# ---- predict -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 64])
def test_the_predictions_are_the_networks_own_ones(exported, size):
    model = load_model(Path("model"))
    data = load_data(model.spec.data, model.spec.split_seed, torch.device("cpu"))
    on = data.sets.validation
    pixels = on.images.gather(np.arange(70))
    for i, image in enumerate(pixels):
        written("images", f"{i:03d}.png", image[0])
    own = predict(model.stage, model.network, data, on).logits_NK[:70].softmax(dim=1).numpy()
    code, out, err = exported("predict", "model", "images", "--batch-size", size)
    assert (code, err) == (0, "")
    found = rows(out)
    assert [row["path"] for row in found] == [f"images/{i:03d}.png" for i in range(70)]
    assert np.abs(columns(found) - own).max() < 1e-5
    assert [row["class"] for row in found] == [str(k) for k in own.argmax(axis=1)]
    shares = [row[f"p_{row['class']}"] for row in found]
    assert [row["confidence"] for row in found] == shares and len(found[0]) == 3 + 10
    assert (own.argmax(axis=1) == on.labels[:70]).mean() > 0.5  # it has learned something


def test_images_from_outside_are_decoded_as_a_folder_dataset_is(exported):
    rng = np.random.default_rng(0)
    written("out", "b/large.png", rng.integers(0, 256, (30, 41), dtype=np.uint8))
    written("out", "a/colour.jpg", rng.integers(0, 256, (9, 8, 3), dtype=np.uint8))
    written("out", "alpha.png", rng.integers(0, 256, (8, 12, 4), dtype=np.uint8))
    Path("out/.hidden.png").write_bytes(b"")
    Path("out/notes.txt").write_text("no image")
    shutil.copy("out/alpha.png", "unnamed")
    code, out, err = exported("predict", "model", "out", "unnamed", "out/alpha.png")
    assert err.splitlines() == [
        "out: left out: 1 files, hidden (.hidden.png)",
        "out: left out: 1 files, no image by its content (notes.txt)",
    ]
    found = rows(out)
    names = ["out/a/colour.jpg", "out/alpha.png", "out/b/large.png", "unnamed"]
    assert code == 0 and sorted(row["path"] for row in found) == names
    model = load_model(Path("model"))
    data = load_data(model.spec.data, model.spec.split_seed, torch.device("cpu"))
    for row, shares_K in zip(found, columns(found), strict=True):
        content = Path(row["path"]).read_bytes()
        pixels = torch.from_numpy(decode(content, Decoding(1, 8)).copy())[None]
        with torch.no_grad():
            logits = model.stage.predict(model.network, data.normalize(pixels)).logits_NK
        assert np.abs(logits.softmax(dim=1).numpy()[0] - shares_K).max() < 1e-5


def test_an_unreadable_image_is_a_line_and_the_others_are_predicted(exported):
    written("images", "good.png", np.zeros((8, 8), np.uint8))
    Path("images/empty.png").write_bytes(b"")
    Path("images/text.jpg").write_text("no image")
    code, out, err = exported("predict", "model", "images", "-o", "p.csv")
    assert (code, out) == (1, "predictions: p.csv (1 images)\n")
    assert err.splitlines() == [
        "images/empty.png cannot be read: is empty",
        "images/text.jpg cannot be read: is no image by its content",
        "2 of 3 images cannot be read",
    ]
    assert [row["path"] for row in rows(Path("p.csv").read_text())] == ["images/good.png"]


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["model", "nope.png", "none"], ["nope.png cannot be read: No such file or directory"] * 1),
        (["model", "bare"], ["bare is a folder without images"]),
        (["bare", "a.png"], ["bare/model.json cannot be read: No such file or directory"]),
        (["model", "a.png", "--batch-size", 0], ["--batch-size is 0, but must be at least 1"]),
        (
            ["model", "a.png", "--device", "cuda:99"],
            ["--device is 'cuda:99', but must be auto, cpu"],
        ),
        (["model", "a.png", "-o", "bare"], ["bare is a folder, but must be a file's name"]),
        (["model", "a.png", "-o", "no/p.csv"], ["no/p.csv cannot be written: No such file or dir"]),
        (
            ["runs/one", "a.png"],
            [
                "runs/one is a run folder, but must be a model's: runs/one/models/0 "
                f"(data.num_labels=20), runs/one/models/1 ({LABELS})"
            ],
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(exported, tmp_path, arguments, expected):
    Path("bare").mkdir()
    written(".", "a.png", np.zeros((8, 8), np.uint8))
    before = sorted(tmp_path.rglob("*"))
    code, out, err = exported("predict", *arguments)
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if not line.startswith("none cannot")]
    assert len(lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True))
    assert sorted(tmp_path.rglob("*")) == before


def test_values_that_are_not_finite_are_no_prediction(exported):
    from safetensors.torch import load_file, save_file

    weights = Path("model") / log.WEIGHTS
    broken = {name: value.float() * float("nan") for name, value in load_file(weights).items()}
    save_file(broken, weights)
    written(".", "a.png", np.zeros((8, 8), np.uint8))
    code, _, err = exported("predict", "model", "a.png", "-o", "p.csv")
    assert code == 2 and not Path("p.csv").exists()
    assert err == "c1-confirm-s3 gives probabilities that are not finite, first for a.png\n"


def test_a_network_of_images_that_were_not_square_takes_no_others(exported):
    card = json.loads(Path("model/model.json").read_text())
    Path("model/model.json").write_text(json.dumps({**card, "image_width": 12}))
    written("images", "a.png", np.zeros((8, 8), np.uint8))
    written("images", "b.png", np.zeros((8, 12), np.uint8))
    code, out, err = exported("predict", "model", "images")
    assert code == 1 and [row["path"] for row in rows(out)] == ["images/b.png"]
    assert "images/a.png cannot be read: is 8x8 pixels large, but must be 12x8\n" in err


def test_a_process_that_predicts_loads_neither_ray_nor_optuna_nor_pandas(exported):
    written(".", "a.png", np.zeros((8, 8), np.uint8))
    code = (
        "import sys\nsys.argv = ['tune-ssl', 'predict', 'model', 'a.png', '-o', 'p.csv']\n"
        "from tune_ssl.cli import main as cli\ntry:\n    cli.main()\nexcept SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "print('LOADED', *[m for m in ('ray', 'optuna', 'pandas', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["predictions: p.csv (1 images)", "LOADED torch"]


def test_a_text_in_a_folder_is_one_line_and_no_failure(exported):
    written("images", "a.png", np.zeros((8, 8), np.uint8))
    Path("images/notes.txt").write_text("no image")
    code, out, err = exported("predict", "model", "images")
    assert (code, len(rows(out))) == (0, 1)
    assert err == "images: left out: 1 files, no image by its content (notes.txt)\n"


def digit() -> np.ndarray:
    """(8, 8), of which the network is sure, but for noise at its upper edge."""
    from sklearn.datasets import load_digits

    return np.round(load_digits().images[0] * (255 / 16)).astype(np.uint8)


def test_turned_and_transparent_copies_are_classified_as_the_plain_file_is(exported):
    plain = digit()
    written("images", "a-plain.png", plain)
    exif = Image.Exif()
    exif[274] = 6
    turned = Image.fromarray(plain).transpose(Image.Transpose.ROTATE_90)
    turned.save("images/b-turned.png", exif=exif)
    turned.save("images/b-turned.tif", exif=exif)
    alpha = np.dstack([plain, plain, plain, np.full((8, 8), 255, np.uint8)])
    written("images", "c-opaque.png", alpha)
    framed = np.pad(alpha, ((0, 0), (4, 4), (0, 0)))  # transparent, and cut off
    written("images", "d-framed.png", framed)
    code, out, err = exported("predict", "model", "images")
    assert (code, err) == (0, "")
    found = columns(rows(out))
    assert len(found) == 5 and np.abs(found - found[0]).max() < 1e-6


def test_what_is_transparent_is_seen_as_the_background(exported):
    plain = digit()
    written("images", "a.png", np.where(np.arange(8) < 3, 255, plain).astype(np.uint8))
    alpha = np.broadcast_to(np.where(np.arange(8) < 3, 0, 255), (8, 8)).astype(np.uint8)
    written("images", "b.png", np.dstack([plain, alpha]))
    found = columns(rows(exported("predict", "model", "images")[1]))
    assert len(found) == 2 and np.abs(found[0] - found[1]).max() < 1e-6


def test_a_gif_in_a_folder_is_classified_as_the_file_alone_is(exported):
    Path("images").mkdir()
    first, second = Image.fromarray(digit()), Image.new("L", (8, 8), 200)
    first.save("images/a.gif", save_all=True, append_images=[second])
    first.save("images/plain.png")
    code, in_folder, err = exported("predict", "model", "images")
    assert (code, err) == (0, "")
    code, alone, _ = exported("predict", "model", "images/a.gif")
    assert code == 0 and rows(alone) == rows(in_folder)[:1]
    found = columns(rows(in_folder))
    assert np.abs(found[0] - found[1]).max() < 1e-6, "its first picture"


def test_the_csv_is_text_whatever_bytes_a_name_has(exported):
    name = os.fsdecode(b"caf\xe9.png")
    written("images", name, np.zeros((8, 8), np.uint8))
    (Path("images") / os.fsdecode(b"bad\xff.png")).write_bytes(b"")
    code, _, err = exported("predict", "model", "images", "-o", "p.csv")
    assert code == 1
    assert "images/bad\\xff.png cannot be read: is empty\n" in err
    found = rows(Path("p.csv").read_bytes().decode("utf-8"))
    assert [row["path"] for row in found] == ["images/caf\\xe9.png"]


def test_an_image_of_16_bits_is_seen_as_in_8_and_a_float_is_refused_by_a_network_that_never_saw_one(
    exported,
):
    written("images", "a.png", np.full((8, 8), 40_000, np.uint16))
    written("images", "b.png", np.full((8, 8), 156, np.uint8))
    code, out, err = exported("predict", "model", "images")
    first, second = rows(out)
    assert (code, err) == (0, "")
    assert first["confidence"] == second["confidence"]
    np.save("images/deep.npy", np.full((8, 8), 0.5, np.float32))
    code, out, err = exported("predict", "model", "images/deep.npy")
    assert (code, rows(out)) == (1, [])
    assert err.splitlines()[0].startswith(
        "images/deep.npy cannot be read: has more than 8 bits a channel, and no training image has: "
    )


# ---- a network of images with 16 bits ------------------------------------------------------------


def frame(rng: np.random.Generator, warm: bool) -> np.ndarray:
    """Counts within 7200..7610: a square of 7510, or of 7590 where it is warm."""
    values = rng.integers(7200, 7400, (16, 16))
    y, x = rng.integers(1, 7, 2)
    values[y : y + 8, x : x + 8] = (7510, 7590)[warm] + rng.integers(-20, 20, (8, 8))
    return values.astype(np.uint16)


@pytest.fixture(scope="module")
def thermal(tmp_path_factory) -> Path:
    """The folder of a network that tells cold from warm."""
    folder = tmp_path_factory.mktemp("thermal")
    rng = np.random.default_rng(0)
    for index in range(80):
        warm = index % 2 == 1
        written(str(folder / "data" / ("cold", "warm")[warm]), f"{index}.png", frame(rng, warm))
    body = (
        f"fixed: {{data: {{dataset: folder, root: '{folder / 'data'}', batch_size: 16}}, "
        "model: {feature_dim: 16, hidden_dim: 16}, method: {name: supervised, labeled_view: none}, "
        "budget: {steps: 60, eval_every: 60}}\n"
        "study: {num_trials: 1, finalists: 1, seeds: [0]}\n"
    )
    return run_here(folder, body) / "models" / "0"


def test_16_bit_files_are_classified_by_the_range_that_the_training_images_had(
    thermal, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    for index in range(20):
        written(
            "new", f"{'warm' if index % 2 else 'cold'}-{index:02d}.png", frame(rng, index % 2 == 1)
        )
    written("new", "zz-hot.tif", np.full((16, 16), 65535, np.uint16))  # changes no other's range
    code, out, err = called(monkeypatch, capsys, "predict", thermal, "new")
    assert (code, err) == (0, "")
    found = {row["path"]: row["class"] for row in rows(out)}
    assert found.pop("new/zz-hot.tif") in ("cold", "warm")
    assert len(found) == 20
    assert np.mean([path.startswith(f"new/{name}") for path, name in found.items()]) >= 0.9
    ((low, high),) = read_card(thermal).decoding["ranges"]
    assert 7200 <= low < 7210 and 7600 < high <= 7610


def test_a_16_bit_file_has_the_same_class_alone_as_in_a_folder(
    thermal, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for index in range(4):
        written("new", f"{index}.tif", frame(np.random.default_rng(index), index % 2 == 1))
    _, whole, _ = called(monkeypatch, capsys, "predict", thermal, "new")
    for index, row in enumerate(rows(whole)):
        _, alone, _ = called(monkeypatch, capsys, "predict", thermal, f"new/{index}.tif")
        assert np.abs(columns(rows(alone)) - columns([row])).max() < 1e-5


def test_a_plugins_network_needs_its_plugin(exported, tmp_path, monkeypatch):
    from tune_ssl import methods
    from tune_ssl.methods import plugins

    body = (
        "fixed: {data: {num_labels: 20, batch_size: 8}, model: {feature_dim: 16}, "
        "method: {name: entropy_min}, budget: {steps: 2, eval_every: 2}}\n"
        "study: {num_trials: 1, finalists: 1, seeds: [0]}\n"
    )
    plugin = Path(shutil.copy(PLUGIN, "mine.py"))
    run_here(tmp_path, body, "plugged", (plugin,))
    assert exported("export", "plugged", "-o", "entropy")[0] == 0
    text = Path("entropy/README.md").read_text()
    assert "tune-ssl predict entropy --plugin mine.py IMAGES..." in text
    assert "The method is in the plugin mine.py, digest " in text
    written(".", "a.png", np.zeros((8, 8), np.uint8))

    def forgotten():  # as in another process
        monkeypatch.setattr(plugins, "_loaded", {})
        methods.register(os.path.abspath(plugin), [])

    forgotten()
    code, out, err = exported("predict", "entropy", "a.png")
    assert (code, out, err) == (
        2,
        "",
        "entropy is of method 'entropy_min', which is none of tune-ssl's own: --plugin FILE brings "
        "it\n",
    )
    code, given, _ = exported("predict", "entropy", "a.png", "--plugin", plugin)
    assert code == 0 and len(rows(given)) == 1
    forgotten()
    assert exported("predict", "runs/plugged/models/0", "a.png") == (0, given, "")
    plugin.write_text(plugin.read_text() + "# changed\n")
    forgotten()
    code, _, err = exported("predict", "runs/plugged/models/0", "a.png")
    assert code == 2 and "began with the plugin " in err and len(err.splitlines()) == 1
