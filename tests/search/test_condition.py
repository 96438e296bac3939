"""What a condition's search draws: nothing twice, nothing that does not fit, what is known first, failures as bad."""

from __future__ import annotations

import math

import pytest

from tests.support.runs import ablate_here, endings, events, write_study
from tests.support.studies import after, begun, broken, play, reports, stream_of
from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import StudySpec
from tune_ssl.records import log
from tune_ssl.records.domain import Domain
from tune_ssl.records.ledger import Ledger
from tune_ssl.runs.status import RunStatus
from tune_ssl.search import samplers
from tune_ssl.search.condition import ConditionSearch
from tune_ssl.search.rehearsal import refuse_unusable
from tune_ssl.search.samplers import HalvingPruner, rungs_of
from tune_ssl.study.given import Given
from tune_ssl.study.study import load_study
from tune_ssl.tuning.phase import Deadline

FIXED = """
fixed:
  data: {{dataset: digits, num_labels: 20, batch_size: 16}}
  model: {{feature_dim: 16, hidden_dim: 16}}
  method: {{name: {method}}}
  optim: {optim}
  budget: {{steps: 40, eval_every: 10}}
search: {search}
study: {{num_trials: {trials}, finalists: 1, seeds: [0], scheduler: none, {more}}}
"""
CHOICES = (
    "{optim.lr: {choice: [0.001, 0.002]}, method.labeled_view: {choice: [weak, strong, none]}}"
)


def study_of(folder, search, trials=16, more="", method="supervised", optim="{}"):
    text = FIXED.format(search=search, trials=trials, more=more, method=method, optim=optim)
    return write_study(folder, text)


def search_of(folder, search, trials=16, more="", winners=list, **rest):
    study = load_study(study_of(folder, search, trials, more, **rest))
    return ConditionSearch(folder, study, 0, study.conditions[0], {}, winners=winners)


def asked(search):
    found = []
    while (one := search.ask()) is not None:
        found.append(one)
    return found


# ---- copies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more", ["searcher: random", "sampler: tpe", "sampler: qmc", "sampler: cmaes", "searcher: grid"]
)
def test_each_config_of_a_small_space_is_tried_once_and_the_search_ends(tmp_path, more):
    search = search_of(tmp_path, CHOICES, more=more)
    configs = [str(sorted(one.config.items())) for one in asked(search)]
    assert len(configs) == len(set(configs)) == 6 and search.remaining == 0


def test_a_space_with_more_configs_than_trials_ends_with_its_trials(tmp_path):
    search = search_of(tmp_path, "{optim.lr: {choice: [0.001, 0.002, 0.004, 0.008]}}", trials=3)
    assert len(asked(search)) == 3


def test_each_combination_of_two_keys_is_a_config(tmp_path):
    heads = "{model.stem: {choice: [auto, small]}, model.head: {choice: [linear, mlp]}}"
    assert len(asked(search_of(tmp_path, heads, trials=9))) == 4


def test_configs_that_train_the_same_are_one_config(tmp_path):
    """1 and 1.0 are two choices of the file, and one learning rate."""
    search = search_of(tmp_path, "{optim.lr: {choice: [1, 1.0, 2.0]}}", trials=9)
    assert sorted(one.config["optim.lr"] for one in asked(search)) == [1, 2.0]


# ---- values that do not fit together -----------------------------------------------------------


def test_values_that_do_not_fit_together_are_drawn_again_and_not_charged(tmp_path):
    search = search_of(
        tmp_path,
        "{data.batch_size: {int: [32, 128]}, compute.accumulate: {choice: [1, 4]}}",
        trials=20,
        more="searcher: random",
    )
    found = asked(search)
    assert [one.number for one in found] == list(range(20))
    for one in found:
        assert one.config["data.batch_size"] % one.config["compute.accumulate"] == 0
    assert sum(one.redrawn for one in found) == sum(search.left_out.values()) > 0


def test_a_space_in_which_nothing_more_fits_ends_before_its_trials(tmp_path):
    search = search_of(
        tmp_path,
        "{data.batch_size: {choice: [24, 16]}, compute.accumulate: {choice: [1, 16]}}",
    )
    assert sorted(
        (c["data.batch_size"], c["compute.accumulate"]) for _, c, *_ in asked(search)
    ) == [
        (16, 1),
        (16, 16),
        (24, 1),
    ]


# ---- failures ----------------------------------------------------------------------------------


def share_that_diverges(folder, more, count=40):
    """Of a search whose optimum is at the edge of divergence: the better the rate, the nearer it is."""
    search = search_of(
        folder,
        "{optim.lr: {log_uniform: [1.0e-4, 1.0]}, optim.weight_decay: {log_uniform: [1.0e-5, 0.1]}}",
        trials=count,
        more=more,
    )
    bad = 0
    for one in asked_and_told(search, edge):
        bad += one == log.DIVERGED
    return bad / count


def edge(config):
    """(ending, value): better up to a rate of .01, and nothing beyond."""
    rate = math.log10(config["optim.lr"])
    return (log.FINISHED, 1 + rate / 4) if rate < -2 else (log.DIVERGED, None)


def asked_and_told(search, objective):
    while (one := search.ask()) is not None:
        status, value = objective(one.config)
        search.tell(one.number, status, value)
        yield status


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_sampler_learns_from_what_diverged(tmp_path, monkeypatch, sampler):
    seeds = range(5 if sampler == "tpe" else 1)
    count = 40 if sampler == "tpe" else 25

    def mean():
        shares = []
        for seed in seeds:
            folder = tmp_path / f"{seed}{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            more = f"sampler: {sampler}, start_from: [], tuning_seed: {seed + 7}"
            shares.append(share_that_diverges(folder, more, count))
        return sum(shares) / len(shares)

    told = mean()
    monkeypatch.setattr(samplers, "_went_bad", lambda trial: False)
    assert told < 0.75 * mean()


def test_what_diverged_is_no_result_and_no_value_of_the_study(tmp_path):
    search = search_of(tmp_path, "{optim.lr: {log_uniform: [1.0e-4, 1.0]}}", trials=8)
    list(asked_and_told(search, edge))
    states = {t.state.name for t in search.study.trials}
    assert states == {"COMPLETE", "FAIL"}
    assert all(t.value is None for t in search.study.trials if t.state.name == "FAIL")


# ---- what is known beforehand ------------------------------------------------------------------

RATE = "{optim.lr: {log_uniform: [1.0e-4, 1.0e-1]}, method.labeled_view: {choice: [none, strong]}}"


def test_the_first_trial_is_the_methods_own_config_as_far_as_the_space_has_it(tmp_path):
    first, second = asked(search_of(tmp_path, RATE, trials=2))
    assert first.given == "defaults" and first.config["optim.lr"] == 3e-3  # weak is no choice here
    assert second.given is None


def test_a_default_outside_a_domain_begins_at_its_nearest_value(tmp_path):
    search = search_of(
        tmp_path,
        "{optim.lr: {log_uniform: [1.0e-2, 1.0]}, data.batch_size: {int: [20, 60], step: 20}}",
    )
    assert search.ask().config == {"optim.lr": 0.01, "data.batch_size": 20}


def test_written_configs_come_first_in_their_order_and_winners_of_other_conditions_after_them(
    tmp_path,
):
    more = "start_from: [{optim.lr: 0.02, method.labeled_view: none}, defaults, winners]"
    found = asked(
        search_of(
            tmp_path,
            RATE,
            trials=5,
            more=more,
            winners=lambda: [
                Given("the winner of x", {"optim.lr": 0.05, "method.labeled_view": "none"})
            ],
        )
    )
    assert [one.given for one in found] == ["start_from", "defaults", "the winner of x", None, None]
    assert found[0].config == {"optim.lr": 0.02, "method.labeled_view": "none"}
    assert found[2].config["optim.lr"] == 0.05


def test_a_given_config_that_was_tried_is_not_tried_again(tmp_path):
    more = "start_from: [defaults, {optim.lr: 0.003}]"
    found = asked(
        search_of(tmp_path, "{optim.lr: {log_uniform: [1.0e-4, 1.0e-1]}}", trials=3, more=more)
    )
    assert [one.given for one in found] == ["defaults", None, None]


def test_the_records_say_which_trial_was_given(tmp_path):
    run = begun(tmp_path)
    play(stream_of(run))
    ledger = Ledger.read(run)
    assert {t: e["given"] for t, e in ledger.begun.items() if "given" in e} == {
        "c0-t0000": "defaults",
        "c1-t0000": "defaults",
    }


@pytest.mark.parametrize(
    "start, said",
    [
        ("[{optim.le: 1}]", "study.start_from is 'optim.le', but must be a known searched key; did you"),
        ("[{optim.lr: 7.0}]", "study.start_from has optim.lr: 7.0, which is outside {log_uniform: [0.0001, 0.1]}"),
        ("[{}]", "study.start_from is {}, whose keys no method searches together"),
    ],
)  # fmt: skip
def test_a_wrong_start_is_one_line(tmp_path, start, said):
    with pytest.raises(UserError) as refused:
        load_study(study_of(tmp_path, RATE, more=f"start_from: {start}"))
    [problem] = refused.value.problems
    assert f"study.yaml:9: {said}" in str(problem)


# ---- keys that are active only with others -----------------------------------------------------

SOMETIMES = (
    "{optim.name: {choice: [sgd, adamw]}, optim.momentum: {uniform: [0.5, 0.95], when: {optim.name: sgd}}, "
    "optim.lr: {log_uniform: [1.0e-4, 1.0e-1]}}"
)


@pytest.mark.parametrize(
    "more", ["sampler: tpe", "searcher: random", "searcher: grid", "sampler: qmc"]
)
def test_an_inactive_key_is_in_no_config(tmp_path, more):
    search = search_of(tmp_path, SOMETIMES, trials=24, more=more)
    found = []
    while (one := search.ask()) is not None:
        found.append(one.config)
        search.tell(one.number, log.FINISHED, one.config["optim.lr"])
    assert {("optim.momentum" in c) == (c["optim.name"] == "sgd") for c in found} == {True}
    assert {c["optim.name"] for c in found} == {"sgd", "adamw"}


def test_a_grid_has_a_point_for_each_active_value_alone(tmp_path):
    space = SOMETIMES.replace("{log_uniform: [1.0e-4, 1.0e-1]}", "{choice: [0.001, 0.01]}")
    search = search_of(tmp_path, space, trials=8, more="searcher: grid")
    assert (
        len(asked(search)) == 2 * 2 + 2
    )  # sgd with two momenta and two rates, adamw with two rates


NAMES = (
    "{optim.momentum: {uniform: [0.5, 0.9], when: {NAME: sgd}}, optim.name: {choice: [sgd, adam]}}"
)


@pytest.mark.parametrize(
    "space, said",
    [
        (NAMES.replace("NAME: sgd", "optim.nam: sgd"), "names optim.nam, which is not searched; did you mean"),
        (NAMES.replace("NAME: sgd", "optim.name: rms"), "is optim.name: 'rms', which optim.name never is"),
        ("{optim.momentum: {uniform: [0.5, 0.9], when: 3}}", "must map searched keys to values"),
        (
            "{optim.momentum: {choice: [0.5, 0.9], when: {optim.nesterov: true}}, "
            "optim.nesterov: {choice: [true, false], when: {optim.momentum: 0.9}}}",
            "active only with each other",
        ),
    ],
)  # fmt: skip
def test_a_wrong_when_is_one_line(tmp_path, space, said):
    with pytest.raises(UserError) as refused:
        load_study(study_of(tmp_path, space))
    [problem] = refused.value.problems
    assert said in str(problem) and "study.yaml:" in problem.where, str(problem)


# ---- what may share a search -------------------------------------------------------------------


@pytest.mark.parametrize("key", ["{method.init: {choice: [pretrained, random]}}"])
def test_trials_of_other_stages_never_share_a_search(tmp_path, key):
    with pytest.raises(UserError, match="only trials with equal budgets can be compared"):
        load_study(study_of(tmp_path, key, method="simclr"))


def test_stages_of_other_names_and_equal_steps_may(tmp_path):
    load_study(
        study_of(tmp_path, "{method.transfer: {choice: [finetune, linear_probe]}}", method="simclr")
    )


# ---- early stopping ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, stages, rungs",
    [
        ({"grace_period": 0.25}, [12], [3]),  # the next one, at 9, would leave a quarter of the trial
        ({"grace_period": 0.1}, [20], [2, 6]),
        ({"grace_period": 0.5, "reduction_factor": 2}, [12], [6]),
        ({"grace_period": 0.25, "reduction_factor": 2}, [4, 8], [3, 4]),  # 6 is in the new stage's first quarter
        ({"grace_period": 1.0}, [10], []),
        ({}, [1], []),
    ],
)  # fmt: skip
def test_rungs_are_where_they_save_what_they_cost(given, stages, rungs):
    assert rungs_of(StudySpec(**given), stages) == rungs


def test_the_default_rungs_leave_at_least_a_third_of_a_trial_to_be_saved():
    for evaluations in range(1, 200):
        rungs = rungs_of(StudySpec(), [evaluations])
        assert all(
            0 < rung <= max(1, math.ceil(2 * evaluations / 3)) < evaluations + 1 for rung in rungs
        )
        assert rungs or evaluations == 1


def test_successive_halving_keeps_the_best_of_those_that_were_at_the_rung(tmp_path):
    import optuna

    study = optuna.create_study(direction="maximize", pruner=HalvingPruner([2], 3))
    verdicts = []
    for value in (0.5, 0.4, 0.6, 0.55, 0.7, 0.65, 0.62, 0.3):
        trial = study.ask()
        trial.report(0.0, 1)
        assert not trial.should_prune()
        trial.report(value, 2)
        verdicts.append(trial.should_prune())
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    # the best of fewer than 6; of 6 and more the best two
    assert verdicts == [False, True, False, True, False, False, True, True]


RUSHED = """
fixed:
  data: {dataset: digits, num_labels: 20, batch_size: 16}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: supervised}
  budget: {steps: 40, eval_every: 5}
search: {optim.lr: {log_uniform: [1.0e-4, 1.0e-1]}}
study: {num_trials: 9, finalists: 8, seeds: [0], grace_period: 0.25, reduction_factor: 4}
"""


def finished_trials(run):
    trials = Ledger.read(run).trials("all", log.SEARCH)
    return [name for name, _, end in trials if end and end["event"] == log.FINISHED]


def test_where_too_few_finish_the_best_of_the_stopped_ones_are_trained_to_their_end(tmp_path):
    run, said = begun(tmp_path, RUSHED), []
    play(stream_of(run, said), slots=3)
    stopped = {e["trial"] for e in events(run) if e["event"] == log.STOPPED}
    late = stopped & set(finished_trials(run))
    ledger = Ledger.read(run)
    assert late == set(ledger.late)
    for trial in late:  # both trainings are paid for
        own = [e for e in events(run) if e["trial"] == trial and e["event"] in log.ENDINGS]
        assert ledger.ended[trial]["seconds"] == pytest.approx(sum(e["seconds"] for e in own))
        assert ledger.ended[trial]["images_seen"] == sum(e["images_seen"] for e in own)
    assert len(finished_trials(run)) == 8 and late
    assert any("the best of the stopped ones are trained to their end" in line for line in said)
    assert len(Ledger.read(run).finalists("all", "max", 8)) == 8


def test_a_search_that_is_killed_over_and_over_finishes_its_runners_up_too(tmp_path):
    run = begun(tmp_path, RUSHED)
    for _ in range(80):
        stream = stream_of(run)
        play(stream, slots=2, until=after(25))
        if stream.over:
            break
    stops = [e["trial"] for e in events(run) if e["event"] == log.STOPPED]
    assert len(stops) == len(set(stops)), "one that is trained to its end is not judged again"
    assert stream.over and not Ledger.read(run).open_trials()
    assert len(finished_trials(run)) == 8
    assert set(endings(run).values()) <= {log.FINISHED, log.STOPPED}


def test_failed_trials_are_run_again_where_that_is_asked(tmp_path):
    run = begun(
        tmp_path, RUSHED.replace("num_trials: 9, finalists: 8", "num_trials: 5, finalists: 1")
    )

    def work(job):
        if job.number in (1, 3) and not healed:
            yield broken()
        else:
            yield from reports(job)

    healed = False
    play(stream_of(run, confirm=False), work=work)
    assert [endings(run)[f"c0-t000{n}"] for n in (1, 3)] == [log.FAILED] * 2
    configs = {t: e["config"] for t, e in Ledger.read(run).begun.items()}
    healed = True
    play(stream_of(run, confirm=False), work=work)  # without being asked, nothing is
    assert endings(run)["c0-t0001"] == log.FAILED
    play(stream_of(run, confirm=False, again=True), work=work)
    assert log.FAILED not in endings(run).values()
    assert {t: e["config"] for t, e in Ledger.read(run).begun.items()} == configs


def test_a_time_budget_begins_nothing_more_keeps_what_runs_and_says_what_is_left(tmp_path):
    run, said = (
        begun(tmp_path, RUSHED.replace("num_trials: 9", "num_trials: 9, time_budget: 600")),
        [],
    )
    stream = stream_of(run, said)
    running = play(stream, slots=2, until=after(20))
    assert running
    stream.context.deadline.ends = 0.0  # now
    for job in running:
        for report in reports(job):
            if stream.report(job, log.plain(report)):
                break
    assert stream.next() is None and stream.over
    ledger = Ledger.read(run)
    assert not ledger.open_trials() and {c["phase"] for c in ledger.cut} >= {log.SEARCH}
    left = 9 - sum(1 for _ in ledger.trials("all", log.SEARCH))
    assert any(f"study.time_budget (600 min) is over, trials not begun: {left}" in s for s in said)
    assert not ledger.locked  # nothing is chosen for which no time is left to confirm it
    play(stream_of(run), slots=2)  # it goes on, and then nothing is cut any more
    assert Ledger.read(run).cut == [] and len(Ledger.read(run).locked) == 1


def test_a_search_with_a_time_budget_leaves_time_for_what_comes_after_it():
    deadline = Deadline(1.0)
    assert not deadline.passed() and not deadline.passed(later=10)  # nothing is known yet
    deadline.finished += [10.0, 14.0]
    assert not deadline.passed() and deadline.passed(later=5)  # 12 s each, one after the other
    deadline.places = 5
    assert not deadline.passed(later=5)


# ---- what somebody chose is tried first ----------------------------------------------------------


@pytest.mark.parametrize(
    "more, said",
    [
        ("sampler: {name: tpe, group: true}", "study.sampler is tpe, which fails on this space: AssertionError"),
        ("sampler: {name: tpe, gamma: 3}", "study.sampler is tpe, which fails on this space: "),
        ("sampler: {name: cmaes, popsize: 0}", "study.sampler is cmaes, which fails on this space: "),
        ("scheduler: {name: hyperband, min_resource: x}", "study.scheduler is hyperband, which fails on this space: "),
        ("sampler: {name: optuna.samplers.PartialFixedSampler, fixed_params: {}, base_sampler: tpe}", "which fails on"),
    ],
)  # fmt: skip
def test_a_sampler_or_a_pruner_that_fails_on_the_space_is_refused_before_anything_is_trained(
    tmp_path, more, said
):
    body = RUSHED.replace("seeds: [0]", f"seeds: [0], {more}")
    study = load_study(write_study(tmp_path, body))
    with pytest.raises(UserError) as refused:
        refuse_unusable(study)
    [problem] = refused.value.problems
    assert said in str(problem) and "study.yaml:" in problem.where


@pytest.mark.parametrize(
    "more",
    [
        *("sampler: gp", "sampler: cmaes", "scheduler: hyperband", "scheduler: patient"),
        "sampler: {name: tpe, n_ei_candidates: 10}",
        "sampler: optuna.samplers.NSGAIISampler, scheduler: none",
    ],
)
def test_one_that_works_is_not(tmp_path, more):
    refuse_unusable(
        load_study(write_study(tmp_path, RUSHED.replace("seeds: [0]", f"seeds: [0], {more}")))
    )


def test_the_seed_of_a_sampler_is_the_studys(tmp_path):
    body = RUSHED.replace("seeds: [0]", "seeds: [0], sampler: {name: tpe, seed: 3}")
    with pytest.raises(UserError, match="has a seed, but study.tuning_seed is where it is set"):
        load_study(write_study(tmp_path, body))


# ---- what is tuned again for a row of an ablation ------------------------------------------------

ROWS = """
fixed:
  data: {dataset: digits, num_labels: 20, batch_size: 16}
  model: {feature_dim: 16, hidden_dim: 16}
  method: {name: supervised}
  optim: {name: sgd}
  budget: {steps: 20, eval_every: 5}
search:
  optim.name: {choice: [sgd, adamw]}
  optim.momentum: {uniform: [0.5, 0.9], when: {optim.name: sgd}}
  optim.lr: {log_uniform: [1.0e-3, 1.0e-1]}
ablate:
  sgd: {optim.name: sgd, model.feature_dim: 8, retune: [optim.momentum]}
  adam: {optim.name: adamw, model.feature_dim: 8, retune: [optim.momentum, optim.lr]}
study: {num_trials: 2, searcher: random, scheduler: none, finalists: 1, seeds: [0]}
"""


def test_a_row_tunes_again_the_keys_that_are_active_in_it_and_stands_once_it_is_trained(tmp_path):
    run = begun(tmp_path, ROWS)
    play(stream_of(run))
    ablate_here(run, dry=True)
    planned = Ledger.read(run).planned["all"]
    assert (planned["sgd"]["retune"], planned["adam"]["retune"]) == (
        ["optim.momentum"],
        ["optim.lr"],
    )
    play(stream_of(run, ablation=True))
    tuned = [s for _, s, _ in Ledger.read(run).trials("all", log.RETUNE)]
    own = [s for s in tuned if s["variant"] == "sgd"]
    assert len(own) == 2 and len({s["config"]["optim.momentum"] for s in own}) == 2
    assert RunStatus.read(run).in_words(False) == "ablated"
    path = run.parents[1] / "study.yaml"
    path.write_text(path.read_text().replace("num_trials: 2", "num_trials: 5"))
    play(
        stream_of(run, ablation=True)
    )  # more trials for a search are none for a row that is trained
    assert len([*Ledger.read(run).trials("all", log.RETUNE)]) == len(tuned)


def test_a_trial_that_is_cut_is_the_cause_where_nothing_could_be_chosen(tmp_path):
    run = begun(tmp_path, RUSHED)

    def work(job):
        yield {"status": log.STOPPED, "reason": f"{log.TOO_LONG} (0.1) at step 5", "step": 5}

    play(stream_of(run), work=work)
    assert (
        Ledger.read(run)
        .first_failure(log.SEARCH)
        .endswith("longer than budget.max_minutes (0.1) at step 5")
    )


@pytest.mark.parametrize("low, high", [(0.1, 0.7), (0.0, 0.3), (0.0, 0.9)])
def test_the_last_step_of_a_domain_is_its_end(low, high):
    domain = Domain("uniform", (low, high), 0.1)
    assert domain.all()[-1] == domain.nearest(5.0) == domain.grid(4)[-1] == high
    assert all(value in domain for value in domain.all()) and len(domain.all()) == domain.count


def test_what_was_given_before_a_kill_is_not_given_again(tmp_path):
    space = "{data.batch_size: {choice: [128, 256]}, optim.lr: {log_uniform: [1.0e-4, 1.0e-1]}}"
    more = "searcher: random, start_from: [defaults, {optim.lr: 0.01}]"  # 32 is no choice
    body = FIXED.format(search=space, trials=6, more=more, method="supervised", optim="{}")
    whole = begun(tmp_path / "whole", body)
    play(stream_of(whole, confirm=False))
    killed = begun(tmp_path / "killed", body)
    for _ in range(12):
        play(stream_of(killed, confirm=False), until=after(12))
    configs = [
        {t: (e.get("given"), e["config"]) for t, e in Ledger.read(run).begun.items()}
        for run in (whole, killed)
    ]
    assert configs[0] == configs[1]
    assert [configs[0][f"c0-t000{n}"][0] for n in range(3)] == ["defaults", "start_from", None]


def test_a_large_factor_has_its_rung_at_a_quarter_and_not_at_once():
    assert rungs_of(StudySpec(reduction_factor=8), [20]) == [5]


def test_a_default_that_is_another_kind_of_number_is_found_among_the_choices(tmp_path):
    search = search_of(tmp_path, "{losses.supervised.weight: {choice: [3, 1]}}", trials=2)
    assert search.ask() == (0, {"losses.supervised.weight": 1}, "defaults", 0)
