"""One condition's search: an Optuna study in memory, rebuilt from the run's records when a run goes on.

Optuna decides which config is next and which trial is stopped early. It is told how each trial ended:
COMPLETE, PRUNED (stopped early, its low-fidelity value never counts as a result) or FAIL.
"""

from __future__ import annotations

import zlib
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import TrialState, create_trial

from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import digest
from tune_ssl.records import log
from tune_ssl.records.domain import alone, in_order
from tune_ssl.search.rebuild import Recorded, distribution, frozen, state_of
from tune_ssl.search.samplers import (
    AsSampled,
    build_pruner,
    build_sampler,
    compared_at,
    keeps_notes,
)
from tune_ssl.study.domains import MOST_LISTED, every_config, grid, trials_of
from tune_ssl.study.given import WINNERS, Given, fitted, from_start
from tune_ssl.study.named import learns_early
from tune_ssl.study.study import Condition, Study
from tune_ssl.study.trial import TrialSpec, override

DRAWS = 30  # of the sampler for one trial, before configs are drawn at random
RANDOM_DRAWS = 200
UNFIT, COPY = "do not fit together", "were tried already"


class Asked(NamedTuple):
    """The next trial. `given` says where its config comes from, if the sampler did not draw it."""

    number: int
    config: dict[str, Any]
    given: str | None
    redrawn: int  # draws that were left out before it


class ConditionSearch:
    """The trials of one condition: which are next, which run, and how they ended.

    An ablation's `variant` has a search of its own, over the keys that are `retuned` for it; `base`
    holds the others. Its first trial has the retuned keys' values in `base`. `winners` gives the configs that
    other conditions of the method have been decided for, to be tried here too.
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
        winners: Callable[[], list[Given]] = list,
    ) -> None:
        self.index, self.variant, self.winners = index, variant, winners
        self.settings, self.base = study.settings, dict(base or {})
        own = condition.search
        self.domains = alone(own, retuned) if variant else own
        self.kinds = {key: distribution(domain) for key, domain in self.domains.items()}
        self.order = in_order(self.domains)
        self.always = {key: self.kinds[key] for key in self.order if not self.domains[key].when}
        seed = self.settings.tuning_seed + 7919 * index + zlib.crc32((variant or "").encode())
        self.seed = seed % 2**32
        self.budget = trials_of(self.settings.searcher, self.domains, self.settings.num_trials)
        self.spec: TrialSpec = override(condition.spec, self.base)
        self.points: deque[Given] = deque()  # what the first trials are to be
        if self.settings.searcher == "grid" and self.domains:
            every = grid(self.domains, self.settings.num_trials)
            self.points.extend(Given("", config) for config in every)
        elif variant and set(self.domains) <= set(self.base):
            own_values = {key: self.base[key] for key in self.domains}
            self.points.append(Given(log.REFERENCE, own_values))
        elif not variant:
            self.points.extend(from_start(self.settings, condition))
        stages = self.spec.stage_evaluations()
        self.compared_at = compared_at(self.settings, stages)
        self.study = optuna.create_study(
            study_name=self.trial_name(0),
            direction="maximize" if self.settings.mode == "max" else "minimize",
            sampler=optuna.samplers.RandomSampler(),  # what is drawn comes from `_draw`
            pruner=build_pruner(self.settings, stages),
        )
        self.open: list[int] = []  # running when the driver ended, and those to be drawn again
        self.ids: dict[int, int] = {}  # number -> Optuna's id
        self.live: dict[int, optuna.Trial] = {}
        self.reported: dict[int, set[int]] = {}  # of the live ones
        self.seen: set[str] = set()  # digests of the specs that were tried
        self.left_out: Counter[str] = Counter()  # why a draw was not tried -> how often
        self.drawn = 0  # trials with a number
        self.ended = 0
        self.exhausted = False  # no further config was found
        self._load(run, known)
        for one in known.values():  # what was given already is not given again
            given = one.start.get("given")
            tried = next((point for point in self.points if given and point.source == given), None)
            if tried is not None:
                self.points.remove(tried)

    def _load(self, run: Path, known: Mapping[int, Recorded]) -> None:
        notes = keeps_notes(self.settings)
        for number in range(max(known, default=-1) + 1):
            one = known.get(number)
            if one is None:  # drawn, and never begun
                self._add(number, create_trial(state=TrialState.RUNNING))
                self.open.append(number)
                continue
            self.seen.add(one.start["digest"])
            self._add(number, frozen(run, one, self.kinds, running=notes))
            self.ended += one.end is not None
            if one.end is None:
                self.open.append(number)
                self._go_live(number, set(one.values))
        self.drawn = max(known, default=-1) + 1
        if notes:
            self._repeat_reports(known)

    def _repeat_reports(self, known: Mapping[int, Recorded]) -> None:
        """Let the pruner write its notes again, report by report in their order, and end what has ended."""
        trials = {number: optuna.Trial(self.study, self.ids[number]) for number in known}
        reports = [
            (one.times[evaluation], number, evaluation, value)
            for number, one in known.items()
            for evaluation, value in one.values.items()
        ]
        for _, number, evaluation, value in sorted(reports):
            trials[number].report(value, evaluation)
            trials[number].should_prune()
        for number, one in known.items():
            if one.end is None:
                self.live[number] = trials[number]
            else:
                state, final = state_of(one.end["event"], one.end["value"])
                self.study.tell(trials[number], values=final, state=state)

    def _add(self, number: int, trial: optuna.trial.FrozenTrial) -> None:
        self.study.add_trial(trial)
        self.ids[number] = self.study.get_trials(deepcopy=False)[-1]._trial_id

    def _go_live(self, number: int, reported: set[int]) -> None:
        self.live[number] = optuna.Trial(self.study, self.ids[number])
        self.reported[number] = reported

    @property
    def remaining(self) -> int:
        """Trials that `ask` can still give, unless no further config is found."""
        return len(self.open) + (0 if self.exhausted else max(0, self.budget - self.drawn))

    def ask(self) -> Asked | None:
        """The next trial: first what a killed driver left, then new ones. None where no config is left.

        A config that does not fit together, or that was tried already, is drawn again, and is not charged.
        """
        if not self.remaining:
            return None
        again = bool(self.open)
        number = self.open.pop(0) if again else self.drawn
        if number in self.live:
            return Asked(number, {**self.base, **self.live[number].params}, None, 0)
        if not again:
            self.ids[number] = self.study.ask()._trial_id
        before = self.left_out.total()
        found = self._next(number)
        if found is None:
            self.exhausted = True
            self.study.tell(optuna.Trial(self.study, self.ids[number]), state=TrialState.FAIL)
            return None
        self.drawn = max(self.drawn, number + 1)
        for key, value in found.config.items():
            kind = self.kinds[key]
            internal = kind.to_internal_repr(value)
            self.study._storage.set_trial_param(self.ids[number], key, internal, kind)
        self._go_live(number, set())
        config = {**self.base, **self.live[number].params}
        return Asked(number, config, found.source or None, self.left_out.total() - before)

    def _next(self, number: int) -> Given | None:
        """A config that has not been tried and fits: a given one, one of the sampler's, or any that is left."""
        if not self.domains:
            return Given("", {})
        while self.points:  # one that was tried, or does not fit, never will be next
            given = self.points.popleft()
            if config := self._given(number, given):
                return Given(given.source, config)
        asked = not self.variant and WINNERS in self.settings.start_from
        for given in self.winners() if asked else ():
            if config := self._given(number, given):
                return Given(given.source, config)
        if self.settings.searcher == "grid":
            return None
        for draw in range(DRAWS + RANDOM_DRAWS):
            config = self._draw(number, draw, {})
            if self._take(config):
                return Given("", config)
        every = every_config(self.domains, MOST_LISTED) or []
        left = next((config for config in every if self._take(config, count=False)), None)
        return None if left is None else Given("", left)

    def _given(self, number: int, given: Given) -> dict[str, Any]:
        """A given config as it is tried: inside the domains, what it leaves open drawn. Empty if it is not tried."""
        config = fitted(self.domains, given.config)
        if set(config) < set(self.domains):
            config = self._draw(number, 0, config)
        return config if self._take(config, count=False) else {}

    def _draw(self, number: int, draw: int, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """A config for the trial, with the values of `fixed`; the inactive keys are not in it."""
        settings = self.settings
        if draw >= DRAWS:
            settings = settings.model_copy(update={"searcher": "random"})
        sampler = build_sampler(settings, self.always, self.seed, number, draw)
        study = AsSampled(self.study, learns_early(settings.sampler))
        trial = self.study._storage.get_trial(self.ids[number])
        sampler.before_trial(study, trial)
        space = sampler.infer_relative_search_space(study, trial)
        values = sampler.sample_relative(study, trial, space)
        config: dict[str, Any] = {}
        for key in self.order:
            if not self.domains[key].active_in(config):
                continue
            kind = self.kinds[key]
            if key in fixed:
                config[key] = fixed[key]
            elif kind.single():
                config[key] = self.domains[key].all()[0]
            elif key in values:
                config[key] = values[key]
            else:
                config[key] = sampler.sample_independent(study, trial, key, kind)
        return {key: config[key] for key in self.domains if key in config}

    def _take(self, config: Mapping[str, Any], count: bool = True) -> bool:
        """Whether a config is to be tried: then it counts as tried. Else, with `count`, as a draw that was left out."""
        try:
            identity = self.identity(config)
        except UserError:
            why = UNFIT
        else:
            if identity not in self.seen:
                self.seen.add(identity)
                return True
            why = COPY
        if count:
            self.left_out[why] += 1
        return False

    def identity(self, config: Mapping[str, Any]) -> str:
        """What two configs have in common that train the same: the digest of the spec, as the records have it.

        UserError where its values do not fit together, or make a trial that cannot be compared with the others.
        """
        spec = override(self.spec, {**config, "seed": self.settings.tuning_seed})
        if not spec.comparable(self.spec):
            raise UserError(f"{config} trains other numbers of steps")
        return digest(spec)

    def report(self, number: int, value: float, evaluation: int) -> bool:
        """Whether the pruner ends the trial. What a retry reports again was judged, but for the last one."""
        reported = self.reported[number]
        if evaluation not in reported:
            self.live[number].report(value, evaluation)
            reported.add(evaluation)
        return evaluation == max(reported) and self.live[number].should_prune()

    def tell(self, number: int, status: str, value: float | None) -> None:
        state, final = state_of(status, value)
        trial = self.live.pop(number)
        trial.set_user_attr("status", status)
        self.study.tell(trial, values=final, state=state)
        del self.reported[number]
        self.ended += 1

    def trial_name(self, number: int) -> str:
        row = f"{log.RETUNE}-{self.variant}-" if self.variant else ""
        return f"c{self.index}-{row}t{number:04d}"
