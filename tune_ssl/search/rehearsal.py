"""A sampler and a pruner that somebody chose, tried before anything is trained: they may take no space of such keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tune_ssl.base.errors import Problem, UserError, first_line
from tune_ssl.records import log
from tune_ssl.study.named import name_of
from tune_ssl.study.study import Study

TRIALS = 12  # enough for a sampler to have learned from some
SIMPLE = ("tpe", "asha", "none", "median")  # without arguments they take any space


def refuse_unusable(study: Study) -> None:
    """UserError where a few trials that nobody trains make the study's sampler or scheduler fail."""
    settings = study.settings
    simple = [one in SIMPLE for one in (settings.sampler, settings.scheduler)]
    if all(simple) or (settings.searcher != "optuna" and simple[1]):
        return
    from tune_ssl.search.condition import ConditionSearch  # which loads optuna

    wanted = replace(study, settings=settings.model_copy(update={"num_trials": TRIALS}))
    for condition in {c.method: c for c in study.conditions}.values():
        search = ConditionSearch(Path(), wanted, 0, condition, {})
        key = "sampler"
        try:
            while (asked := search.ask()) is not None:
                key, ended = "scheduler", log.FINISHED
                for evaluation in range(1, sum(condition.spec.stage_evaluations())):
                    if search.report(asked.number, 1 / (1 + asked.number + evaluation), evaluation):
                        ended = log.STOPPED
                        break
                search.tell(asked.number, ended, float(asked.number))
                key = "sampler"
        except Exception as error:
            name = name_of(getattr(settings, key))
            why = first_line(error) or type(error).__name__
            text = f"is {name}, which fails on this space: {why}"
            place = study.file.where(("study", key))
            raise UserError(Problem(text, f"study.{key}", place)) from error
