"""One search whose worker, driver and machine are killed, and which ends as if nothing had happened."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.runs import (
    descendants,
    endings,
    events,
    finish,
    kill_all,
    run_here,
    start,
    trial_workers,
    wait_for,
    write_study,
)
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger, latest_reports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# simclr, so that a worker that is killed may hold the lock of a network that others wait for.
STUDY = """
fixed:
  data: {dataset: digits, batch_size: 8, mu: 1}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: simclr, projector_hidden: 16, projector_dim: 16}
  budget: {steps: {pretrain: 80, finetune: 160}, eval_every: 20}
conditions:
  data.num_labels: [20, 40]
search:
  optim.finetune.lr: {log_uniform: [1e-4, 1e-1]}
study:
  {num_trials: 3, searcher: random, scheduler: none, finalists: 2, finalist_seeds: [1001], seeds: [0],
   checkpoint_seconds: 0, max_concurrent: 2, start_from: [defaults]}  # which condition is done first is chance
"""
STEPS = list(range(20, 241, 20))


class Killed(NamedTuple):
    """`found` is what each resume said first, by what had been killed; `before` what had ended then."""

    run: Path
    shelves: int
    victim: str
    found: dict[str, list[str]]
    before: dict[str, dict[str, str]]
    sigterm: tuple[int, str, str]


def midway(run, first=40, last=180):
    """Trials that have reported these steps, and have much left to do."""
    steps = {line["trial"]: line["step"] for line in log.read(run / log.HISTORY)}
    ended = endings(run)
    return [t for t, step in steps.items() if t not in ended and first <= step <= last]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    run, cache = folder / "runs" / "k", folder / "cache"
    found, before = {}, {}

    def resume():
        return start(folder, "search", "--resume", "k", "--no-report")

    def over(process, what):
        """The process was killed; the run as it is, taken up again."""
        process.communicate()
        before[what] = endings(run)
        return resume()

    def fine_tunes(count):
        """More than so many trials have ended, and one has a checkpoint: what is taken from a cache has none."""
        return lambda: len(endings(run)) > count and bool(midway(run, first=120))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNE_SSL_CACHE", str(cache))
        study = write_study(folder, STUDY)
        process = start(folder, "search", study, "--name", "k", "--no-report")
        # The worker that pretrains for both conditions dies: another one pretrains on.
        wait_for(process, lambda: bool(midway(run)) and bool(trial_workers(process.pid)))
        [victim] = midway(run)
        os.kill(trial_workers(process.pid)[0], signal.SIGKILL)
        # The driver dies, and so do its workers. A power cut tears what was written last.
        wait_for(process, lambda: victim in endings(run) and fine_tunes(0)())
        os.kill(process.pid, signal.SIGKILL)
        process = over(process, "driver")
        wait_for(process, fine_tunes(len(before["driver"])))
        kill_all([process.pid, *descendants(process.pid)])
        with (run / log.HISTORY).open("a") as file:
            file.write('{"torn')
        found["driver"] = process.stdout.read().splitlines()
        process = over(process, "power")
        wait_for(process, fine_tunes(len(before["power"])))
        process.send_signal(signal.SIGTERM)  # a batch system's
        sigterm = finish(process, timeout=60)
        found["power"] = sigterm[1].splitlines()
        code, out, err = finish(resume())
        assert code == 0, out + err
        found["sigterm"] = out.splitlines()
    shelves = len([path for path in (cache / "pretrained").iterdir() if path.is_dir()])
    return Killed(run, shelves, victim, found, before, sigterm)


def said(run) -> Any:
    """All that the records say of each trial and of its reports, but the time."""
    history = latest_reports(log.read(run / log.HISTORY))
    keys = ("event", "step", "value", "metrics", "images_seen", "reason")
    return (
        {(r["trial"], r["step"]): r["metrics"] for r in history},
        {t: [e[key] for key in keys] for t, e in Ledger.glance(run).ended.items()},
        {c: e["trial"] for c, e in Ledger.glance(run).locked.items()},
    )


def test_a_killed_workers_trial_runs_again_from_its_checkpoint(killed):
    mine = [e["event"] for e in events(killed.run) if e["trial"] == killed.victim]
    assert mine == [log.STARTED, log.RESUMED, log.FINISHED]
    steps = [r["step"] for r in log.read(killed.run / log.HISTORY) if r["trial"] == killed.victim]
    assert steps.count(STEPS[0]) == 1 and sorted(set(steps)) == STEPS


def test_a_killed_drivers_trials_go_on_from_their_checkpoints(killed):
    begun = [e for e in events(killed.run) if e["event"] in log.BEGINNINGS]
    afresh = Counter(e["trial"] for e in begun if e["event"] == log.STARTED)
    resumed = {e["trial"] for e in begun if e["event"] == log.RESUMED and afresh[e["trial"]] == 1}
    assert len(resumed) > 1  # the killed worker's and others
    first = [r["trial"] for r in log.read(killed.run / log.HISTORY) if r["step"] == STEPS[0]]
    assert all(first.count(trial) == 1 for trial in resumed)


def test_a_resume_says_what_it_found(killed):
    for what, lines in killed.found.items():
        ended = killed.before.get(what)
        if ended is not None:
            searched = sum("-t" in trial for trial in ended)
            assert lines[0].startswith(f"k: searched {searched} of 6"), what
        assert re.match(r"k: (1 trial was|\d+ trials were) running: ", lines[1]), what
        assert "go on from a checkpoint" in lines[1], what
    assert killed.found["power"][2] == "k: 1 torn lines of its records are dropped"


def test_sigterm_ends_a_run_in_order(killed):
    code, out, err = killed.sigterm
    assert code == 130, out + err
    assert err == "interrupted; what is finished is kept. Go on with: tune-ssl search --resume k\n"


def test_every_trial_ends_once_and_no_finished_one_is_run_again(killed):
    ended = [e["trial"] for e in events(killed.run) if e["event"] in log.ENDINGS]
    assert len(ended) == len(set(ended)) == 2 * (3 + 2 + 1)
    for what, before in killed.before.items():
        assert before.items() <= endings(killed.run).items(), what
    begun = [e for e in events(killed.run) if e["event"] in log.BEGINNINGS]
    last = {e["trial"]: e["time"] for e in begun}
    for trial, end in Ledger.glance(killed.run).ended.items():
        assert end["event"] == log.FINISHED and last[trial] < end["time"]


def test_its_values_are_those_of_an_undisturbed_search_without_the_cache_to_the_last_digit(
    killed, tmp_path
):
    body = STUDY.replace("conditions:", "  compute: {cache: false}\nconditions:")
    assert said(killed.run) == said(run_here(tmp_path, body))


def test_it_pretrains_once_per_seed_whatever_is_killed(killed):
    assert killed.shelves == 3  # of the seeds 1000, 1001 and 0, for both conditions and all trials
