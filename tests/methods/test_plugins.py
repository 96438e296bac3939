"""Methods from outside of the package: found by name like ours, known to workers, refused where unsound."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch

from tests.support.helpers import small_spec
from tests.support.runs import called, endings, finish, run_here, start, wait_for, write_study
from tune_ssl import methods
from tune_ssl.base.errors import UserError
from tune_ssl.base.yaml_file import read_yaml
from tune_ssl.data import augment, batch
from tune_ssl.methods import find_method, method_names, plugins
from tune_ssl.methods.base import Ratio, StepOutput
from tune_ssl.methods.contract import breaches, check_output, file_of
from tune_ssl.methods.plugins import Plugin, digest_of, load_plugins, restore_plugins
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.runs.folder import reopen
from tune_ssl.study.trial import trial_model
from tune_ssl.training.encoder_cache import _source_digest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "entropy_min.py"
GOOD = EXAMPLE.read_text()
STUDY = """
fixed:
  data: {dataset: digits, num_labels: 40, batch_size: 8}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: entropy_min}
  budget: {steps: 40, eval_every: 10}
search:
  losses.entropy.weight: {log_uniform: [0.01, 1]}
  method.unlabeled_view: {choice: [weak, strong]}
study: {num_trials: 3, scheduler: none, finalists: 1, seeds: [0], max_concurrent: 1}
"""
TOY = """
from typing import Literal
from tune_ssl import LossSpec, Method
from tune_ssl.methods.supervised import SupervisedSpec, SupervisedStage

class ToySpec(SupervisedSpec):
    name: Literal["toy"] = "toy"
    broken: bool = False

class ToyStage(SupervisedStage[ToySpec]):
    def step(self, network, batch):
        out = super().step(network, batch)
        return out._replace(losses={}) if self.spec.broken else out

class Toy(Method[ToySpec]):
    name = "toy"
    Spec = ToySpec
    losses = {"supervised": LossSpec()}
    stage_types = (ToyStage,)
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No test sees the plugins and packages of another one."""
    monkeypatch.setattr(methods, "_plugins", {})
    monkeypatch.setattr(plugins, "_loaded", {})


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`run("check", "study.yaml")` in a folder that has that file -> (exit code, stdout, stderr)"""
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path, STUDY)

    def command(*arguments):
        return called(monkeypatch, capsys, *arguments)

    return command


def replaced(*pairs: tuple[str, str]) -> str:
    """The example with each text, of which there must be one, replaced."""
    text = GOOD
    for old, new in pairs:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def line(text: str, content: str = GOOD) -> int:
    return next(i for i, row in enumerate(content.splitlines(), 1) if row.startswith(text))


SPEC, STAGE, METHOD = (line(f"class EntropyMin{part}") for part in ("Spec", "Stage", "(Method"))


# ---- the tutorial ------------------------------------------------------------------------------


@pytest.mark.parametrize("language, suffix", [("python", ".py"), ("yaml", ".yaml")])
def test_the_tutorial_shows_the_very_example_files(language, suffix):
    page = (ROOT / "docs" / "adding-a-method.md").read_text()
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", page, re.M | re.S)
    assert block == EXAMPLE.with_suffix(suffix).read_text()


def test_the_examples_study_is_sound_and_its_method_known_everywhere(run):
    study = EXAMPLE.with_suffix(".yaml")
    code, out, err = run("check", study, "--plugin", EXAMPLE)
    assert (code, err) == (0, "") and "sound. entropy_min on digits" in out
    assert "entropy_min" in method_names() and method_names() == sorted(method_names())

    _, out, _ = run("check", "--schema", "--plugin", EXAMPLE)
    definitions = json.loads(out)["$defs"].values()
    assert "entropy_min" in {d["properties"].get("name", {}).get("const") for d in definitions}
    _, _, err = run("check", study, "method.name=entropy_mim", "--plugin", EXAMPLE)
    assert "did you mean 'entropy_min'?" in err
    _, _, err = run("check", study, "losses.entrop.weight=1", "--plugin", EXAMPLE)
    assert "losses.entrop is not a known key; did you mean 'entropy'?" in err


def test_train_shows_the_terms_of_a_plugin(run):
    code, out, err = run("train", "study.yaml", "--plugin", EXAMPLE, "budget.steps=10")
    assert code == 0, err
    assert "loss/entropy" in out and "val/accuracy" in out


# ---- a real search -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_plugin_is_searched_killed_and_resumed_by_workers_that_load_it_themselves(tmp_path):
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / "method.py"
    mine.write_text(GOOD)
    study = write_study(tmp_path, STUDY)
    command = ("search", study, "--plugin", "mine/method.py", "--name", "p")
    process, folder = start(tmp_path, *command), tmp_path / "runs" / "p"
    wait_for(process, lambda: len(endings(folder)) >= 1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = endings(folder)
    recorded = read_yaml(folder / log.STUDY).data["plugins"]
    (digest,) = {plugin["digest"] for plugin in recorded}
    assert recorded == [{"path": str(mine), "digest": digest}] and len(digest) == 12

    # What it began with is not there, or is another file: one line, and nothing is changed.
    kept = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    began = f"runs/p began with the plugin {mine} of digest {digest}, but "
    mine.write_text(GOOD + "\n")
    code, out, err = finish(start(tmp_path, "search", "--resume", "p"))
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert re.fullmatch(re.escape(began) + "its digest is [0-9a-f]{12} now; put it back, .*\n", err)
    mine.unlink()
    with pytest.raises(UserError) as error:
        reopen(tmp_path / "runs", "p")
    assert str(error.value).endswith(
        f"{began}it cannot be read now: No such file or directory; put it back, name it with "
        "--plugin, or start a new run"
    )
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == kept

    mine.write_text(GOOD)
    code, out, err = finish(start(tmp_path, "search", "--resume", "p"))
    assert code == 0, out + err
    names = endings(folder)
    assert set(names.values()) == {log.FINISHED} and names.items() >= before.items()
    assert sum("-t0" in name for name in names) == 3 and "c0-confirm-s0" in names
    last = log.read(folder / log.HISTORY)[-1]["metrics"]
    assert {"loss/entropy", "weight/entropy", "diag/confidence"} <= last.keys()
    assert "report:" in out and "entropy_min" in (folder / "report" / "index.html").read_text()
    assert not list(mine.parent.glob("__pycache__"))


def test_a_plugin_that_has_moved_is_found_by_its_content_where_plugin_names_it(run, tmp_path):
    moved = tmp_path / "moved.py"
    moved.write_text(GOOD + "# moved\n")
    recorded = Plugin("/gone/method.py", digest_of(moved.read_bytes()))
    with pytest.raises(UserError, match="put it back, name it with --plugin"):
        restore_plugins([recorded])
    loaded = load_plugins([moved])
    assert restore_plugins([recorded]) == loaded == (Plugin(str(moved), recorded.digest),)
    code, _, err = run("search", "--resume", "x", "--plugin", EXAMPLE, "--name", "y")
    assert code == 2 and "a resumed run keeps its name, study and data: give none of them" in err


@pytest.mark.parametrize("recorded", ["1", "[1]", "[{path: a}]", "[{path: a, digest: 1}]"])
def test_a_damaged_record_of_plugins_is_refused(run, recorded):
    folder = Path("runs/odd")
    folder.mkdir(parents=True)
    (folder / log.STUDY).write_text(f"study: {{}}\nsource: s.yaml\nplugins: {recorded}\n")
    code, _, err = run("search", "--resume", "odd")
    assert (code, err) == (2, "runs/odd/study.yaml was not written by `tune-ssl search`\n")


# ---- installed packages ------------------------------------------------------------------------


def install(folder: Path, value: str = "toy_package:Toy", source: str = TOY, package="toy-package"):
    """A distribution as pip leaves it: a module, and a dist-info with its entry point `toy`."""
    info = folder / f"{package.replace('-', '_')}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[tune_ssl.methods]\ntoy = {value}\n")
    (folder / "toy_package.py").write_text(source)


@pytest.fixture
def installing(tmp_path, monkeypatch):
    """`install`, for this process."""

    def forget() -> None:
        methods.installed.cache_clear()
        methods._from_package.cache_clear()
        sys.modules.pop("toy_package", None)

    def installed(**options: str) -> None:
        install(tmp_path / "site", **options)
        monkeypatch.syspath_prepend(tmp_path / "site")
        forget()

    yield installed
    monkeypatch.undo()
    forget()


def test_an_installed_packages_method_is_searched_and_one_that_misbehaves_fails(
    run, tmp_path, installing
):
    installing()
    body = STUDY.replace("entropy_min", "toy").replace("steps: 40", "steps: 10")
    body = re.sub(
        "search:.*study:.*", "search:\n  method.broken: {choice: [false, true]}\n", body, flags=re.S
    )
    folder = run_here(tmp_path, body + "study: {num_trials: 2, searcher: grid, seeds: [0]}")
    ended = Ledger.read(folder).ended
    statuses = {trial: end["event"] for trial, end in ended.items()}
    assert statuses == {
        "c0-t0000": log.FINISHED,
        "c0-t0001": log.FAILED,
        "c0-confirm-s0": log.FINISHED,
    }
    assert "supervised" in ended["c0-t0001"]["reason"]
    assert read_yaml(folder / log.STUDY).data["versions"]["toy-package"] == "1.2"
    assert '"toy"' in run("check", "--schema")[1]


@pytest.mark.parametrize("value", ["toy_package:Toy", "toy_package"])
def test_an_entry_point_names_the_class_or_its_module(installing, value):
    installing(value=value)
    assert "toy" in method_names() and find_method("toy").name == "toy"
    assert small_spec("toy").method.model_dump()["broken"] is False


@pytest.mark.parametrize(
    "options, expected",
    [
        (
            {"source": "x = 1\nimport nowhere\n"},
            "{site}/toy_package.py:2: {toy} raises ModuleNotFoundError: No module named 'nowhere', "
            "when toy_package:Toy is imported",
        ),
        (
            {"source": "x = (\n"},
            "{site}/toy_package.py:1: {toy} raises SyntaxError: '(' was never closed "
            "(toy_package.py, line 1), when toy_package:Toy is imported",
        ),
        (
            {"value": "nowhere:Toy"},
            "{toy} raises ModuleNotFoundError: No module named 'nowhere', when nowhere:Toy is imported",
        ),
        (
            {"value": "toy_package:ToyStage"},
            "{toy} is not there: toy_package:ToyStage is no Method of that name, nor a module that has one",
        ),
        (
            {
                "value": "toy_package",
                "source": TOY.replace('name = "toy"\n    Spec', 'name = "tyo"\n    Spec'),
            },
            "{toy} is not there: toy_package is no Method of that name, nor a module that has one",
        ),
        (
            {"source": TOY.replace('{"supervised": LossSpec()}', "{}")},
            "{site}/toy_package.py:15: Toy.losses is empty, but must map each loss term to its LossSpec",
        ),
    ],
)
def test_a_broken_package_is_one_line_when_its_method_is_asked_for(
    run, tmp_path, installing, options, expected
):
    installing(**options)
    assert run("check", "study.yaml", "--plugin", EXAMPLE)[0] == 0  # others are not hurt
    code, out, err = run("train", "study.yaml", "method={name: toy}", "losses={}")
    site, toy = tmp_path / "site", "the method 'toy' of the package toy-package 1.2"
    assert (code, out) == (2, "") and err == expected.format(site=site, toy=toy) + "\n"


def test_two_packages_with_one_name_are_refused(installing):
    installing()
    installing(package="other")
    with pytest.raises(UserError, match=r"'toy' of the package .* 1.2 has the name of a method of"):
        find_method("toy")


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, expected",
    [
        ("x = (\n", ["bad.py:1: the file is not valid Python: '(' was never closed"]),
        (
            "\0",
            [
                "bad.py:1: the file is not valid Python: source code string cannot contain null bytes"
            ],
        ),
        (
            "import os\n\ndef f():\n    return 1 / 0\n\nf()\n",
            ["bad.py:4: the file raises ZeroDivisionError: division by zero, when it is imported"],
        ),
        ("raise SystemExit\n", ["bad.py:1: the file raises SystemExit, when it is imported"]),
        (
            "\nimport sibling\n",
            [
                "bad.py:2: the file raises ModuleNotFoundError: No module named 'sibling', when it is "
                "imported; a plugin is one file and cannot import what lies beside it"
            ],
        ),
        (
            "from . import sibling\n",
            [
                "bad.py:1: the file raises ImportError: attempted relative import with no known parent "
                "package, when it is imported; a plugin is one file and cannot import what lies beside it"
            ],
        ),
        (
            "from tune_ssl.methods.fixmatch import FixMatch\n",
            ["bad.py holds no method: no class in it derives from tune_ssl.Method"],
        ),
        (
            "from tune_ssl import Method\nclass M(Method):\n    pass\n",
            [
                "bad.py:2: M.name is missing, but must be what a study calls the method",
                "bad.py:2: M.losses is missing, but must be a mapping of names to LossSpec",
                "bad.py:2: M.stage_types is missing, but must be a tuple of Stage classes",
                "bad.py:2: M.Spec is missing, but must be a class that derives from "
                "tune_ssl.MethodSpec",
            ],
        ),
        (
            "from tune_ssl.methods.fixmatch import FixMatch\nclass Mine(FixMatch):\n    pass\n",
            [
                "bad.py:2: Mine.name is missing (it inherits 'fixmatch'), but must be what a study calls "
                "the method"
            ],
        ),
        (
            "from tune_ssl.methods.fixmatch import *\nclass Mine(FixMatch):\n    name = 'mine'\n",
            [
                "bad.py:2: FixMatchSpec.name is Literal['fixmatch'], but must be Literal['mine']",
            ],
        ),
    ],
)
def test_a_file_that_is_no_plugin_is_refused_with_its_line(run, content, expected):
    Path("bad.py").write_text(content)
    Path("sibling.py").write_text("")
    code, out, err = run("check", "study.yaml", "--plugin", "bad.py")
    assert (code, out) == (2, "") and err.splitlines() == expected


def has(place: int, key: str, text: str) -> str:
    return f"bad.py:{place}: EntropyMin{key} {text}"


@pytest.mark.parametrize(
    "pairs, expected",
    [
        (
            [('name = "entropy_min"\n    Spec', 'name = "entropy-min"\n    Spec')],
            [
                has(METHOD, ".name", "is 'entropy-min', but must be a Python identifier such as 'my_method'"),
            ],
        ),
        (
            [
                ('Literal["entropy_min"] = "entropy_min"', 'Literal["kmeans"] = "kmeans"'),
                ('name = "entropy_min"\n    Spec', 'name = "kmeans"\n    Spec'),
            ],
            [has(METHOD, ".name", "is 'kmeans', but a method of tune-ssl has that name already")],
        ),
        (
            [("    Spec = EntropyMinSpec", "    Spec = EntropyMinStage")],
            [
                has(METHOD, ".Spec", "is EntropyMinStage, but must be a class that derives from "
                    "tune_ssl.MethodSpec")
            ],
        ),
        (
            [('unlabeled_view: Literal["none", "weak", "strong"] = "weak"', "unlabeled_view: str")],
            [has(SPEC, "Spec.unlabeled_view", "has no default, but each option needs one")],
        ),
        (
            [('unlabeled_view: Literal["none", "weak", "strong"] = "weak"', 'unlabeled_view: int = "a"')],
            [
                has(SPEC, "Spec.unlabeled_view", "is 'a' by default, but: Input should be a valid integer")
            ],
        ),
        (
            [('"entropy": LossSpec(weight=0.1, ramp_up=0.5)', '"entrop": 1.0')],
            [
                has(METHOD, ".losses", "has 'entrop': 1.0, but must have a LossSpec"),
                has(STAGE, "Stage.loss_terms", "has 'entropy', but EntropyMin.losses has no default for "
                    "it; did you mean 'entrop'?"),
                has(METHOD, ".losses", "has 'entrop', but no stage has it in its loss_terms; did you mean "
                    "'entropy'?"),
            ],
        ),
        (
            [('"entropy": LossSpec(', '"total": LossSpec(), "a.b": LossSpec(), "entropy": LossSpec(')],
            [
                has(METHOD, ".losses", "has 'total', but that name is taken; choose another one"),
                has(METHOD, ".losses", "has 'a.b', but a name must be an identifier without '_' first"),
                has(METHOD, ".losses", "has 'total', but no stage has it in its loss_terms"),
                has(METHOD, ".losses", "has 'a.b', but no stage has it in its loss_terms"),
            ],
        ),
        (
            [('("supervised", "entropy")', '("supervised")')],
            [has(STAGE, "Stage.loss_terms", "is 'supervised', but must be a tuple of names")],
        ),
        (
            [('    loss_terms = ("supervised", "entropy")\n', '    evaluators = ("clasifier",)\n')],
            [
                has(STAGE, "Stage.loss_terms", "is missing, but must be a tuple of names"),
                has(STAGE, "Stage.evaluators", "is 'clasifier', but must be a known evaluator; did you mean "
                    "'classifier'? (known: classifier, clusters, knn, probe)"),
            ],
        ),
        (
            [("(self.spec.unlabeled_view,)", '("weka", self.spec.view)')],
            [
                has(STAGE, "Stage.unlabeled_views", "raises AttributeError: 'EntropyMinSpec' object has no "
                    "attribute 'view' for the default EntropyMinSpec")
            ],
        ),
        (
            [("(self.spec.unlabeled_view,)", '("weka",)')],
            [
                has(STAGE, "Stage.unlabeled_views", "is 'weka', but must be a known view; did you mean "
                    "'weak'? (known: contrastive, contrastive_noise, joint_classification, "
                    "joint_contrastive, none, randaugment, strong, weak)")
            ],
        ),
        (
            [
                ('("supervised", "entropy")', '("supervised", "entropy")\n    stand_in = "accurcy"'),
                ("    def step(", "    def stp("),
            ],
            [
                has(STAGE, "Stage.step", "is missing, but must be written"),
                has(STAGE, "Stage.stand_in", "is 'accurcy', but must be a known metric of its evaluators; "
                    "did you mean 'accuracy'? (known: accuracy, calibration_error, classes, loss, macro_f1, "
                    "macro_precision, mean_class_accuracy, top3_accuracy)"),
            ],
        ),
        (
            [("(EntropyMinStage,)", "(EntropyMinStage, EntropyMinStage)")],
            [has(METHOD, ".stages", "has two stages called 'train'; give each a `name` of its own")],
        ),
        (
            [("(EntropyMinStage,)", "(EntropyMinStage)")],
            [has(METHOD, ".stage_types", "is EntropyMinStage, but must be a tuple of Stage classes")],
        ),
    ],
)  # fmt: skip
def test_all_that_a_method_lacks_is_said_at_once_with_the_line_of_its_class(run, pairs, expected):
    content = replaced(*pairs)
    Path("bad.py").write_text(content)
    code, out, err = run("check", "study.yaml", "--plugin", "bad.py")
    assert (code, out) == (2, "") and err.splitlines() == expected
    assert "entropy_min" not in method_names()


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (
            ["entropy_mn.py"],
            "entropy_mn.py does not exist; did you mean 'entropy_min.py'? (in . there are: ",
        ),
        (["folder"], "folder is a folder, but must be a Python file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(run, arguments, expected):
    Path("entropy_min.py").write_text(GOOD)
    Path("folder").mkdir()
    for command in (["check"], ["train"], ["search"], ["check", "--schema"]):
        study = [] if "--schema" in command else ["study.yaml"]
        code, out, err = run(*command, *study, "--plugin", *arguments)
        assert (code, out) == (2, "") and err.startswith(expected) and len(err.splitlines()) == 1
    assert not Path("runs").exists()


def test_every_file_is_checked_and_none_is_loaded_when_one_is_wrong(run):
    Path("good.py").write_text(GOOD)
    Path("bad.py").write_text("1 / 0\n")
    options = [o for name in ("good", "bad", "gone") for o in ("--plugin", f"{name}.py")]
    code, _, err = run("check", "study.yaml", *options)
    assert code == 2
    assert [row.split()[0] for row in err.splitlines()] == ["bad.py:1:", "gone.py"]
    assert "entropy_min" not in method_names()


def test_two_files_with_one_method_are_refused_and_one_file_twice_is_not(run):
    for name in ("one", "two"):
        Path(f"{name}.py").write_text(GOOD)
    code, _, err = run("check", "study.yaml", "--plugin", "one.py", "--plugin", "two.py")
    assert code == 2
    one = Path("one.py").absolute()
    assert err == f"two.py:{METHOD}: EntropyMin.name is 'entropy_min', but a method of {one} has that " \
        "name already\n"  # fmt: skip
    assert run("check", "study.yaml", "--plugin", "one.py", "--plugin", "./one.py")[0] == 0


def test_debug_shows_where_a_plugin_failed(run):
    Path("bad.py").write_text("def deep():\n    raise KeyError('x')\n\n\ndeep()\n")
    code, _, err = run("check", "study.yaml", "--plugin", "bad.py", "--debug")
    assert code == 2
    assert "Traceback" in err and "in deep" in err
    assert err.splitlines()[-1] == "bad.py:2: the file raises KeyError: 'x', when it is imported"


def test_what_a_plugin_prints_does_not_mix_with_the_schema(run):
    Path("loud.py").write_text(GOOD + "print('hello')\n")
    code, out, err = run("check", "--schema", "--plugin", "loud.py")
    assert code == 0 and json.loads(out) and err == "hello\n"


# ---- one process, many plugins ------------------------------------------------------------------


def test_files_of_one_name_in_two_folders_do_not_clash(tmp_path):
    for name in ("first", "second"):
        path = tmp_path / name / "method.py"
        path.parent.mkdir()
        path.write_text(GOOD.replace('"entropy_min"', f'"{name}"'))
    found = load_plugins([tmp_path / "first" / "method.py", tmp_path / "second" / "method.py"])
    assert [Path(plugin.path).parent.name for plugin in found] == ["first", "second"]
    assert file_of(find_method("first")) != file_of(find_method("second"))
    assert small_spec("first").method.name == "first"


def test_a_file_may_hold_several_methods_and_a_base_of_them_without_a_name(tmp_path):
    more = """
class Base(EntropyMin):
    losses = {"supervised": LossSpec(), "entropy": LossSpec(weight=0.5)}

class OtherSpec(EntropyMinSpec):
    name: Literal["other"] = "other"

class Other(Base):
    name = "other"
    Spec = OtherSpec
"""
    (tmp_path / "two.py").write_text(GOOD + more)
    load_plugins([tmp_path / "two.py"])
    assert {"entropy_min", "other"} <= set(method_names())
    assert small_spec("other").losses.entropy.weight == 0.5


def test_an_edited_file_is_loaded_anew_and_an_unchanged_one_is_not(tmp_path):
    path = tmp_path / "method.py"
    path.write_text(GOOD)
    before = load_plugins([path])
    method, model = find_method("entropy_min"), trial_model("entropy_min")
    assert load_plugins([path]) == before and find_method("entropy_min") is method
    code = _source_digest(method.stage_types[0])

    path.write_text(replaced(("weight=0.1", "weight=0.7")))
    assert load_plugins([path]) != before
    assert find_method("entropy_min") is not method and trial_model("entropy_min") is not model
    assert small_spec("entropy_min").losses.entropy.weight == 0.7
    assert _source_digest(find_method("entropy_min").stage_types[0]) != code  # of kept networks

    path.write_text(GOOD.replace('"entropy_min"', '"renamed"'))
    load_plugins([path])
    assert "renamed" in method_names() and "entropy_min" not in method_names()


def test_a_worker_that_served_another_run_takes_the_method_of_this_one(tmp_path):
    paths = [tmp_path / f"{name}.py" for name in ("a", "b")]
    for path, weight in zip(paths, ("0.2", "0.3"), strict=True):
        path.write_text(replaced(("weight=0.1", f"weight={weight}")))
    for path, weight in zip([*paths, paths[0]], (0.2, 0.3, 0.2), strict=True):
        restore_plugins([Plugin(str(path), plugins.digest_of(path.read_bytes()))])
        assert small_spec("entropy_min").losses.entropy.weight == weight
    with pytest.raises(
        UserError, match=r"the run began with .*a.py of digest 0123, but its digest"
    ):
        restore_plugins([Plugin(str(paths[0]), "0123")])


# ---- the contract ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", method_names())
def test_every_method_of_the_package_keeps_the_contract_of_plugins(name):
    assert breaches(find_method(name), "here") == []


def test_the_names_of_views_are_those_that_can_be_made():
    assert batch.VIEWS == augment.VIEW_NAMES


SCALAR = torch.ones((), requires_grad=True)


@pytest.mark.parametrize(
    "out, expected",
    [
        (StepOutput({"supervised": SCALAR, "entropy": SCALAR}, {"a": SCALAR, "b": Ratio(SCALAR, SCALAR)}), None),
        ({"supervised": SCALAR}, "dict, but must return StepOutput(losses, diagnostics) of two mappings"),
        (
            StepOutput({"supervised": SCALAR}, {}),
            "no loss 'entropy', but must return one for each of its loss_terms (supervised, entropy)",
        ),
        (
            StepOutput({"supervised": SCALAR, "entropy": SCALAR, "more": SCALAR}, {}),
            "the loss 'more', which is not one of its loss_terms (supervised, entropy)",
        ),
        (
            StepOutput({"supervised": SCALAR, "entropy": SCALAR.expand(8)}, {}),
            "the loss 'entropy' as a tensor of shape (8,), but must return a tensor of shape ()",
        ),
        (
            StepOutput({"supervised": SCALAR, "entropy": 0.5}, {}),
            "the loss 'entropy' as float, but must return a tensor of shape ()",
        ),
        (
            StepOutput({"supervised": SCALAR.detach(), "entropy": SCALAR.detach()}, {}),
            "losses that depend on no weight of the network, so that nothing would be trained",
        ),
        (
            StepOutput({"supervised": SCALAR, "entropy": SCALAR}, {"a": torch.ones(3)}),
            "the diagnostic 'a' as a tensor of shape (3,), but must return a tensor of shape ()",
        ),
        (
            StepOutput({"supervised": SCALAR, "entropy": SCALAR}, {"b": Ratio(SCALAR, 3)}),
            "the diagnostic 'b' as int, but must return a tensor of shape ()",
        ),
    ],
)  # fmt: skip
def test_a_step_that_returns_something_else_is_told_what_was_expected(out, expected):
    load_plugins([EXAMPLE])
    (stage,) = small_spec("entropy_min").stages()
    if expected is None:
        check_output(stage, out)
        return
    with pytest.raises(TypeError) as error:
        check_output(stage, out)
    assert str(error.value) == f"stage 'train': step() returned {expected}"


def test_a_floor_without_its_diagnostic_is_named():
    (stage,) = small_spec("supervised").stages()
    type(stage).floors, before = {"std": 0.1}, type(stage).__dict__.get("floors")
    try:
        with pytest.raises(
            TypeError, match="no diagnostic 'std', but the stage has a floor for it"
        ):
            check_output(stage, StepOutput({"supervised": SCALAR}, {}))
    finally:
        assert before is None
        del type(stage).floors


def test_a_sentence_for_a_diagnostic_that_is_not_there_is_named(monkeypatch):
    (stage,) = small_spec("supervised").stages()
    monkeypatch.setattr(type(stage), "idle", {"mask": "nothing was taught"})
    with pytest.raises(TypeError, match="no diagnostic 'mask', but the stage's `idle` has a sent"):
        check_output(stage, StepOutput({"supervised": SCALAR}, {}))


def test_a_run_folder_that_brings_its_own_plugin_is_refused(tmp_path):
    from tune_ssl.runs.folder import run_plugins

    run = tmp_path / "sent"
    run.mkdir()
    evil = run / "evil.py"
    evil.write_text("raise SystemExit('it ran')\n")
    about = {"path": str(evil), "digest": digest_of(evil.read_bytes())}
    (run / log.STUDY).write_text(json.dumps({"plugins": [about]}))
    with pytest.raises(UserError, match="lies in its own folder: move it out, and name it with"):
        run_plugins(run)
