"""The stream of jobs: what is next, what is run again, when all is stopped, and what the records say of it."""

from __future__ import annotations

import io
import os
from collections import Counter

import pytest
from rich.console import Console

from tests.support.runs import endings, events
from tests.support.studies import STUDY, after, begun, broken, play, reports, stream_of
from tune_ssl.base.errors import Stopped
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.runs.status import RunStatus
from tune_ssl.tuning.live_table import LiveTable, time_left
from tune_ssl.tuning.run import refuse_without_result
from tune_ssl.tuning.stream import JobStream

ONE = STUDY.replace("[20, 40]", "[20]")
RANDOM = "searcher: random, scheduler: none"


def settings(text, body=STUDY):
    return body.replace("num_trials: 8", f"num_trials: {text}")


def of(run, trial):
    """What the records say of a trial, event by event."""
    return [e["event"] for e in events(run) if e["trial"] == trial]


def failing(*trials, times=1, **about):
    """Work in which these trials fail so many times before they go well; `*` is all of them."""
    left = Counter()

    def work(job):
        left[job.trial] += 1
        if ("*" in trials or job.trial in trials) and left[job.trial] <= times:
            yield broken(**about)
        yield from reports(job)

    return work


# ---- what is next --------------------------------------------------------------------------------


def test_the_condition_that_has_waited_longest_is_next(tmp_path):
    stream = stream_of(
        begun(tmp_path, settings(f"3, {RANDOM}").replace("[20, 40]", "[20, 40, 60]"))
    )
    given = [stream.next() for _ in range(4)]
    assert [job.trial for job in given] == ["c0-t0000", "c1-t0000", "c2-t0000", "c0-t0001"]
    for job in (given[2], given[0]):  # which ends first makes no difference
        for report in reports(job):
            stream.report(job, report)
    assert [stream.next().trial for _ in range(3)] == ["c1-t0001", "c2-t0001", "c0-t0002"]


def test_a_condition_goes_on_to_its_finalists_and_its_confirmation_while_another_searches(tmp_path):
    run = begun(tmp_path, settings(f"3, {RANDOM}"))

    def work(job):  # the second condition's trials take as long as all of the first one's
        first, *others = reports(job)
        yield first
        while job.trial.startswith("c1") and "c0-confirm-s1" not in endings(run):
            yield first
        yield from others

    play(stream_of(run), slots=4, work=work)
    lines = [f"{e['trial']} {e['event']}" for e in events(run)]
    assert len(endings(run)) == 2 * (3 + 2 + 2) and set(endings(run).values()) == {log.FINISHED}
    for condition in ("c0", "c1"):  # none of its own waits for it
        own = [line for line in lines if line.startswith(condition)]
        phases = [line.split("-")[1][0] for line in own if line.endswith("started")]
        assert "".join(phases) == "tttffcc"


STAGED = """
fixed:
  data: {dataset: digits, num_labels: 20}
  method: {name: simclr}
  budget: {steps: {pretrain: 20, finetune: 10}, eval_every: 5}
conditions:
  method.temperature: [0.1, 0.5]
search:
  optim.finetune.lr: {log_uniform: [1e-4, 1e-1]}
study: {num_trials: 3, searcher: random, scheduler: none, finalists: 1, seeds: [0]}
"""


def test_a_job_that_would_wait_for_anothers_pretraining_goes_behind_jobs_that_can_start(tmp_path):
    stream = stream_of(begun(tmp_path, STAGED))
    first, second = stream.next(), stream.next()
    assert (first.trial, second.trial) == ("c0-t0000", "c1-t0000")
    assert first.pretraining and first.pretraining != second.pretraining
    assert stream.next() is None and not stream.over  # on one machine it would only wait
    told = reports(second)
    for _ in range(4):  # its pretraining is over
        stream.report(second, next(told))
    assert stream.next().trial == "c1-t0001"  # though the other condition has waited longer
    stream.one_machine = False  # another node may not see this one's cache
    assert [stream.next().trial for _ in range(2)] == ["c1-t0002", "c0-t0001"]


def test_a_condition_gives_another_job_where_its_first_one_would_wait(tmp_path):
    body = STAGED.replace("conditions:\n  method.temperature: [0.1, 0.5]\n", "").replace(
        "search:\n", "search:\n  method.temperature: {choice: [0.1, 0.5]}\n"
    )
    stream = stream_of(begun(tmp_path, body.replace("num_trials: 3", "num_trials: 8")))
    first, second = stream.next(), stream.next()
    assert first.pretraining != second.pretraining  # whatever lies between them waits
    assert stream.next() is None and not stream.over
    numbers = [job.number for job in stream.lines[0].in_hand]
    assert sorted([first.number, second.number, *numbers])[:2] == [0, 1]


def test_what_is_stopped_begins_nothing_more_and_leaves_open_what_runs(tmp_path):
    run = begun(tmp_path, settings(f"3, {RANDOM}"))
    stream = stream_of(run)
    job = stream.next()
    with stream.guarded():
        raise OSError("the disk is away")
    stream.stop(Stopped("later"))
    assert stream.next() is None and str(stream.stopped) == "the disk is away"
    assert list(stream.running) == [job.trial] and endings(run) == {}


# ---- finalists and seeds are not lost ------------------------------------------------------------


def lost(run):
    """A finalist's repeat and a confirmed seed of the first condition, from a run that went well."""
    names = [e["trial"] for e in events(run) if e["phase"] in (log.FINALIST, log.CONFIRM)]
    return next(n for n in names if "final" in n), next(n for n in names if "-confirm-" in n)


@pytest.fixture(scope="module")
def well(tmp_path_factory):
    """A run in which nothing went wrong."""
    run = begun(tmp_path_factory.mktemp("well"), settings(f"4, {RANDOM}", ONE))
    play(stream_of(run))
    return run


def lock(run):
    [found] = [e for e in events(run) if e["event"] == log.LOCKED]
    return {key: found[key] for key in ("trial", "value", "digest")}


def test_a_failed_finalist_and_a_failed_seed_run_once_more_and_then_count(tmp_path, well):
    run = begun(tmp_path, settings(f"4, {RANDOM}", ONE))
    finalist, seed = lost(well)
    play(stream_of(run), work=failing(finalist, seed))
    for trial in (finalist, seed):
        assert of(run, trial) == [log.STARTED, log.FAILED, log.STARTED, log.FINISHED]
    assert lock(run) == lock(well) and endings(run) == endings(well)


def test_one_that_fails_again_is_left_out_with_a_word_and_a_resume_runs_it_before_anything_is_locked(
    tmp_path, well
):
    run = begun(tmp_path, settings(f"4, {RANDOM}", ONE))
    finalist, told = lock(well)["trial"].replace("-t", "-final") + "-s1001", []
    play(stream_of(run, told), work=failing(finalist, times=2))
    assert of(run, finalist).count(log.FAILED) == 2
    assert told[-1] == f"{finalist} failed again: it is left out"
    assert lock(run)["trial"] != lock(well)["trial"]  # what was not repeated cannot be compared

    again = begun(tmp_path / "again", settings(f"4, {RANDOM}", ONE))
    play(
        stream_of(again),
        work=failing(finalist, times=2),
        until=lambda: of(again, finalist).count(log.FAILED) == 2,
    )
    assert log.LOCKED not in {e["event"] for e in events(again)}
    play(stream_of(again))
    assert of(again, finalist)[-2:] == [log.STARTED, log.FINISHED]
    assert lock(again) == lock(well) and endings(again) == endings(well)


def test_a_resume_of_a_run_that_is_over_runs_a_seed_again_that_had_failed(tmp_path, well):
    run = begun(tmp_path, settings(f"4, {RANDOM}", ONE))
    _, seed = lost(well)
    play(stream_of(run), work=failing(seed, times=2))
    assert endings(run) == {**endings(well), seed: log.FAILED}
    before = len(events(run))
    play(stream_of(run))
    assert [(e["trial"], e["event"]) for e in events(run)[before:]] == [
        (seed, log.STARTED),
        (seed, log.FINISHED),
    ]
    assert stream_of(run).over and endings(run) == endings(well)


# ---- when everything fails -----------------------------------------------------------------------


def failed_so_far(stream, count, place=lambda number: "a", **about):
    """That many jobs of the stream begin and fail, one after another."""
    for number in range(count):
        if job := stream.next():
            stream.report(job, broken(place=place(number), **about))


def test_a_few_early_failures_of_many_running_trials_stop_nothing(tmp_path):
    stream = stream_of(begun(tmp_path, settings(f"40, {RANDOM}", ONE)))
    running = [stream.next() for _ in range(40)]
    for job in running[:19]:
        stream.report(job, broken())
    assert stream.stopped is None
    stream.report(running[19], broken())  # as many as still run
    assert str(stream.stopped) == (
        "all 20 trials so far failed; the first one: c0-t0000 failed: RuntimeError: this device is broken"
    )


@pytest.mark.parametrize(
    "places, place, expected",
    [
        (1, "a", True),
        (2, "a", False),  # one bad device of two
        (2, "ab", True),
        (8, "ab", True),  # for the same cause
    ],
)
def test_one_bad_place_of_several_never_stops_a_study_and_one_cause_at_two_does(
    tmp_path, places, place, expected
):
    stream = stream_of(begun(tmp_path, settings(f"9, {RANDOM}", ONE)), [])
    stream.places = places
    failed_so_far(stream, 9, lambda number: place[number % len(place)])
    assert (stream.stopped is not None) == expected
    assert len(endings(stream.context.run)) == (3 if expected else 9)


def test_a_trial_that_is_further_than_all_that_failed_keeps_the_study_going(tmp_path):
    stream = stream_of(begun(tmp_path, settings(f"9, {RANDOM}", ONE)))
    ahead, behind = stream.next(), stream.next()
    told, also = reports(ahead), reports(behind)
    for report in (next(told), next(told)):
        stream.report(ahead, report)
    stream.report(behind, next(also))
    stream.report(behind, broken())
    failed_so_far(stream, 5)
    assert stream.stopped is None
    stream.report(ahead, broken())
    assert "all 7 trials so far failed" in str(stream.stopped)


def test_once_a_trial_has_ended_well_failures_are_the_trials_own(tmp_path):
    run = begun(tmp_path, settings(f"9, {RANDOM}", ONE))
    stream = stream_of(run)
    play(stream, until=after(9))
    failed_so_far(stream, 4)
    failed_so_far(stream_of(run), 4)  # nor is it forgotten by a resume
    assert Counter(endings(run).values()) == {log.FINISHED: 1, log.FAILED: 8}


UNFIT = """
fixed:
  data: {dataset: digits, num_labels: 20}
  method: {name: supervised}
  budget: {steps: 10, eval_every: 5}
search:
  data.batch_size: {choice: [10, 8]}
  compute.accumulate: {choice: [1, 4]}
study: {num_trials: 4, searcher: grid, scheduler: none, finalists: 1, seeds: [0]}
"""


def test_values_that_do_not_fit_together_are_left_out_and_charged_to_nobody(tmp_path):
    run, said = begun(tmp_path, UNFIT), []
    play(stream_of(run, said))
    searched = [e for e in Ledger.read(run).begun.values() if e["phase"] == log.SEARCH]
    assert [
        (e["config"]["data.batch_size"], e["config"]["compute.accumulate"]) for e in searched
    ] == [
        (10, 1),
        (8, 1),
        (8, 4),
    ]
    assert set(endings(run).values()) == {log.FINISHED}
    assert any("3 of 4 trials: no further config was found" in line for line in said)
    assert Ledger.read(run).exhausted == {("all", None)}
    assert RunStatus.read(run).in_words(False) == "confirmed"
    play(stream_of(run, said))  # a resume finds nothing more, and does not say it again
    assert sum(e["event"] == log.EXHAUSTED for e in events(run)) == 1


def test_a_study_in_which_nothing_can_be_chosen_ends_with_its_first_cause_also_on_a_resume(
    tmp_path,
):
    run = begun(tmp_path, settings(f"2, {RANDOM}"))

    def work(job):
        yield {"status": log.DIVERGED, "reason": f"supervised is nan at step {job.number + 1}"}

    for _ in range(2):
        stream = stream_of(run)
        play(stream, work=work)
        assert stream.stopped is None and set(endings(run).values()) == {log.DIVERGED}
        with pytest.raises(Stopped) as stopped:
            refuse_without_result(stream.context, ablation=False)
        assert str(stopped.value) == (
            "r: nothing could be chosen: no trial finished; the first one that went wrong: "
            "c0-t0000 diverged: supervised is nan at step 1"
        )


def test_a_condition_in_which_nothing_can_be_chosen_is_named_and_the_others_go_on(tmp_path):
    run, told = begun(tmp_path, settings(f"2, {RANDOM}")), []

    def work(job):
        if job.condition.endswith("=20"):
            yield {"status": log.COLLAPSED, "reason": "embedding_std is 0"}
        yield from reports(job)

    stream = stream_of(run, told)
    play(stream, work=work)
    refuse_without_result(stream.context, ablation=False)
    assert told[-1] == (
        "no trial finished in data.num_labels=20: no result there; "
        "the first one that went wrong: c0-t0000 collapsed: embedding_std is 0"
    )
    assert sum("c1-confirm" in trial for trial in endings(run)) == 2


# ---- what is written -----------------------------------------------------------------------------


def test_an_ending_is_written_once_whatever_comes_after_it(tmp_path):
    run = begun(tmp_path, settings(f"3, {RANDOM}"))
    stream = stream_of(run)
    job = stream.next()
    *_, last = reports(job)
    assert stream.report(job, last) is True
    before = events(run)
    assert stream.report(job, last) is True and stream.report(job, broken()) is True
    stream.end(job, log.FAILED, None, "its worker died")
    stream.recover(job)
    assert events(run) == before and of(run, job.trial) == [log.STARTED, log.FINISHED]


def test_a_worker_that_drew_another_split_has_no_result(tmp_path):
    run = begun(tmp_path, settings(f"3, {RANDOM}"))
    stream = stream_of(run)
    job = stream.next()
    *_, last = reports(job)
    assert stream.report(job, {**last, "split": "other"}) is True
    [end] = [e for e in events(run) if e["event"] == log.FAILED]
    assert end["reason"] == f"its worker drew split other, the driver {job.split}"


def test_no_ending_is_on_the_disk_before_its_reports_and_a_report_alone_costs_no_fsync(
    tmp_path, monkeypatch
):
    run = begun(tmp_path, settings(f"2, {RANDOM}", ONE))
    stream, synced, fsync = stream_of(run), [], os.fsync
    history, on_disk = run / log.HISTORY, {}

    def watched(descriptor):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        on_disk[name] = os.fstat(descriptor).st_size
        synced.append(name)
        if name == log.TRIALS and events(run)[-1]["event"] in log.ENDINGS:
            assert on_disk[log.HISTORY] == history.stat().st_size
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    job = stream.next()
    assert synced == [log.TRIALS, "r"]  # the folder, for a file that is new
    synced.clear()
    *others, last = reports(job)
    for report in others:
        stream.report(job, report)
    assert synced == []
    stream.report(job, last)
    assert synced == [log.HISTORY, log.TRIALS]


def test_the_table_has_a_row_for_each_condition_and_says_how_many_trials_there_will_be(tmp_path):
    stream = stream_of(begun(tmp_path, settings(f"4, {RANDOM}")))
    play(stream, until=lambda: len(endings(stream.context.run)) == 3)
    console = Console(width=100, file=io.StringIO())
    console.print(LiveTable(stream, "search r", console).table())
    shown = console.file.getvalue()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines()]
    best = [f"{line.progress.best:.4f}" for line in stream.lines]
    assert [row for row in rows if row] == [
        ["data.num_labels=20", "search", "0", "2/4", "0", "0", best[0]],
        ["data.num_labels=40", "search", "0", "1/4", "0", "0", best[1]],
    ]
    assert "3 of 16 trials" in shown  # 4 of a search, 2 finalists and 2 seeds in each condition


def test_the_time_left_counts_running_trials_each_conditions_length_and_later_phases(tmp_path):
    stream = stream_of(begun(tmp_path, settings(f"4, {RANDOM}")))
    assert time_left(stream, 1.0) == {}  # nobody can know
    play(stream, 2, until=lambda: len(endings(stream.context.run)) == 3)  # .9 s each
    left = time_left(stream, stream.worked)  # as if one place had trained all
    trials = sum(line.expected for line in stream.lines)
    assert trials == 16
    running = sum(at.step / 45 for at in stream.at.values())
    assert sum(stream.at[trial].seconds for trial in stream.running) == pytest.approx(0.9 * running)
    assert max(left.values()) == pytest.approx(0.9 * (16 - 3 - running))
    half = time_left(stream, stream.worked / 2)  # two places
    assert max(half.values()) == pytest.approx(max(left.values()) / 2)
    console = Console(width=120, file=io.StringIO())
    console.print(LiveTable(stream, "search r", console).table())
    assert " of 45 " in console.file.getvalue() and " left" in console.file.getvalue()


def test_the_time_left_after_a_resume_counts_this_commands_own_work(tmp_path):
    run = begun(tmp_path, settings(f"4, {RANDOM}"))
    play(stream_of(run), until=lambda: len(endings(run)) == 3)
    stream = stream_of(run)
    assert stream.worked == 0 and time_left(stream, 5.0) == {}
    play(stream, until=lambda: len(endings(run)) == 4)
    assert stream.worked == pytest.approx(0.9)
    assert max(time_left(stream, 0.9).values()) == pytest.approx(0.9 * 12)


def test_a_resume_counts_what_ended_before_it(tmp_path):
    run = begun(tmp_path, settings(f"4, {RANDOM}"))
    stream = stream_of(run)
    play(stream, until=lambda: len(endings(run)) == 3)
    again: JobStream = stream_of(run)
    for before, now in zip(stream.lines, again.lines, strict=True):
        for name in ("title", "planned", "ended", "best"):
            assert getattr(now.progress, name) == getattr(before.progress, name)
