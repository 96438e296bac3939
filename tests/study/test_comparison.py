"""Several methods in one study: what they share, what is their own, and what is refused."""

from pathlib import Path

import pytest

from tune_ssl.base.errors import UserError
from tune_ssl.methods import find_method, method_names
from tune_ssl.study.proposal import METHODS, load_comparison
from tune_ssl.study.study import load_fixed, load_study, study_from

BODY = """
fixed:
  data: {dataset: digits}
  budget: {steps: 60, eval_every: 30}
conditions:
  data.num_labels: [20, 50]
search:
  optim.weight_decay: {log_uniform: [1e-4, 1e-2]}
compare:
  supervised: {search: {optim.lr: {log_uniform: [1e-3, 1e-2]}}}
  label_spreading:
  simclr:
  bold:
    fixed: {method: {name: fixmatch, threshold: 0.5}, data: {mu: 2}}
    ablate: {off: {losses.consistency.weight: 0}}
study: {num_trials: 2}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(BODY)
    return path


def problems(path: Path, *overrides: str, methods=None) -> list[str]:
    with pytest.raises(UserError) as refused:
        if methods is None:
            load_study(path, overrides)
        else:
            load_comparison(path, methods, overrides)
    return [str(problem) for problem in refused.value.problems]


# ---- what is shared, and what is a method's own -----------------------------------------------------


def test_every_method_has_the_shared_parts_and_its_own_over_them(file):
    study = load_study(file)
    assert study.compares and [entry.label for entry in study.entries] == [
        *("supervised", "label_spreading", "simclr", "bold")
    ]
    bold = study.entries[3]
    assert (bold.fixed.method.name, bold.fixed.method.threshold) == ("fixmatch", 0.5)
    assert [entry.fixed.data.mu for entry in study.entries] == [1, 1, 4, 2]
    assert {entry.fixed.data.dataset for entry in study.entries} == {"digits"}
    assert list(bold.ablate) == ["off"] and not study.entries[0].ablate


def test_what_is_searched_is_the_methods_proposal_unless_it_says_otherwise(file):
    supervised, spreading, _, bold = load_study(file).entries
    assert set(supervised.search) == {"optim.lr", "optim.weight_decay"}
    assert set(spreading.search) == set(
        find_method("label_spreading").searched
    )  # no steps, no optim
    assert set(bold.search) == {*find_method("fixmatch").searched, "optim.weight_decay"}


def test_steps_are_equal_in_all_and_shared_among_stages(file):
    study = load_study(file)
    steps = [entry.fixed.stage_steps() for entry in study.entries]
    assert steps[0] == {"train": 60} and steps[1] == {"fit": 1}
    assert steps[2] == {"pretrain": 40, "finetune": 20}


def test_a_classical_method_reads_pixels_unless_the_encoder_comes_with_weights(file, tmp_path):
    assert load_study(file, ["model.encoder=resnet18"]).entries[1].fixed.model.encoder == "pixels"
    torch = pytest.importorskip("torch")
    from tune_ssl.models.encoders import build_encoder

    weights = tmp_path / "w.pt"
    torch.save(build_encoder("small_cnn", 1, "small", (8, 8)).state_dict(), weights)
    spreading = load_study(file, [f"model.weights={weights}"]).entries[1]
    assert spreading.fixed.model.encoder == "small_cnn"


def test_each_method_has_a_condition_in_each_cell_with_its_own_search(file):
    study = load_study(file)
    assert [c.id for c in study.conditions][:3] == [
        "data.num_labels=20,method=supervised",
        "data.num_labels=50,method=supervised",
        "data.num_labels=20,method=label_spreading",
    ]
    assert {c.cell for c in study.conditions} == {"data.num_labels=20", "data.num_labels=50"}
    assert all(c.spec.data.num_labels in (20, 50) for c in study.conditions)
    own = {c.method: set(c.search) for c in study.conditions}
    assert own == {entry.label: set(entry.search) for entry in study.entries}


def test_a_resolved_comparison_reads_back_equal(file):
    study = load_study(file)
    again = study_from(study.resolved(), file)
    assert again.entries == study.entries and again.settings == study.settings


@pytest.mark.parametrize("name", method_names())
def test_what_a_method_proposes_to_search_and_its_defaults_are_sound(name, tmp_path):
    other = "supervised" if name != "supervised" else "fixmatch"
    path = tmp_path / "two.yaml"
    path.write_text(f"fixed: {{data: {{dataset: digits}}}}\ncompare: {{{name}: , {other}: }}\n")
    (entry, _) = load_study(path).entries
    assert set(entry.search) == set(find_method(name).searched) and entry.search


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, said",
    [
        ("compare={a: }", "compare is {a: null}, but must name at least 2 methods"),
        ("compare.fixmach={}", "method.name is 'fixmach', but must be a known method"),
        (
            "compare.bold.fixed.data.num_labels=9",
            "must not be changed for one method: all of a comparison",
        ),
        ("compare.bold.fixd=1", "fixd is not a known key; did you mean 'fixed'?"),
        (
            "compare.bold.fixed.budget.steps=9",
            "makes 9 steps in all, but must make 60 as the others",
        ),
        ("compare.bold.fixed.method.threshold=2", "method.threshold is 2, but must be at most 1"),
        ("compare.bold.search={optim.rl: {uniform: [0, 1]}}", "search.optim.rl is not a known key"),
        (
            "method.name=fixmatch",
            "method must not stand beside compare, whose entries name the methods",
        ),
        ("study.metric=val/cluster_nmi", "study.metric"),
    ],
)
def test_a_mistake_in_one_method_is_one_line_with_its_place(file, override, said):
    key = override.partition("=")[0]
    found = problems(file, override)
    assert any(said in line for line in found), found
    assert all(line.startswith((f"override {key}", str(file))) for line in found)


def test_a_mistake_in_the_file_names_its_line(file):
    file.write_text(BODY.replace("threshold: 0.5", "threshold: 5"))
    assert problems(file) == [f"{file}:14: method.threshold is 5, but must be at most 1"]


def test_a_shared_mistake_is_said_once(file):
    file.write_text(BODY.replace("eval_every: 30", "eval_every: 0"))
    assert problems(file) == [f"{file}:4: budget.eval_every is 0, but must be greater than 0"]


def test_no_single_fixed_part_is_trained_of_a_comparison(file):
    with pytest.raises(
        UserError, match="c.yaml:9: compare is of a comparison, which has no single"
    ):
        load_fixed(file)


# ---- what is proposed ----------------------------------------------------------------------------


def proposed(*arguments, gpu=False, why="no network"):
    methods = [word for word in arguments if "=" not in word]
    overrides = [word for word in arguments if "=" in word]
    return load_comparison(None, methods, overrides, gpu=gpu, reachable=lambda model: why)


def test_without_a_word_digits_are_compared_by_six_methods_at_two_budgets():
    study, lines = proposed()
    assert [entry.label for entry in study.entries] == list(METHODS)
    assert study.axes == {"data.num_labels": [20, 50]} and study.name == "compare-digits"
    assert len(study.settings.seeds) == 10 and study.settings.num_trials == 6
    assert any(line.startswith("budget.steps=300: optimizer steps") for line in lines)


def test_what_is_given_is_not_chosen_anew():
    study, lines = proposed(
        "supervised", "fixmatch", "budget.steps=50", "study.num_trials=3", "data.num_labels=30"
    )
    assert [entry.label for entry in study.entries] == ["supervised", "fixmatch"]
    assert study.fixed.budget.steps == 50 and study.settings.num_trials == 3
    assert not study.axes and study.fixed.data.num_labels == 30
    assert not any(line.startswith(("budget.steps", "study.num_trials")) for line in lines)


def test_photos_start_from_pretrained_weights_where_they_can_be_had():
    from tune_ssl.study import proposal

    data = {"compare": dict.fromkeys(METHODS), "fixed": {"data": {"dataset": "folder"}}}
    lines = proposal._fill(data, False, False, lambda model: "")
    assert data["fixed"]["model"]["weights"] == "pretrained"
    assert data["fixed"]["model"]["freeze"] == "all" and data["fixed"]["data"]["image_size"] == 96
    assert "simclr" not in data["compare"]
    assert "simclr is left out: its pretraining would train the whole encoder" in lines


def test_photos_without_weights_are_learned_from_nothing_and_it_is_said():
    from tune_ssl.study import proposal

    data = {"compare": dict.fromkeys(METHODS), "fixed": {"data": {"dataset": "folder"}}}
    lines = proposal._fill(data, False, False, lambda model: "no network")
    assert data["fixed"]["model"] == {"encoder": "small_cnn"}
    assert lines[0].startswith("model.weights=none: no network; give model.encoder=timm:")
    gpu = {"compare": dict.fromkeys(METHODS), "fixed": {"data": {"dataset": "folder"}}}
    proposal._fill(gpu, False, True, lambda model: "")
    assert gpu["fixed"]["data"]["image_size"] == 224 and "freeze" not in gpu["fixed"]["model"]


@pytest.mark.parametrize(
    "methods, said",
    [
        (["supervised", "supervised"], "supervised is named 2 times"),
        (
            ["supervised", "fixmach"],
            "METHODS is 'fixmach', but must be a known method; did you mean 'fixmatch'?",
        ),
        (["supervised"], "compare is {supervised: null}, but must name at least 2 methods"),
    ],
)
def test_a_wrong_choice_of_methods_is_one_line(methods, said):
    with pytest.raises(UserError) as refused:
        load_comparison(None, methods, [])
    (problem,) = refused.value.problems
    assert str(problem).startswith(said)


def test_of_a_file_some_methods_can_be_chosen(file):
    study, _ = load_comparison(file, ["bold", "supervised"], [])
    assert [entry.label for entry in study.entries] == ["bold", "supervised"]
    assert "METHODS" in problems(file, methods=["bald", "supervised"])[0]
