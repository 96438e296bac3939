"""What configurations were chosen among, and which were given beforehand."""

import json

from analysis.numbers import tables
from analysis.read.load import load_runs
from tests.analysis.conftest import said, shown
from tune_ssl.records import log


def give(path, **of_trials):
    """Write `given` and `redrawn` into the beginnings of trials, c0_t0001={...}."""
    events = [json.loads(line) for line in (path / log.TRIALS).read_text().splitlines()]
    for event in events:
        if event["event"] == log.STARTED:
            event |= of_trials.get(event["trial"].replace("-", "_"), {})
    (path / log.TRIALS).write_text("".join(json.dumps(event) + "\n" for event in events))


def test_given_configs_are_counted_by_source_and_winners_named(tmp_path, write_run):
    path = write_run(tmp_path / "a")
    give(
        path,
        c0_t0000={"given": "start_from"},
        c0_t0001={"given": "defaults"},
        c1_t0000={"given": "defaults"},
        c1_t0001={"given": "the winner of data.num_labels=50"},
        c1_t0002={"redrawn": 3},
        c1_t0005={"redrawn": 1},
    )
    runs = load_runs([path])
    assert (
        "soft_kmeans: 4 of 12 search trials were given beforehand (2 defaults, 1 start_from, 1 the winner of "
        "data.num_labels=50); 4 draws were left out, as the values do not fit together or were tried already; "
        "the defaults won in data.num_labels=50; the winner of data.num_labels=50 won in data.num_labels=200."
    ) in said(runs)
    table = shown(tables.trial_table(runs), "trials").set_index("Trial")["Given"]
    assert table["c0-t0001"] == "defaults" and table["c0-t0002"] == "\u2013"


def test_a_drawn_winner_is_said_to_be_drawn(tmp_path, write_run):
    path = write_run(tmp_path / "a", labels=(50,))
    give(path, c0_t0000={"given": "other, data.num_labels=9"})
    assert (
        "soft_kmeans: 1 of 6 search trials was given beforehand (1 other, data.num_labels=9); "
        "a drawn config won in data.num_labels=50."
    ) in said(load_runs([path]))
    give(path, c0_t0001={"given": "other, data.num_labels=9"})
    assert "the config of other, data.num_labels=9 won in" in "\n".join(said(load_runs([path])))


def test_draws_that_were_left_out_are_said_without_given_ones(tmp_path, write_run):
    path = write_run(tmp_path / "a", labels=(50,))
    assert "given beforehand" not in "\n".join(said(load_runs([path])))
    give(path, c0_t0000={"redrawn": 1})
    assert (
        "soft_kmeans: 1 draw was left out, as the values do not fit together or were tried already."
        in said(load_runs([path]))
    )


def test_candidates_are_the_search_trials_that_finished_with_a_value(tmp_path, write_run):
    search = (
        *((log.FINISHED, value, None) for value in (0.5, 0.6, 0.7)),
        (log.FINISHED, None, None),
        (log.STOPPED, 0.9, "asha"),
        (log.FAILED, None, "x"),
        (None, None, None),
    )
    runs = load_runs([write_run(tmp_path / "a", labels=(50,), search=search, confirm={})])
    trials = runs.trials
    count = sum(
        s == "finished" and v == v for s, v in zip(trials["status"], trials["value"], strict=True)
    )
    assert count == 3
    assert tables.budget_table(runs)["candidates"].to_list() == [count]
    (row,) = tables.chosen_table(runs).to_dict("records")
    assert (row["candidates"], row["begun"]) == (count, 7)
    assert shown(tables.chosen_table(runs), "chosen")["Candidates"].to_list() == ["3 of 7"]
    text = "\n".join(said(runs))
    assert "chosen among 3 finished search trials of 7 begun" in text and "so few" not in text


def test_a_choice_among_two_is_a_caveat(tmp_path, write_run):
    search = ((log.FINISHED, 0.5, None), (log.FINISHED, 0.81, None), (log.STOPPED, 0.9, "asha"))
    path = write_run(tmp_path / "a", labels=(50,), search=search)
    line = (
        "soft_kmeans, data.num_labels=50: 2 finished search trials of 3 begun: a choice among so few says little about "
        "the method."
    )
    assert line in said(load_runs([path]))
    study = path / log.STUDY
    study.write_text(
        study.read_text().replace(
            "search:\n    optim.lr:\n      log_uniform:", "fixed:\n    optim.lr:\n      was:"
        )
    )
    runs = load_runs([path])
    assert runs.studies[0].searched == []
    assert line not in said(runs)  # nothing was to be chosen
