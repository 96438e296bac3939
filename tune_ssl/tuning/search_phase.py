"""The search of a condition, or the retuning of an ablation's rows: Optuna says what is next and what stops."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from tune_ssl.records import log
from tune_ssl.records.log import Record
from tune_ssl.search.condition import ConditionSearch
from tune_ssl.search.rebuild import read_values, recorded
from tune_ssl.search.samplers import why_stopped
from tune_ssl.tuning.job import Job
from tune_ssl.tuning.phase import Phase, RunContext

Row = tuple[str | None, dict[str, object], list[str]]  # variant, base config, retuned keys


class SearchPhase(Phase):
    """Draws trials from one Optuna study; of retuned rows each has its own, the least advanced comes first."""

    name, title = log.SEARCH, "search"

    def __init__(
        self, context: RunContext, index: int, searches: dict[str | None, ConditionSearch]
    ) -> None:
        super().__init__(context, index)
        self.searches = searches
        self.planned = sum(search.budget for search in searches.values())
        if None not in searches:
            self.name, self.title = log.RETUNE, "retune"

    def draw(self) -> Job | None:
        waiting = [search for search in self.searches.values() if search.remaining]
        if not waiting:
            return None
        search = min(waiting, key=lambda s: (not s.open, s.drawn))
        number, config = search.ask()
        seed = self.context.study.settings.tuning_seed
        return self.job(
            search.trial_name(number),
            config,
            seed,
            number,
            variant=search.variant,
            whole_at=search.compared_at,
        )

    def why_stop(self, job: Job, report: Record) -> str:
        value = report["result"].get(self.context.study.settings.metric)
        if value is None:  # a stage before the one that measures it
            value = report["stand_in"]
        if value is None or not math.isfinite(value):
            return ""
        search = self.searches[job.variant]
        stop = search.report(job.number, value, report["evaluation"])
        return why_stopped(search.settings) if stop else ""

    def ended(self, job: Job, status: str, value: float | None) -> None:
        self.searches[job.variant].tell(job.number, status, value)


def search_phases(
    context: RunContext, retuning: bool = False
) -> list[Callable[[], SearchPhase | None]]:
    """How each condition's search begins, in the order of the conditions; nothing where no row is retuned.

    What the records know of all searches is read here, once.
    """
    study, ledger = context.study, context.ledger
    rows: list[list[Row]] = [[(None, {}, [])] for _ in study.conditions]
    if retuning:
        plans = [ledger.planned.get(condition.id, {}) for condition in study.conditions]
        rows = [
            [(n, r["config"], r["retune"]) for n, r in plan.items() if r["retune"]]
            for plan in plans
        ]
    known = [
        {name: recorded(ledger, condition.id, name) for name, _, _ in own}
        for condition, own in zip(study.conditions, rows, strict=True)
    ]
    trials = (trial for own in known for by_number in own.values() for trial in by_number.values())
    read_values(context.run, study, trials)

    def begin(index: int) -> SearchPhase | None:
        searches = {
            name: ConditionSearch(
                context.run,
                study,
                index,
                study.conditions[index],
                known[index].pop(name),
                name,
                base,
                keys,
            )
            for name, base, keys in rows[index]
        }
        return SearchPhase(context, index, searches) if searches else None

    return [partial(begin, index) for index in range(len(study.conditions))]
