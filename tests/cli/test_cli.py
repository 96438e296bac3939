"""The command line: bad input is one line each on stderr, exit code 2, nothing half-written."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.study.test_study import SOUND
from tests.support.runs import called
from tune_ssl.records import log

HEAVY = ("torch", "torchvision", "timm", "ray", "optuna", "pandas", "sklearn", "scipy", "plotly")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`run("check", "sound.yaml")` in a folder that has that file -> (exit code, stdout, stderr)"""
    monkeypatch.chdir(tmp_path)
    Path("sound.yaml").write_text(SOUND)

    def command(*arguments):
        return called(monkeypatch, capsys, *arguments)

    return command


@pytest.fixture
def images(tmp_path):
    """Two classes of ten small images."""
    for name in ("cat", "dog"):
        for i in range(10):
            path = tmp_path / "images" / "train" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(path)
    return tmp_path / "images"


# ---- what is fast, because nothing heavy is loaded -----------------------------------------------


def test_help_checks_and_the_schema_load_nothing_heavy(run, tmp_path):
    assert run("data", "prepare", "sound.yaml")[0] == 0
    asked = {
        ("--help",): 0,
        ("search", "--help"): 0,
        ("check", "sound.yaml", "optim.lr=-1", "x=1"): 2,
        ("check", "sound.yaml", "--fast"): 0,
        ("check", "--schema"): 0,
        ("list",): 2,  # there is none
    }
    code = (
        "import sys\nfrom tune_ssl.cli import main as cli\n"
        f"for arguments in {list(asked)}:\n"
        "    sys.argv[1:] = arguments\n"
        "    try:\n        cli.main()\n        code = 0\n"
        "    except SystemExit as stop:\n        code = stop.code or 0\n"
        f"    print('LOADED', code, *[m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("LOADED")]
    assert lines == [f"LOADED {code}" for code in asked.values()]


# ---- check ---------------------------------------------------------------------------------------


def test_check_says_what_a_sound_study_will_do(run):
    code, out, err = run("check", "sound.yaml", "study.num_trials=5")
    assert (code, err) == (0, "")
    assert "sound.yaml: sound. soft_kmeans on digits" in out
    assert "2 conditions x 5 trials over 3 searched keys, confirmed on 10 seeds" in out
    assert "fresh seeds" not in out  # they are enough


def test_check_says_what_few_seeds_can_decide(run):
    _, out, _ = run("check", "sound.yaml", "--fast", "study.seeds=[0, 1, 2]")
    few = "study.seeds has 3: nothing is decided with fewer than 4 fresh seeds, and no interval of them is a 95 % one"
    assert few in out.splitlines()
    _, out, _ = run("check", "sound.yaml", "--fast", "study.seeds=[0, 1, 2, 3, 4, 5]")
    assert "fresh seeds" not in out and "decided" not in out  # two comparisons leave enough to see
    _, out, _ = run("check", "sound.yaml", "--fast", "study.seeds=[0, 1, 2, 3]")
    some = [
        line for line in out.splitlines() if line.startswith("study.seeds has 4: beside another")
    ]
    assert len(some) == 1 and some[0].endswith("with 10 seeds 0.8 times")


def test_check_prints_every_problem_on_its_own_line_of_stderr(run):
    code, out, err = run("check", "sound.yaml", "optim.weight_decay=-1", "fixd.x=1")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "override fixd.x=1: fixd.x is not a known key; did you mean 'fixed'? (known: data, model, "
        "method, losses, optim, views, budget, compute, seed, fixed, conditions, search, ablate, compare, study)",
        "override optim.weight_decay=-1: optim.weight_decay is -1, but must be at least 0",
    ]


def test_check_prints_a_schema_that_is_json(run):
    code, out, _ = run("check", "--schema")
    assert code == 0 and json.loads(out)["title"] == "Study"


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (
            ["conditions.data.labeled_ratio=[0.5, 0.001]"],
            "override conditions.data.labeled_ratio=[0.5, 0.001]: data.labeled_ratio is 0.001, but "
            "must be at least 0.0087 (one label for each of 10 classes) "
            "(condition data.labeled_ratio=0.001)",
        ),
        (
            ["conditions=null", "data.num_labels=99999"],
            "override data.num_labels=99999: data.num_labels is 99999, but the training pool has "
            "only 1150 images",
        ),
        (
            ["data.dataset=folder"],
            "sound.yaml:2: data.root is not set, but dataset 'folder' needs the folder of the images, or data.labels",
        ),
        (
            ["data.dataset=folder", "data.root=missing"],
            "override data.root=missing: data.root is 'missing', but there is no such folder",
        ),
        (
            ["data.dataset=mnist", "data.root=missing"],
            "override data.dataset=mnist: data.dataset is 'mnist', but there is no folder MNIST/",
        ),
    ],
)
def test_data_that_cannot_be_used_is_one_line_at_its_key(run, overrides, expected):
    code, out, err = run("check", "sound.yaml", *overrides)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and err.startswith(expected)


def test_an_empty_image_file_is_named_and_may_be_skipped(run, images, monkeypatch):
    (images / "train" / "cat" / "3.png").write_bytes(b"")
    monkeypatch.setenv("TUNE_SSL_CACHE", str(images.parent / "cache"))
    data = ["conditions=null", "data.dataset=folder", f"data.root={images}"]
    code, _, err = run("check", "sound.yaml", *data)
    assert code == 2
    assert err.startswith("sound.yaml:2: data.on_bad_image is 'refuse', but 1 of 20 images cannot")
    assert "train/cat/3.png" in err and len(err.splitlines()) == 1
    assert not list((images.parent / "cache").rglob("meta.json"))
    assert run("check", "sound.yaml", *data, "data.on_bad_image=skip")[0] == 0


def test_a_cache_that_cannot_be_written_is_not_blamed_on_the_file(run, monkeypatch):
    monkeypatch.setenv("TUNE_SSL_CACHE", str(Path("sound.yaml").absolute()))
    code, _, err = run("check", "sound.yaml")
    assert code == 2
    assert err.startswith("the data cache '") and "TUNE_SSL_CACHE names another folder" in err


# ---- search, report, train, data: refused before anything is written -----------------------------


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["search"], "give either a study's YAML file or --resume RUN"),
        (
            ["search", "sound.yaml", "--resume", "x"],
            "a resumed run keeps its name, study and data: ",
        ),
        (["search", "sound.yaml", "--name", "a/b"], "--name is 'a/b', but must be up to 100"),
        (
            ["search", "sound.yaml", "study.name=a b"],
            "override study.name=a b: study.name is 'a b'",
        ),
        (["search", "nope.yaml"], "nope.yaml does not exist (in . there are: sound.yaml)"),
        (["search", "--resume", "nope"], "runs/nope is not a run folder"),
        (["search", "--resume", "nope", "--name", "x"], "a resumed run keeps its name, study and"),
        (["search", "--resume", "nope", "--no-cache"], "a resumed run keeps its name, study and"),
        (["search", "sound.yaml", "--name", "one", "--runs", "sound.yaml"], "cannot be written: "),
        (["report", "nope"], "runs/nope"),
        (["report", "a", "b"], "a report of several runs needs a folder to write to: --out FOLDER"),
        (["check"], "give a study's YAML file, or --schema"),
        (["train", "sound.yaml", "optim.lr=-1"], "override optim.lr=-1: optim.lr is -1, but must"),
        (
            ["train", "sound.yaml", "data.num_labels=5"],
            "override data.num_labels=5: data.num_labels is 5, but must be at least 10",
        ),
        (["data", "info", "data.dataset=digit"], "did you mean 'digits'?"),
        (
            ["data", "prepare", "data.dataset=folder", "data.root=missing"],
            "override data.root=missing: data.root is 'missing', but there is no such folder",
        ),
        (
            ["data", "info", "sound.yaml", "data.dataset=folder"],
            "sound.yaml:2: data.root is not set",
        ),
    ],
)
def test_a_bad_request_is_one_line_and_leaves_nothing_behind(run, arguments, expected):
    code, _, err = run(*arguments)
    assert code == 2
    assert expected in err and len(err.splitlines()) == 1
    assert [path.name for path in Path().iterdir()] == ["sound.yaml"]


@pytest.mark.parametrize("arguments", [["chekc"], ["check", "--schemaa"], ["report"]])
def test_a_misspelt_command_or_option_exits_with_2_too(run, arguments):
    code, _, err = run(*arguments)
    assert code == 2 and "Usage: tune-ssl" in err


def test_a_run_name_that_exists_is_refused_and_its_folder_stays_as_it_was(run):
    taken = Path("runs/taken")
    taken.mkdir(parents=True)
    (taken / "mine.txt").write_text("mine")
    code, _, err = run("search", "sound.yaml", "--name", "taken")
    assert code == 2
    assert err == (
        "runs/taken exists already; `tune-ssl search --resume taken` goes on with it, "
        "another --name starts afresh\n"
    )
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "content, expected",
    [
        ("a: 1\n", "runs/odd/study.yaml was not written by `tune-ssl search`"),
        ("", "runs/odd/study.yaml:1: the file is empty"),
        ("study: {fixed: {}}\nsource: s.yaml\n", "runs/odd/study.yaml: method.name is missing"),
    ],
)
def test_a_damaged_run_folder_is_not_resumed(run, content, expected):
    folder = Path("runs/odd")
    folder.mkdir(parents=True)
    (folder / log.STUDY).write_text(content)
    code, _, err = run("search", "--resume", "odd")
    assert code == 2 and err.startswith(expected)
    assert [path.name for path in folder.iterdir()] == [log.STUDY]


def test_a_missing_run_names_those_there_are(run):
    folder = Path("runs/mine")
    folder.mkdir(parents=True)
    (folder / log.STUDY).write_text("{}")
    _, _, err = run("search", "--resume", "mien")
    assert err == "runs/mien is not a run folder; did you mean 'mine'? (in runs there are: mine)\n"


def test_debug_adds_the_traceback_and_keeps_the_exit_code(run):
    code, _, err = run("check", "nope.yaml", "--debug")
    assert code == 2
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1] == "nope.yaml does not exist (in . there are: sound.yaml)"


PRETRAINED = """
fixed:
  data: {dataset: digits, num_labels: 20, batch_size: 8}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: simclr, projector_hidden: 16, projector_dim: 16}
  budget: {steps: {pretrain: 4, finetune: 2}, eval_every: 2}
"""


def test_train_reuses_a_pretrained_network_unless_it_is_told_not_to(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNE_SSL_CACHE", str(tmp_path / "cache"))
    Path("pretrained.yaml").write_text(PRETRAINED)
    files, shown = [], []
    for arguments in (["--no-cache"], [], ["data.num_labels=20"]):
        code, out, _ = run("train", "pretrained.yaml", *arguments)
        assert code == 0
        lines = re.sub(r"\([0-9.]+ s\)", "", out).splitlines()
        shown.append([line for line in lines if " step " in line])
        found = Path("cache").glob("pretrained/*/*.safetensors")
        files.append(sorted(path.stat().st_mtime_ns for path in found))
    assert len(shown[0]) == 3 and shown == [shown[0]] * 3
    assert files[0] == [] and len(files[1]) == 2 and files[1] == files[2]


def test_a_collapse_ends_training_with_one_line_and_exit_code_1(run):
    Path("pretrained.yaml").write_text(PRETRAINED)
    code, out, err = run("train", "pretrained.yaml", "method.collapse_below=0.999", "--no-cache")
    assert (code, err) == (1, "")
    assert re.search(r"^collapsed: embedding_std is 0\.\d+ over steps 1 to 2, under", out, re.M)


def test_train_prints_the_metrics_of_each_evaluation(run):
    small = ["model.feature_dim=16", "model.hidden_dim=16", "budget.steps=4", "budget.eval_every=2"]
    code, out, _ = run("train", "sound.yaml", "data.num_labels=20", *small)
    assert code == 0
    assert "train step 4" in out and "val/accuracy" in out and "loss/cluster" in out
