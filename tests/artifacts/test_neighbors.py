"""`tune-ssl neighbors` on a confirmed run, and every way in which it has nothing to show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.runs import called, events, write_study
from tune_ssl.records import log

IMAGES = """
fixed:
  data: {dataset: folder, root: images, num_labels: 12, batch_size: 8}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: supervised}
  budget: {steps: 2, eval_every: 2}
study: {num_trials: 1, finalists: 1, seeds: [0]}
"""


ONE = Path("runs/one")


@pytest.fixture
def neighbors(command):
    """`neighbors("one", "--k", 3)` -> exit code, stdout, stderr; runs/searched is not confirmed yet."""
    searched = Path("runs/searched")
    searched.mkdir()
    shutil.copy(ONE / log.STUDY, searched)
    for event in events(ONE):
        if event["phase"] == log.SEARCH:
            log.append(searched / log.TRIALS, event)
    return lambda *arguments: command("neighbors", *arguments)


def files(folder):
    return {path: path.stat().st_mtime for path in folder.rglob("*")}


def test_a_confirmation_leaves_a_model_and_galleries_of_the_first_seed_of_each_condition(confirmed):
    models = {str(path.relative_to(confirmed)) for path in confirmed.rglob("model*.*")}
    assert models == {f"models/{i}/{name}" for i in (0, 1) for name in (log.MODEL, log.WEIGHTS)}
    found = log.read(confirmed / log.GALLERIES)
    assert {(g["trial"], g["condition"], g["seed"], g["name"], g["error"]) for g in found} == {
        (f"c{i}-confirm-s3", f"data.num_labels={labels}", 3, "neighbours", None)
        for i, labels in enumerate((20, 100))
    }
    for event in events(confirmed):
        assert "galleries" not in event and "galleries" not in event.get("metrics", {})


# ---- the command ------------------------------------------------------------------------------------


def test_the_table_and_the_grid_agree_with_the_gallery(neighbors, tmp_path):
    code, out, err = neighbors("one", "-o", tmp_path / "grid.png")
    assert (code, err) == (0, "")
    assert out.startswith("data.num_labels=20, c0-confirm-s3\n")
    gallery = next(g for g in log.read(ONE / log.GALLERIES) if g["name"] == "neighbours")
    rows = [line.strip("│").split("│") for line in out.splitlines() if line.startswith("│")]
    for (query, nearest, agree), row in zip(rows, gallery["rows"], strict=True):
        first, *others = row["captions"]
        assert (query.strip(), nearest.strip()) == (first, ", ".join(others))
        assert agree.strip() == f"{100 * others.count(first) / 5:.0f} %"
    share = 100 * gallery["values"]["class_agreement"]
    assert (
        f"over all 288 validation images: of the 5 nearest validation images, {share:.1f} % have "
        "the query's class\n" in out
    )
    assert out.endswith(f"images: {tmp_path / 'grid.png'}\n")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.format == "PNG" and grid.size == (6 * 50, 4 * (50 + 14))


def test_a_condition_and_other_numbers(neighbors):
    condition = "data.num_labels=100"
    code, out, _ = neighbors("one", "--condition", condition, "--query", 20, "--k", 100)
    assert code == 0 and out.startswith(f"{condition}, c1-confirm-s3\n")
    written = ONE / "neighbors.png"
    assert f"images: {written}" in out
    with Image.open(written) as grid:
        assert grid.size == (101 * 50, 20 * (50 + 14))
    assert neighbors(ONE, "--query", 1, "--k", 1)[0] == 0
    with Image.open(written) as grid:
        assert grid.size == (2 * 50, 50 + 14)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["one", "--k", 0], ["--k is 0, but must be from 1 to 100"]),
        (["one", "--query", 101], ["--query is 101, but must be from 1 to 100"]),
        (
            ["one", "--query", -1, "--k", 101],
            [
                "--query is -1, but must be from 1 to 100",
                "--k is 101, but must be from 1 to 100",
            ],
        ),
        (
            ["ome"],
            [
                "runs/ome is not a run folder; did you mean 'one'? "
                "(in runs there are: one, searched)"
            ],
        ),
        (
            ["one", "--condition", "data.num_labels=30"],
            [
                "--condition is 'data.num_labels=30', but must be a known condition; did you mean "
                "'data.num_labels=20'? (known: data.num_labels=100, data.num_labels=20)"
            ],
        ),
        (
            ["searched"],
            [
                "runs/searched has no saved model: it is not confirmed yet; "
                "`tune-ssl search --resume searched` does that"
            ],
        ),
        (["one", "-o", "runs"], ["runs is a folder, but must be a file's name"]),
        (["one", "-o", "no/such/a.png"], ["no/such/a.png cannot be written: No such file or di"]),
        (
            ["one", "-o", f"{ONE}/study.yaml/a.png"],
            ["runs/one/study.yaml/a.png cannot be written: Not a directory"],
        ),
    ],
)
def test_bad_input_is_one_line_each_and_nothing_is_written(
    neighbors, tmp_path, arguments, expected
):
    before = files(tmp_path)
    code, out, err = neighbors(*arguments)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True))
    assert files(tmp_path) == before


def test_why_a_confirmed_run_has_no_model(neighbors):
    """From before models were saved; or the run that would have saved it diverged."""
    folder = ONE.with_name("older")
    shutil.copytree(ONE, folder)
    shutil.rmtree(folder / log.MODELS)
    code, _, err = neighbors("older")
    assert code == 2 and err == (
        "runs/older has no saved model: it was confirmed by a tune-ssl that saved none; "
        "a new run saves them\n"
    )
    lines = []
    for event in events(folder):
        if event["trial"] == "c1-confirm-s3" and event["event"] == log.FINISHED:
            event["event"] = log.DIVERGED
        lines.append(json.dumps(event) + "\n")
    (folder / log.TRIALS).write_text("".join(lines) + '{"torn')
    code, _, err = neighbors("older", "--condition", "data.num_labels=100")
    assert code == 2 and err == (
        "runs/older has no saved model of condition data.num_labels=100: the run of its first fresh "
        "seed, c1-confirm-s3, diverged\n"
    )


# ---- other data -------------------------------------------------------------------------------------


def test_data_that_is_gone_or_was_changed_is_refused(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for name in ("[b]cat", "dog", "fish"):
        for i in range(12):
            path = tmp_path / "images" / "train" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    saved_run(tmp_path, monkeypatch)
    monkeypatch.setenv("COLUMNS", "120")

    def neighbors(*arguments):
        return called(monkeypatch, capsys, "neighbors", *arguments)

    code, out, err = neighbors("f", "--k", 100)
    assert code == 0, err
    assert "│ [b]cat " in out and "[b]cat, " in out  # a name is no markup
    grid = tmp_path / "runs" / "f" / "neighbors.png"
    grid.unlink()

    changed = tmp_path / "images" / "train" / "dog" / "3.png"
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(changed)
    code, out, err = neighbors("f")
    assert code == 0, "the images that the run began with are kept"
    grid.unlink()
    from tune_ssl.runs.folder import stores_of

    shutil.rmtree(next(iter(stores_of(tmp_path / "runs" / "f").values()))[1])
    code, out, err = neighbors("f")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert err.startswith("the data of c0-confirm-s0: folder has digest ")
    assert "but the run began with " in err
    shutil.rmtree(tmp_path / "images")
    code, out, err = neighbors("f")
    assert (code, out) == (2, "")
    assert err.startswith("the data of c0-confirm-s0: data.root is 'images', but there is no such")
    assert len(err.splitlines()) == 1 and not grid.exists()


def saved_run(folder, monkeypatch):
    """runs/f: a run folder with the model of an untrained network, without Ray."""
    import torch

    from tune_ssl.artifacts.model_files import save_model
    from tune_ssl.data.loading import load_data
    from tune_ssl.runs.folder import create
    from tune_ssl.runs.splits import check_data
    from tune_ssl.study.study import load_study
    from tune_ssl.training.loop import Trained

    monkeypatch.chdir(folder)
    study = load_study(write_study(folder, IMAGES))
    run = create(study, check_data(study), Path("runs"), "f", "")
    (stage,) = study.fixed.stages()
    data = load_data(study.fixed.data, 0, torch.device("cpu"))
    network = stage.build(data.task, study.fixed.model, None)
    models = run / log.MODELS / "0"
    models.mkdir(parents=True)
    spec = study.fixed.model_dump(mode="json")
    trained = Trained(stage, network, data)
    save_model(models, trained, trial="c0-confirm-s0", condition="all", spec=spec)
