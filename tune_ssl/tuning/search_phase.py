"""The search of a condition, or the retuning of an ablation's rows: Optuna says what is next and what stops."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from tune_ssl.records import log
from tune_ssl.records.log import Record
from tune_ssl.search.condition import Asked, ConditionSearch
from tune_ssl.search.rebuild import Recorded, read_values, recorded
from tune_ssl.search.samplers import why_stopped
from tune_ssl.study.given import Given
from tune_ssl.tuning.job import Job
from tune_ssl.tuning.phase import Phase, RunContext

Row = tuple[str | None, dict[str, object], list[str]]  # variant, base config, retuned keys


class SearchPhase(Phase):
    """Draws trials from one Optuna study; of retuned rows each has its own, the least advanced comes first."""

    name, title = log.SEARCH, "search"

    def __init__(
        self,
        context: RunContext,
        index: int,
        searches: dict[str | None, ConditionSearch],
        later: int = 0,
    ) -> None:
        super().__init__(context, index)
        self.searches, self.later = searches, later
        self.planned = sum(search.budget for search in searches.values())
        self.finished_late: set[str] = set()  # stopped trials that are trained to their end
        if None not in searches:
            self.name, self.title = log.RETUNE, "retune"

    def draw(self) -> Job | None:
        if self.context.deadline.passed(self.later) or self.decided:
            return None
        waiting = [search for search in self.searches.values() if search.remaining]
        for search in sorted(waiting, key=lambda s: (not s.open, s.drawn)):
            while search.remaining:
                asked = search.ask()
                if asked is not None:
                    return self._job(search, asked)
                self._say_exhausted(search)
        return self._runner_up() if None in self.searches else None

    def _job(self, search: ConditionSearch, asked: Asked) -> Job:
        return self.job(
            search.trial_name(asked.number),
            asked.config,
            self.context.study.settings.tuning_seed,
            asked.number,
            given=asked.given,
            redrawn=asked.redrawn,
            variant=search.variant,
            whole_at=search.compared_at,
        )

    def counts(self, trial: str, start: Record) -> bool:
        return not start.get("repeats")

    @property
    def decided(self) -> bool:
        """Whether the condition's config is chosen, so that no more of its search counts."""
        return None in self.searches and self.condition.id in self.context.ledger.locked

    @property
    def undone(self) -> int:
        return 0 if self.decided else sum(search.remaining for search in self.searches.values())

    def _runner_up(self) -> Job | None:
        """A stopped trial to be finished, once all have ended and fewer have finished than are to be finalists."""
        context, search = self.context, self.searches[None]
        settings, ledger = context.study.settings, context.ledger
        if search.live or not self.later or settings.finalists == 1:
            return None
        wanted = min(settings.finalists, search.ended)
        running = self.finished_late - ledger.ended.keys()
        late = ledger.runners_up(self.condition.id, settings.mode, wanted - len(running))
        trial = next((t for t in late if t not in self.finished_late), None)
        if trial is None:
            return None
        if not self.finished_late:
            context.tell(
                f"{self.condition.id}: fewer trials finished than study.finalists ({settings.finalists}): the best of "
                "the stopped ones are trained to their end"
            )
        self.finished_late.add(trial)
        start = ledger.begun[trial]
        whole_at = search.compared_at
        return self.job(trial, start["config"], start["seed"], start["number"], whole_at=whole_at)

    def _say_exhausted(self, search: ConditionSearch) -> None:
        self.planned -= search.budget - search.drawn
        condition, ledger = self.condition.id, self.context.ledger
        if (condition, search.variant) in ledger.exhausted:
            return
        reason = (
            f"{search.drawn} of {search.budget} trials: no further config was found that was not tried already and "
            "whose values fit together"
        )
        event = {"event": log.EXHAUSTED, "phase": self.name, "trial": None, "reason": reason}
        self.context.writer.event({**event, "condition": condition, "variant": search.variant})
        self.context.tell(f"{condition}{f' {search.variant}' if search.variant else ''}: {reason}")

    def why_stop(self, job: Job, report: Record) -> str:
        value = report["result"].get(self.context.study.settings.metric)
        if value is None:  # a stage before the one that measures it
            value = report["stand_in"]
        if value is None or not math.isfinite(value):
            return ""
        search = self.searches[job.variant]
        if job.trial in self.context.ledger.late:  # it is being trained to its end
            return ""
        stop = search.report(job.number, value, report["evaluation"])
        return why_stopped(search.settings) if stop else ""

    def ended(self, job: Job, status: str, value: float | None) -> None:
        search = self.searches[job.variant]
        if job.number in search.live:
            search.tell(job.number, status, value)


def search_phases(
    context: RunContext,
    retuning: bool = False,
    later: Callable[[int], int] = lambda index: 0,
    again: bool = False,
) -> list[Callable[[], SearchPhase | None]]:
    """How each condition's search begins, in the order of the conditions; nothing where no row is retuned.

    What the records know of all searches is read here, once. `later` says how many jobs come after a condition's
    search, `again` that its failed trials are run once more.
    """
    study, ledger = context.study, context.ledger
    rows: list[list[Row]] = [[(None, {}, [])] for _ in study.conditions]
    if retuning:
        plans = [ledger.planned.get(condition.id, {}) for condition in study.conditions]
        rows = [
            [
                (n, r["config"], r["retune"])
                for n, r in plan.items()
                if r["retune"] and not ledger.row_has_begun(condition.id, n)
            ]
            for condition, plan in zip(study.conditions, plans, strict=True)
        ]
    known = [
        {name: recorded(ledger, condition.id, name) for name, _, _ in own}
        for condition, own in zip(study.conditions, rows, strict=True)
    ]
    trials = (trial for own in known for by_number in own.values() for trial in by_number.values())
    read_values(context.run, study, trials)
    if again:
        for condition, own in zip(study.conditions, known, strict=True):
            if condition.id in ledger.locked and not retuning:
                context.tell(
                    f"{condition.id}: its config is chosen, so that no failed trial of its search runs again"
                )
                continue
            _run_again(own)

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
                partial(winners_elsewhere, context, index),
            )
            for name, base, keys in rows[index]
        }
        return SearchPhase(context, index, searches, later(index)) if searches else None

    return [partial(begin, index) for index in range(len(study.conditions))]


def _run_again(known: Mapping[str | None, Mapping[int, Recorded]]) -> None:
    """Take failed trials for ones that have not ended."""
    for by_number in known.values():
        for trial in by_number.values():
            if trial.end is not None and trial.end["event"] == log.FAILED:
                trial.end = None
                trial.values.clear()


def winners_elsewhere(context: RunContext, index: int) -> list[Given]:
    """The configs that are decided for the method's other conditions, the nearest condition first."""
    conditions, locked = context.study.conditions, context.ledger.locked
    own = conditions[index]
    others = sorted(
        (abs(i - index), other.id)
        for i, other in enumerate(conditions)
        if i != index and other.method == own.method and other.id in locked
    )
    return [
        Given(
            f"the winner of {name}",
            {k: v for k, v in locked[name]["config"].items() if k in own.search},
        )
        for _, name in others
    ]
