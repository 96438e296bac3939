"""Samplers and schedulers by name: known ones, classes by their dotted name, and one line for what is wrong."""

from __future__ import annotations

import pytest

from tune_ssl.base.spec import StudySpec
from tune_ssl.search.samplers import build_pruner, build_sampler
from tune_ssl.study.named import cautions, problems

SOUND = [
    *({"scheduler": name} for name in ("asha", "hyperband", "median", "percentile", "patient", "none")),
    {"scheduler": {"name": "percentile", "percentile": 40.0, "n_startup_trials": 2}},
    {"scheduler": {"name": "patient", "patience": 3, "min_delta": 0.01}},
    {"scheduler": "optuna.pruners.NopPruner"},
    {"scheduler": {"name": "optuna.pruners.WilcoxonPruner", "p_threshold": 0.2}},
    {"sampler": {"name": "tpe", "n_ei_candidates": 48}},
    {"sampler": "optuna.samplers.NSGAIISampler"},
    {"sampler": {"name": "optuna.samplers.TPESampler", "n_startup_trials": 3}},
    {"sampler": "optuna.samplers.BruteForceSampler"},
]  # fmt: skip


@pytest.mark.parametrize("given", SOUND, ids=str)
def test_what_is_found_sound_is_built(given):
    settings = StudySpec.model_validate(given)
    assert list(problems(settings)) == []
    build_pruner(settings, [12])
    build_sampler(settings, {}, 1, 0)


WRONG = [
    ({"scheduler": "ashe"}, "study.scheduler is 'ashe', but must be a known scheduler; did you mean 'asha'?"),
    ({"sampler": "tpo"}, "study.sampler is 'tpo', but must be a known sampler; did you mean 'tpe'?"),
    ({"scheduler": {"name": "median", "n_startup": 3}}, "has the argument 'n_startup', which median does not take"),
    ({"scheduler": {"name": "percentile", "percentile": 140.0}}, "'percentile', which refuses its arguments: Perc"),
    ({"scheduler": "optuna.pruners.NoPruner"}, "is 'optuna.pruners.NoPruner', but there is no such class here"),
    ({"scheduler": "no.such.Pruner"}, "is 'no.such.Pruner', but there is no such class here"),
    ({"sampler": "optuna.pruners.NopPruner"}, "is 'optuna.pruners.NopPruner', which is no BaseSampler of Optuna's"),
    ({"scheduler": "os.path.join"}, "is 'os.path.join', which is no BasePruner of Optuna's"),
    ({"scheduler": {"name": "asha", "factor": 2}}, "is 'asha', which takes no arguments: it has study.grace_period"),
]  # fmt: skip


@pytest.mark.parametrize("given, said", WRONG, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_one_line(given, said):
    [problem] = problems(StudySpec.model_validate(given))
    assert said in str(problem), str(problem)


def test_a_sampler_that_learns_from_finished_trials_only_is_warned_about_under_early_stopping():
    for sampler in ("gp", "cmaes", "optuna.samplers.NSGAIISampler"):
        [line] = cautions(StudySpec(sampler=sampler))
        assert line.startswith(f"study.sampler {sampler} learns from finished trials only")
        assert not list(cautions(StudySpec(sampler=sampler, scheduler="none")))
    for sampler in ("tpe", "qmc", "optuna.samplers.TPESampler"):
        assert not list(cautions(StudySpec(sampler=sampler)))
    assert not list(cautions(StudySpec(sampler="gp", searcher="random")))
