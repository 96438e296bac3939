"""What next: each command is one that the command line takes, and each has its reason."""

import json
import shlex

import pytest
from ruamel.yaml import YAML

from analysis.read.load import load_runs
from analysis.read.search_space import Key
from analysis.report.report import all_tables
from analysis.words.next_steps import next_steps, widened
from tests.analysis.conftest import CONFIRMED
from tune_ssl.records import log

NOISY = dict(zip(range(6), (0.80, 0.84, 0.79, 0.86, 0.83, 0.85), strict=True))
BASE = dict(zip(range(6), (0.78, 0.83, 0.80, 0.82, 0.84, 0.81), strict=True))


def steps(*paths):
    runs = load_runs(paths)
    return [(step.reason, step.command) for step in next_steps(runs, all_tables(runs))]


def commands(*paths):
    return [shlex.split(command) for _, command in steps(*paths)]


def said_seeds(path, seeds):
    text = YAML(typ="safe", pure=True)
    study = text.load(path / log.STUDY)
    study["study"]["study"] |= {"seeds": seeds, "tuning_seed": 7, "finalist_seeds": [8]}
    text.dump(study, path / log.STUDY)


def planned(path, trials, **more):
    text = YAML(typ="safe", pure=True)
    study = text.load(path / log.STUDY)
    study["study"]["study"] |= {"num_trials": trials, **more}
    text.dump(study, path / log.STUDY)


@pytest.mark.parametrize("what", ["trials", "seeds", "running"])
def test_a_run_that_is_not_over_is_only_gone_on_with(tmp_path, write_run, what):
    search = ((log.FINISHED, 0.7, None), (None, None, None))[: 2 if what == "running" else 1]
    confirm = {0: 0.8, 1: 0.9} if what == "seeds" else {}
    path = write_run(tmp_path / "a", labels=(50,), search=search, confirm=confirm)
    planned(path, {"trials": 40, "seeds": 1, "running": 2}[what], seeds=[0, 1, 2, 3])
    assert steps(path) == [("the run is not over", f"tune-ssl search --resume a --runs {tmp_path}")]


def test_no_trials_are_asked_of_a_grid_or_of_a_space_that_is_exhausted(tmp_path, write_run, event):
    few = ((log.FINISHED, 0.7, None), (log.STOPPED, 0.9, "asha"))
    grid = write_run(tmp_path / "a", labels=(50,), search=few)
    planned(grid, 2, searcher="grid")
    assert steps(grid) == []
    small = write_run(tmp_path / "b", labels=(50,), search=few)
    event(small, log.EXHAUSTED, None, "data.num_labels=50")
    assert steps(small) == []


def test_commands_of_a_copy_name_where_the_run_is(tmp_path, write_run):
    search = ((log.FINISHED, 0.7, None),)
    path = write_run(tmp_path / "copy", labels=(50,), search=search, confirm={})
    planned(path, 40)
    runs = load_runs([path], home="s3://bucket/runs/a")
    (step,) = next_steps(runs, all_tables(runs))
    assert step.command == "tune-ssl search --resume a --storage s3://bucket/runs"


def test_a_wider_search_of_a_comparison_is_one_that_loads_with_all_its_keys(tmp_path):
    """What the command line makes of the override: the other keys are searched as before."""
    from tune_ssl.study.proposal import load_comparison

    before = load_comparison(None, ["supervised", "fixmatch"], ["data.dataset=digits"])[0]
    search = {key: domain.leaf() for key, domain in before.conditions[1].search.items()}
    assert len(search) > 2 and "optim.lr" in search
    grown = widened(Key("log_uniform", tuple(search["optim.lr"]["log_uniform"])), {"upper"})
    override = f"compare.fixmatch.search={json.dumps({**search, 'optim.lr': grown})}"
    after = load_comparison(None, ["supervised", "fixmatch"], ["data.dataset=digits", override])[0]
    mine = next(c for c in after.conditions if c.method == "fixmatch").search
    assert set(mine) == set(search) and mine["optim.lr"].leaf() == grown


def test_seeds_that_would_decide_are_asked_for_in_each_run(tmp_path, write_run):
    a = write_run(tmp_path / "a", method="supervised", labels=(50,), confirm=BASE)
    b = write_run(tmp_path / "b", method="uda", labels=(50,), confirm=NOISY)
    for path in (a, b):
        said_seeds(path, list(range(6)))
    runs = load_runs([a, b])
    needed = int(all_tables(runs)["differences"]["seeds_needed"][0])
    assert 1 < needed < 24
    found = [(reason, command) for reason, command in steps(a, b) if "study.seeds" in command]
    assert len(found) == 2 and found[0][0].startswith(
        f"{needed} more seeds would decide uda against supervised under data.num_labels=50 with a probability of 80 %"
    )
    words = shlex.split(found[0][1])
    assert words[:4] == ["tune-ssl", "search", "--resume", "a"]
    fresh = [seed for seed in range(50) if seed not in (7, 8)][: 6 + needed]
    assert words[-1] == f"study.seeds={fresh}"


def test_what_is_decided_needs_no_seeds(tmp_path, write_run):
    a = write_run(tmp_path / "a", method="supervised", labels=(50,))
    b = write_run(tmp_path / "b", method="uda", labels=(50,), shift=0.1)
    assert not [command for command in commands(a, b) if any("seeds" in w for w in command)]


def test_three_seeds_are_asked_to_be_four(tmp_path, write_run):
    a = write_run(tmp_path / "a", labels=(50,), confirm={0: 0.8, 1: 0.84, 2: 0.82})
    said_seeds(a, [0, 1, 2])
    (found,) = [(r, c) for r, c in steps(a) if "study.seeds" in c]
    assert found[0] == "1 more seed would give 95 % intervals"
    assert found[1].endswith("'study.seeds=[0, 1, 2, 3]'")


def test_a_choice_at_an_edge_asks_for_a_wider_domain(tmp_path, searched_run):
    trials = [(0.5 + n / 100, {"optim.lr": 10 ** -(2 + n / 5), "method.m": 5}) for n in range(10)]
    space = {"optim.lr": {"log_uniform": [1e-4, 1e-2]}, "method.m": {"int": [1, 9]}}
    trials.append((0.9, {"optim.lr": 1.05e-4, "method.m": 4}))
    path = searched_run(tmp_path / "a", trials, space)
    (found,) = [(r, c) for r, c in steps(path) if "wider" in c]
    assert (
        "optim.lr (its lower end, in data.num_labels=50)" in found[0] and "method.m" not in found[0]
    )
    words = shlex.split(found[1])
    whole = {"optim.lr": {"log_uniform": [1e-05, 0.01]}, "method.m": {"int": [1, 9]}}
    (override,) = [word for word in words if word.startswith("search=")]
    assert json.loads(override[7:]) == whole  # all keys: a method's own search is replaced whole
    assert words[:2] == ["tune-ssl", "search"] and words[-2:] == ["--name", "a-wider"]


@pytest.mark.parametrize(
    ("key", "edges", "leaf"),
    [
        (Key("log_uniform", (1e-4, 1e-2)), {"upper"}, {"log_uniform": [1e-4, 0.1]}),
        (Key("uniform", (0.0, 0.8)), {"upper"}, {"uniform": [0, 0.9]}),
        (
            Key("uniform", (0.9, 0.99)),
            {"upper"},
            {"uniform": [0.9, 0.995]},
        ),  # some must stay below 1
        (Key("uniform", (0.0, 0.8)), {"lower"}, None),  # shares end at 0
        (Key("uniform", (2.0, 4.0)), {"lower", "upper"}, {"uniform": [0, 6]}),
        (Key("int", (1, 5)), {"lower"}, None),
        (Key("int", (2, 5)), {"upper"}, {"int": [2, 8]}),
        (Key("log_int", (4, 64)), {"upper"}, {"log_int": [4, 640]}),
    ],
)
def test_domains_grow_at_their_edges_and_not_where_nothing_can_be(key, edges, leaf):
    assert widened(key, edges) == leaf


def test_too_few_finished_trials_ask_for_more(tmp_path, write_run):
    few = ((log.FINISHED, 0.7, None), (log.STOPPED, 0.9, "asha"), (log.STOPPED, 0.6, "asha"))
    closed = write_run(tmp_path / "a", labels=(50,), search=few, confirm={})
    planned(closed, 3)
    (found,) = steps(closed)
    assert found[0] == "fewer than 3 search trials finished (soft_kmeans, data.num_labels=50)"
    assert shlex.split(found[1])[2:] == [
        "--resume",
        "a",
        "--runs",
        str(tmp_path),
        "study.num_trials=6",
    ]
    opened = write_run(tmp_path / "b", labels=(50,), search=few, confirm=CONFIRMED)
    planned(opened, 3)
    (found,) = steps(opened)
    assert found[0].endswith("as test data is open, in a run of its own")
    assert found[1] == "tune-ssl search soft_kmeans.yaml study.num_trials=6 --name b-longer"


def test_an_unequal_search_is_asked_to_be_equal(tmp_path, write_run):
    few = tuple((log.FINISHED, value, None) for value in (0.6, 0.7, 0.8))
    a = write_run(tmp_path / "a", method="supervised", labels=(50,), search=few)
    b = write_run(tmp_path / "b", method="uda", labels=(50,), shift=0.1)
    found = [(reason, command) for reason, command in steps(a, b) if "equal" in command]
    assert found == [
        (
            "supervised had 3 search trials where another had 6",
            "tune-ssl search supervised.yaml study.num_trials=6 --name a-equal",
        )
    ]


def test_an_ablation_alone_is_over_when_its_rows_are(tmp_path, write_run, event):
    path = write_run(tmp_path / "a", labels=(50,), search=(), confirm={})
    planned(path, 16)
    own = {"phase": log.ABLATE, "variant": "reference", "config": {}}
    event(
        path,
        log.PLANNED,
        "reference",
        "data.num_labels=50",
        **own,
        changes={},
        retune=[],
        switches=None,
    )
    for seed in range(4):
        event(path, log.STARTED, f"r{seed}", "data.num_labels=50", seed=seed, **own)
        event(path, log.FINISHED, f"r{seed}", "data.num_labels=50", value=0.8, phase=log.ABLATE)
    assert steps(path) == []


def test_a_run_that_is_proposed_has_seeds_enough_to_decide(tmp_path, write_run):
    few = ((log.FINISHED, 0.7, None), (log.STOPPED, 0.9, "asha"))
    path = write_run(tmp_path / "a", labels=(50,), search=few, confirm={0: 0.8, 1: 0.84})
    planned(path, 2, seeds=[0, 1])
    (command,) = [command for _, command in steps(path) if command.endswith("--name a-longer")]
    assert "study.seeds=[0, 1, 2, 3]" in shlex.split(command)


def test_two_pairs_promise_nothing_and_added_seeds_are_not_added_again(tmp_path, write_run):
    two = [
        write_run(
            tmp_path / name, method=name, labels=(50,), confirm={s: values[s] for s in range(2)}
        )
        for name, values in (("supervised", BASE), ("uda", NOISY))
    ]
    for path in two:
        said_seeds(path, [0, 1])
    assert not any("would decide" in reason for reason, _ in steps(*two))
