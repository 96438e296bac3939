"""A study file: all its problems at once, each with its line; overrides are checked like it."""

import sys

import pytest
from ruamel.yaml import YAML

from tune_ssl.base.errors import UserError
from tune_ssl.study.study import check_name, load_fixed, load_study, study_from

SOUND = """\
fixed:
  data: {dataset: digits}
  method: {name: soft_kmeans}
  budget: {steps: 400, eval_every: 25}
conditions:
  data.labeled_ratio: [0.1, 0.25]
search:
  optim.lr: {log_uniform: [1e-4, 1e-1]}
  method.labeled_view: {choice: [weak, strong]}
  data.mu: {int: [1, 3]}
ablate:
  no_cluster: {losses.cluster.weight: 0}
study: {num_trials: 12}
"""


@pytest.fixture
def problems(tmp_path, monkeypatch):
    """`problems(text, *overrides)`: the lines that a user would read about a file s.yaml."""
    monkeypatch.chdir(tmp_path)

    def read(text, *overrides):
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "s.yaml").write_bytes(data)
        with pytest.raises(UserError) as caught:
            load_study("s.yaml", overrides)
        return [str(problem) for problem in caught.value.problems]

    return read


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "sound.yaml"
    path.write_text(SOUND)
    return path


def changed(old: str, new: str) -> str:
    assert old in SOUND
    return SOUND.replace(old, new)


# ---- a sound file --------------------------------------------------------------------------------


def test_a_sound_study_has_a_spec_in_each_condition(sound):
    study = load_study(sound)
    assert study.name == "sound"
    assert [c.id for c in study.conditions] == [
        "data.labeled_ratio=0.1",
        "data.labeled_ratio=0.25",
    ]
    assert [c.spec.data.labeled_ratio for c in study.conditions] == [0.1, 0.25]
    assert list(study.search) == ["optim.lr", "method.labeled_view", "data.mu"]
    assert study.where("optim.lr") == f"{sound}:8"
    assert study.where("data.labeled_ratio") == f"{sound}:6"
    assert study.where("budget.steps") == f"{sound}:4"


def test_without_conditions_there_is_one(sound):
    [only] = load_study(sound, ["conditions=null"]).conditions
    assert only.id == "all"


def test_a_resolved_study_read_back_from_yaml_is_the_same(sound, tmp_path):
    texts = [
        "study.name=on",
        "optim.grad_clip=1e-5",
        "search.optim.nesterov={choice: [true, false]}",
        "conditions.model.stem=[small, large]",
        "budget.steps.train=30",
    ]
    study = load_study(sound, texts)
    copy = tmp_path / "study.yaml"
    with copy.open("w") as file:
        YAML().dump(study.resolved(), file)
    again = study_from(YAML(typ="safe", pure=True).load(copy), study.source)
    assert again == study
    assert again.conditions == study.conditions
    assert again.resolved() == study.resolved()


def test_a_choice_may_be_null(sound):
    study = load_study(sound, ["search.optim.grad_clip={choice: [null, 1.0]}"])
    again = study_from(study.resolved(), study.source)
    assert again.search["optim.grad_clip"].ends() == [None, 1.0]


# ---- what is no study file -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "s.yaml:1: the file is empty, but must be a mapping with the keys"),
        ("# nothing\n", "s.yaml:1: the file is empty"),
        ("- 1\n", "s.yaml:1: the file is a list, but must be a mapping"),
        ("hello\n", "s.yaml:1: the file is a text, but must be a mapping"),
        ("a: [1\nb: 2\n", "s.yaml:2: the file is not valid YAML: expected ',' or ']', but got ':'"),
        ("fixed:\n\tdata: 1\n", "s.yaml:2: the file is not valid YAML: a tab stands where"),
        ("a: 1\n---\nb: 1\n", "s.yaml:2: the file is not valid YAML: expected a single document"),
        ("a: &a {b: *a}\n", "s.yaml:1: the file is not valid YAML: an alias stands for what"),
        (
            "a: 1\nb: !!python/name:os.system {}\n",
            "s.yaml:2: the file has a value of the kind 'os.system'; a text needs quotes",
        ),
        (b"a: 1\nb: \x00\n", "s.yaml:2: the file is not valid YAML: unacceptable character #x0000"),
        (b"\xff\xfe\x00", "s.yaml is not a text in UTF-8 (byte 0)"),
        ("a: " + "[" * 600, "s.yaml: the file is not valid YAML: it is nested too deeply"),
    ],
)
def test_what_is_no_yaml_mapping_is_one_line(problems, text, expected):
    [message] = problems(text)
    assert message.startswith(expected)


def test_a_file_that_is_not_there_or_a_folder(tmp_path, sound):
    with pytest.raises(UserError, match=r"soud.yaml does not exist; did you mean 'sound'\?"):
        load_study(tmp_path / "soud.yaml")
    with pytest.raises(UserError, match="is a folder, but must be a YAML file"):
        load_study(tmp_path)


# ---- problems with their lines -------------------------------------------------------------------


def test_all_problems_of_a_file_come_at_once_in_the_order_of_its_lines(problems):
    found = problems(
        """\
fixd: {}
fixed:
  data: {dataset: digit, batch_size: 8.5}
  method: {name: soft_kmeans, temprature: 0.1}
  losses: {clustr: {weight: 1}}
  optim:
    lr: 0
    lr: 1
conditions:
  data.labeled_ratio:
    - 0.5
    - 0
search:
  optim.momentum: {uniform: [0, 1]}
  optim.lr: {log_uniform: [1, 0.1]}
ablate:
  a: {losses.clustr.weight: 0}
study:
  seeds: [0, 0]
  metric: val/acc
"""
    )
    assert [message.split(" (known")[0] for message in found] == [
        "s.yaml:1: fixd is not a known key; did you mean 'fixed'?",
        "s.yaml:3: data.batch_size is 8.5, but must be a whole number",
        "s.yaml:3: data.dataset is 'digit', but must be a known dataset; did you mean 'digits'?",
        "s.yaml:4: method.temprature is not a known key; did you mean 'temperature'?",
        "s.yaml:5: losses.clustr is not a known key; did you mean 'cluster'?",
        "s.yaml:7: optim.lr is 0, but must be greater than 0",
        "s.yaml:8: fixed.optim.lr is there twice, in line 7 already",
        "s.yaml:12: conditions.data.labeled_ratio is 0, but must be greater than 0",
        "s.yaml:14: search.optim.momentum is 1.0, but must be less than 1",
        "s.yaml:15: search.optim.lr is {log_uniform: [1.0, 0.1]}, but low must be below high",
        "s.yaml:17: ablate.a.losses.clustr is not a known key; did you mean 'cluster'?",
        "s.yaml:19: study.seeds is [0, 0], but must have each seed once",
        "s.yaml:20: study.metric is 'val/acc', but must be a known metric of soft_kmeans; "
        "did you mean 'val/accuracy'?",
    ]


@pytest.mark.parametrize(
    "old, new, expected",
    [
        ("{dataset: digits}", "3", "s.yaml:2: data is 3, but must be a mapping"),
        ("name: soft_kmeans", "name: soft_kmean", "s.yaml:3: method.name is 'soft_kmean', but"),
        ("  method: {name: soft_kmeans}\n", "", "s.yaml:1: method.name is missing, but must be"),
        ("steps: 400", "steps: {probe: 4}", "s.yaml:4: budget.steps is {probe: 4}, but must be"),
        ("[0.1, 0.25]", "0.1", "conditions.data.labeled_ratio is 0.1, but must be a list of at"),
        ("[0.1, 0.25]", "[0.1, 0.1]", "is [0.1, 0.1], but must name each value once"),
        ("data.mu: {int: [1, 3]}", "data.mu: {int: [0, 3]}", "s.yaml:10: search.data.mu is 0, but"),
        ("data.mu: {int", "data.mu: {uniform", "search.data.mu is 1.0, but must be a whole number"),
        ("data.mu: {int", "data.labeled_ratio: {uniform", "is in conditions too, but a key can"),
        ("data.mu: {int", "seed: {int", "search.seed must not be here: study.tuning_seed"),
        ("data.mu: {int", "data.num_labels: {int", "search.data.num_labels must not be searched"),
        ("data.mu: {int", "data.imbalance: {int", "search.data.imbalance must not be searched"),
        (
            "data.labeled_ratio: [0.1, 0.25]",
            "data.imbalance: [0.5]",
            "s.yaml:6: conditions.data.imbalance is 0.5, but must be at least 1",
        ),
        (
            "data.labeled_ratio: [0.1, 0.25]",
            "data.unlabeled_mismatch: [0.5]",
            "s.yaml:6: conditions.data has unlabeled_mismatch 0.5, but no classes, which say what is of the task",
        ),
        (
            "data.labeled_ratio: [0.1, 0.25]",
            "data.classes: [[a, b]]",
            "conditions.data.classes must not be here: all conditions of a study have the same",
        ),
        ("{dataset: digits}", "{classes: [1, 1]}", "has classes ['1', '1'], but must name each"),
        ("{losses.cluster.weight: 0}", "0", "ablate.no_cluster is 0, but must map a trial's keys"),
        ("cluster.weight: 0", "cluster.weight: -1", "s.yaml:12: ablate.no_cluster.losses.cluster."),
        ("no_cluster:", "no cluster:", "ablate.no cluster must be named with letters, digits, '.'"),
        ("no_cluster:", "reference:", "s.yaml:12: ablate.reference must be named with letters"),
        (
            "cluster.weight: 0",
            "cluster.weight: 0, retune: [optim.lr, optim.l]",
            "is 'optim.l', but",
        ),
        (
            "cluster.weight: 0",
            "cluster.weight: 0, retune: optim.lr",
            "retune is 'optim.lr', but must",
        ),
        ("losses.cluster.weight: 0", "retune: [optim.lr]", "but must map a trial's keys to values"),
        (
            "losses.cluster.weight: 0",
            "optim.lr: 0.1, retune: [optim.lr]",
            "ablate.no_cluster.retune has optim.lr, which the variant itself sets",
        ),
        (
            "losses.cluster.weight: 0",
            "data.val_ratio: 0.1",
            "ablate.no_cluster.data.val_ratio must not be changed by a variant: all rows of an abl",
        ),
        (
            "losses.cluster.weight: 0",
            "budget.steps: 200",
            "budget.steps changes 400 steps to 200, but all rows of an ablation must have equally",
        ),
        ("num_trials: 12", "num_trials: 0", "s.yaml:13: study.num_trials is 0, but must be"),
        (
            "num_trials: 12",
            "tuning_seed: 2",
            "study.seeds is [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], but must not have",
        ),
        (
            "num_trials: 12",
            "searcher: gird",
            "study.searcher is 'gird', but must be 'optuna', 'ran",
        ),
        ("num_trials: 12", "metric: val/loss", "study.mode is 'max', but must be 'min' for val/l"),
        (
            "num_trials: 12",
            "num_trials: 7, searcher: grid",
            "s.yaml:13: study.num_trials is 7, but the smallest grid over the domains has 8 points",
        ),
        (
            "{dataset: digits}",
            "{num_labels: 50}",
            "s.yaml:6: conditions.data has labeled_ratio 0.1 and num_labels 50, but must have",
        ),
    ],
)
def test_one_mistake_is_one_line(problems, old, new, expected):
    found = problems(changed(old, new))
    assert expected in found[0]
    assert len(found) == 1 or "must not be searched" in found[1]


def test_keys_that_exclude_each_other_only_together_are_found(problems):
    both = changed("data.labeled_ratio: [0.1, 0.25]", "data.num_labels: [50]").replace(
        "search:", "  data.labeled_ratio: [0.5]\nsearch:"
    )
    [message] = problems(both)
    assert message.startswith("s.yaml:6: conditions.data has labeled_ratio 0.5 and num_labels 50")
    assert message.endswith("(condition data.num_labels=50,data.labeled_ratio=0.5)")


def test_more_conditions_than_anyone_means_are_refused_at_once(problems):
    keys = [f"  optim.{key}: {[i / 100 + 0.01 for i in range(40)]}" for key in ("lr", "momentum")]
    text = changed("  data.labeled_ratio: [0.1, 0.25]", "\n".join(keys))
    text = text.replace("  optim.lr: {log_uniform: [1e-4, 1e-1]}\n", "")
    assert problems(text) == [
        "s.yaml:5: conditions make 1600 combinations, but must make at most 1000"
    ]


def test_a_sampler_without_its_package_says_what_to_install(problems, monkeypatch):
    monkeypatch.setitem(sys.modules, "cmaes", None)  # as if it were not installed
    text = changed("num_trials: 12", "sampler: cmaes")
    assert problems(text) == [
        "s.yaml:13: study.sampler is 'cmaes', but the package cmaes is not installed; "
        "pip install 'tune-ssl[samplers]'"
    ]


# ---- overrides -----------------------------------------------------------------------------------


def test_overrides_reach_every_section_and_the_last_one_wins(sound):
    study = load_study(
        sound,
        [
            "optim.weight_decay=1e-3",
            "fixed.model.stem=large",
            "study.num_trials=3",
            "study.num_trials=4",
            "search.optim.lr=null",
            "search.optim.warmup={uniform: [0, 0.5]}",
            "conditions={data.num_labels: [50]}",
            "ablate.slow={optim.lr: 1e-5}",
        ],
    )
    assert study.fixed.optim.weight_decay == 1e-3 and study.fixed.model.stem == "large"
    assert study.settings.num_trials == 4
    assert list(study.search) == ["method.labeled_view", "data.mu", "optim.warmup"]
    assert [c.id for c in study.conditions] == ["data.num_labels=50"]
    assert set(study.ablate) == {"no_cluster", "slow"}


@pytest.mark.parametrize(
    "override, expected",
    [
        ("optim.weight_decay", "override optim.weight_decay: must have the form key=value"),
        ("=3", "override =3: must have the form key=value"),
        ("optim.name={a", "override optim.name={a: optim.name has a value that is not YAML: "),
        ("optim.wd=1", "override optim.wd=1: optim.wd is not a known key (known: ema_decay, "),
        ("lr=3", "override lr=3: lr is not a known key; did you mean 'optim.lr'?"),
        ("studdy.name=a", "override studdy.name=a: studdy.name is not a known key; did you mean '"),
        ("optim.weight_decay=x", "optim.weight_decay is 'x', but must be a number"),
        ("optim.weight_decay=", "optim.weight_decay is null, but must be a number"),
        ("optim={name: sdg}", "override optim={name: sdg}: optim.name is 'sdg', but must be"),
        ("budget.steps.probe=3", "override budget.steps.probe=3: budget.steps is {probe: 3}, but"),
        ("search=3", "override search=3: search is 3, but must be a mapping"),
        ("search.data.mu={int: [2, 1]}", "search.data.mu is {int: [2, 1]}, but low must be below"),
        ("study.searcher=gird", "override study.searcher=gird: study.searcher is 'gird', but"),
        (
            "optim.lr=0.01",
            "override optim.lr=0.01: optim.lr is in search too; search.optim.lr=null takes",
        ),
        (
            "data.labeled_ratio=0.5",
            "data.labeled_ratio is in conditions too; conditions.data.labeled_ratio=null takes",
        ),
    ],
)
def test_a_bad_override_is_named_by_its_own_text(problems, override, expected):
    [message] = problems(SOUND, override)
    assert message.startswith("override " + override + ": ")
    assert expected in message


def test_problems_of_overrides_and_of_the_file_come_together(problems):
    found = problems(changed("steps: 400", "steps: 0"), "x", "optim.lr=1", "lr=1")
    assert len(found) == 4
    assert sum(message.startswith("override ") for message in found) == 3


def test_an_override_mends_what_is_wrong_in_the_file(problems, tmp_path):
    assert problems(changed("steps: 400", "steps: 0"))
    assert load_study("s.yaml", ["budget.steps=10"]).fixed.budget.steps == 10


def test_the_fixed_part_alone_takes_what_is_searched_or_a_condition(sound):
    study = load_fixed(sound, ["optim.lr=0.5", "data.labeled_ratio=0.5"])
    assert (study.fixed.optim.lr, study.fixed.data.labeled_ratio) == (0.5, 0.5)
    assert load_fixed(sound, ["method.name=supervised"]).fixed.method.name == "supervised"
    assert load_fixed(None, ["data.dataset=mnist"]).fixed.data.dataset == "mnist"


@pytest.mark.parametrize("name", ["a b", "../up", "", ".hidden", "a" * 101])
def test_a_run_name_is_one_plain_folder_name(name):
    with pytest.raises(UserError, match=r"--name is '.*', but must be up to 100 letters"):
        check_name(name)


@pytest.mark.parametrize("loggers", ["[{folder: x}]", "[3]", "[null]", "[{name: 5}]", "[[mlflow]]"])
def test_malformed_loggers_are_one_line(tmp_path, loggers):
    path = tmp_path / "s.yaml"
    path.write_text(f"fixed: {{data: {{dataset: digits}}}}\nstudy: {{loggers: {loggers}}}\n")
    with pytest.raises(UserError) as refused:
        load_study(path)
    mine = [line for line in map(str, refused.value.problems) if "study.loggers" in line]
    assert len(mine) == 1 and ":2: study.loggers" in mine[0] and "must" in mine[0]
