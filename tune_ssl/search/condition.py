"""One condition's search: an Optuna study in memory, rebuilt from the run's records when a run goes on.

Optuna decides which config is next and which trial is stopped early. It is told how each trial ended:
COMPLETE, PRUNED (stopped early, its low-fidelity value never counts as a result) or FAIL.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial

from tune_ssl.records import log
from tune_ssl.search.rebuild import Recorded, distribution, frozen, state_of
from tune_ssl.search.samplers import build_pruner, build_sampler, compared_at, rungs_of
from tune_ssl.study.domains import grid, trials_of
from tune_ssl.study.study import Condition, Study
from tune_ssl.study.trial import override


class ConditionSearch:
    """The trials of one condition: which are next, which run, and how they ended.

    An ablation's `variant` has a search of its own, over the keys that are `retuned` for it; `base`
    holds the others. Its first trial has the retuned keys' values in `base`.
    """

    def __init__(
        self,
        run: Path,
        study: Study,
        index: int,
        condition: Condition,
        known: Mapping[int, Recorded],
        variant: str | None = None,
        base: Mapping[str, Any] | None = None,
        retuned: Sequence[str] = (),
    ) -> None:
        self.index, self.variant = index, variant
        self.settings, self.base = study.settings, dict(base or {})
        own = condition.search
        domains = {key: own[key] for key in retuned} if variant else own
        self.kinds = {key: distribution(domain) for key, domain in domains.items()}
        self.budget = trials_of(self.settings.searcher, domains, self.settings.num_trials)
        self.points: list[dict[str, Any]] = []  # what the first trials are to be, by number
        if self.settings.searcher == "grid" and domains:
            self.points = grid(domains, self.settings.num_trials)
        elif variant and set(domains) <= set(self.base):
            self.points = [{key: self.base[key] for key in domains}]
        evaluations = override(condition.spec, self.base).evaluations()
        self.compared_at = compared_at(self.settings, evaluations)
        self.study = optuna.create_study(
            direction="maximize" if self.settings.mode == "max" else "minimize",
            pruner=build_pruner(self.settings, evaluations),
        )
        self.open: list[int] = []  # running when the driver ended, and those to be drawn again
        self.live: dict[int, optuna.Trial] = {}
        self.reported: dict[int, set[int]] = {}  # of the live ones
        self.drawn = 0  # trials with a number
        self.ended = 0
        self._load(run, known, rungs_of(self.settings, evaluations))

    def _load(self, run: Path, known: Mapping[int, Recorded], rungs: list[int]) -> None:
        for number in range(max(known, default=-1) + 1):
            one = known.get(number)
            if one is None:  # drawn, and never begun
                attrs = {"fixed_params": p} if (p := self._point(number)) else {}
                self.study.add_trial(create_trial(state=TrialState.WAITING, system_attrs=attrs))
                self.open.append(number)
                continue
            trial = frozen(run, one, self.kinds, rungs)
            self.study.add_trial(trial)
            self.ended += one.end is not None
            if one.end is None:
                self.open.append(number)
                stored = self.study.get_trials(deepcopy=False)[-1]
                self.live[number] = optuna.Trial(self.study, stored._trial_id)
                self.reported[number] = set(one.values)
        self.drawn = max(known, default=-1) + 1

    def _point(self, number: int) -> dict[str, Any] | None:
        return self.points[number] if number < len(self.points) else None

    @property
    def remaining(self) -> int:
        """Trials that `ask` can still give."""
        return len(self.open) + max(0, self.budget - self.drawn)

    def ask(self) -> tuple[int, dict[str, Any]]:
        """(number, config) of the next trial: first what a killed driver left, then new ones."""
        number = self.open.pop(0) if self.open else self.drawn
        self.drawn = max(self.drawn, number + 1)
        if number not in self.live:
            if number >= len(self.study.get_trials(deepcopy=False)) and (p := self._point(number)):
                self.study.enqueue_trial(p)
            seed = self.settings.tuning_seed + 7919 * self.index
            seed = (seed + zlib.crc32((self.variant or "").encode())) % 2**32
            self.study.sampler = build_sampler(self.settings, self.kinds, seed, number)
            self.live[number] = self.study.ask(self.kinds)
            self.reported[number] = set()
        return number, {**self.base, **self.live[number].params}

    def report(self, number: int, value: float, evaluation: int) -> bool:
        """Whether the pruner ends the trial. What a retry reports again was judged, but for the last one."""
        reported = self.reported[number]
        if evaluation not in reported:
            self.live[number].report(value, evaluation)
            reported.add(evaluation)
        return evaluation == max(reported) and self.live[number].should_prune()

    def tell(self, number: int, status: str, value: float | None) -> None:
        state, final = state_of(status, value)
        self.study.tell(self.live.pop(number), values=final, state=state)
        del self.reported[number]
        self.ended += 1

    def trial_name(self, number: int) -> str:
        row = f"{log.RETUNE}-{self.variant}-" if self.variant else ""
        return f"c{self.index}-{row}t{number:04d}"
