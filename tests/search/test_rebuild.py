"""A search that goes on after a kill is the one that was killed: its study comes back from the records."""

from __future__ import annotations

import re

import pytest

from tests.support.runs import ablate_here, events
from tests.support.studies import STUDY, after, begun, play, stream_of
from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import StudySpec
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.search.samplers import build_pruner, build_sampler, why_stopped

STAGED = STUDY.replace("name: supervised", "name: simclr").replace(
    "steps: 45", "steps: {pretrain: 30, finetune: 15}"
)
STAGED = STAGED.replace("  method.labeled_view: {choice: [weak, strong, none]}\n", "")


def searches(stream):
    """The searches of the conditions, whatever phase they are in."""
    return [line.phase.searches[None] for line in stream.lines]


def content(search, begun):
    """What makes a study what it is. A running trial's last report is judged again when it comes again."""
    found = []
    for trial in search.study.get_trials(deepcopy=False):
        if search.trial_name(trial.number) not in begun:
            continue
        rungs = {k: v for k, v in trial.system_attrs.items() if k.startswith("completed_rung_")}
        if trial.state.name == "RUNNING" and trial.intermediate_values:
            last = trial.intermediate_values[max(trial.intermediate_values)]
            rungs = {k: v for k, v in rungs.items() if v != last}
        about = trial.number, trial.state.name, trial.params, trial.values
        found.append((*about, trial.intermediate_values, rungs))
    return found


def suggestions(search, count):
    asked = [search.ask() for _ in range(count)]
    return [one[:2] for one in asked if one is not None]


def settings(text):
    return STUDY.replace("num_trials: 8", f"num_trials: {text}")


STUDIES = {
    "tpe": settings("16"),
    "tpe, two stages": STAGED,
    "random": settings("16, searcher: random"),
    "qmc, median": settings("16, sampler: qmc, scheduler: median"),
    "grid": settings("27, searcher: grid"),
    "hyperband": settings("16, scheduler: hyperband"),
    "percentile": settings("16, scheduler: {name: percentile, percentile: 40}"),
    "by its dotted name": settings(
        "16, scheduler: {name: optuna.pruners.SuccessiveHalvingPruner, min_resource: 2}"
    ),
}
GP = settings("13, sampler: gp").replace("steps: 45", "steps: 5").replace("[20, 40]", "[20]")


@pytest.mark.parametrize(
    "body, kills",
    [
        *(pytest.param(body, (8, 40, 60), id=kind) for kind, body in STUDIES.items()),
        pytest.param(GP, (11,), marks=pytest.mark.slow, id="gp"),
    ],
)
def test_a_study_from_the_records_is_the_one_that_wrote_them_and_goes_on_in_the_same_way(
    tmp_path, body, kills
):
    if body == GP:
        pytest.importorskip("torch").set_num_threads(1)
    for reports in kills:
        run = begun(tmp_path / str(reports), body)
        undisturbed = stream_of(run, confirm=False)
        running = play(undisturbed, slots=3, until=after(reports))
        rebuilt = stream_of(run, confirm=False)
        for before, now in zip(searches(undisturbed), searches(rebuilt), strict=True):
            trials = Ledger.read(run).begun
            assert content(now, trials) == content(before, trials)
            drawn = [*running, *undisturbed.lines[before.index].in_hand]
            mine = [job for job in drawn if job.trial.startswith(f"c{before.index}-")]
            again = suggestions(now, len(mine))  # what ran comes first, with what it had
            assert dict(again) == {job.number: job.config for job in mine}
            assert suggestions(now, 3) == suggestions(before, 3)


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_search_killed_at_any_report_ends_as_an_undisturbed_one(tmp_path, scheduler):
    body = settings(f"10, searcher: random, scheduler: {scheduler}").replace("[20, 40]", "[20]")
    run = begun(tmp_path / "undisturbed", body)
    play(stream_of(run, confirm=False))
    whole = told(run)
    assert {e["event"] for e in whole.values()} == {log.FINISHED, log.STOPPED}
    for number in range(1, len(log.read(run / log.HISTORY)), 9):
        killed = begun(tmp_path / str(number), body)
        play(stream_of(killed, confirm=False), until=after(number))
        play(stream_of(killed, confirm=False))
        assert told(killed) == whole


ABLATED = settings("4, searcher: random, scheduler: none").replace(
    "study:", "ablate:\n  small: {model.feature_dim: 8, retune: [optim.lr]}\nstudy:"
)


def test_a_retuning_killed_at_any_report_ends_as_an_undisturbed_one(tmp_path):
    ends = []
    for number in (None, 3, 20, 50):
        run = begun(tmp_path / str(number), ABLATED)
        ablate_here(run, dry=True)
        if number:
            play(stream_of(run, ablation=True), until=after(number))
        play(stream_of(run, ablation=True))
        ends.append(told(run))
    assert "c1-retune-small-t0003" in ends[0] and "c1-ablate-small-s1" in ends[0]
    # Its best two were run again before one was chosen, as those of the reference's search
    assert sum("c1-retune-small-final" in trial for trial in ends[0]) == 2
    assert ends[1:] == [ends[0]] * 3


def told(run):
    """trial -> its ending, but for the time"""
    return {
        e["trial"]: {key: e[key] for key in ("event", "value", "step", "metrics", "reason")}
        for e in events(run)
        if e["event"] in log.ENDINGS
    }


def test_cma_es_begins_to_adapt_anew_and_repeats_no_suggestion(tmp_path):
    run = begun(tmp_path, settings("9, sampler: cmaes, scheduler: none"))
    for reports in (30, 50, 40, 1000):
        play(stream_of(run, confirm=False), slots=2, until=after(reports))
    ledger = Ledger.read(run)
    assert len(ledger.begun) == 18 and not ledger.open_trials()
    each = [(start["condition"], str(start["config"])) for start in ledger.begun.values()]
    assert len(set(each)) == 18


@pytest.mark.parametrize("searcher", ["random", "grid"])
def test_a_trial_that_was_drawn_and_never_begun_is_drawn_again(tmp_path, searcher):
    run = begun(tmp_path, settings(f"12, searcher: {searcher}"))
    play(stream_of(run), until=after(80))
    lost = next(e for e in events(run) if e["trial"] == "c0-t0002")
    lines = (run / log.TRIALS).read_text().splitlines(keepends=True)
    (run / log.TRIALS).write_text("".join(line for line in lines if "c0-t0002" not in line))
    job = stream_of(run).next()
    assert (job.trial, job.config) == ("c0-t0002", lost["config"])


def test_a_recorded_config_outside_the_search_space_is_one_line(tmp_path):
    run = begun(tmp_path)
    play(stream_of(run), until=after(20))
    path = run / log.TRIALS
    path.write_text(path.read_text().replace('"model.feature_dim": ', '"model.feature_dim": 9'))
    expected = r"r: c0-t0000: model.feature_dim is 9\d+ in trials.jsonl, which is outside its dom"
    with pytest.raises(UserError, match=expected) as refused:
        stream_of(run)
    assert len(refused.value.problems) == 1


def test_a_recorded_time_that_is_no_date_keeps_nobody_from_going_on(tmp_path):
    run = begun(tmp_path)
    play(stream_of(run), until=after(20))
    path = run / log.TRIALS
    path.write_text(re.sub(r'"time": [0-9.]+', '"time": 1e30', path.read_text()))
    play(stream_of(run))
    assert Ledger.read(run).open_trials() == []


def test_tpe_is_told_what_others_try_and_that_keys_belong_together():
    """Explicitly: what Optuna does by itself has changed from version to version."""
    sampler = build_sampler(StudySpec(), {}, seed=1, number=0)
    assert sampler._constant_liar is True and sampler._multivariate is True


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, "stopped early: worse than its rung's best third"),
        ({"reduction_factor": 2}, "stopped early: worse than its rung's best half"),
        ({"reduction_factor": 7}, "stopped early: worse than its rung's best 1/7"),
        ({"scheduler": "median"}, "stopped early: worse than the median of the trials before it"),
    ],
)
def test_a_stopped_trial_says_what_it_was_worse_than(given, expected):
    settings = StudySpec(**given)
    assert why_stopped(settings) == expected
    build_pruner(settings, [9])
