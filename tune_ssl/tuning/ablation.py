"""The ablation: variants of a frozen reference on the same fresh seeds, scored on validation data.

A run's plan is in its records: one `planned` event per condition and variant, written before
anything of it is trained, so that a resume goes on with the very same rows. Test data stays shut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tune_ssl.base.errors import Problem, UserError, unknown
from tune_ssl.records import log
from tune_ssl.records.domain import active
from tune_ssl.records.ledger import TUNING, Ledger
from tune_ssl.records.log import Record
from tune_ssl.runs.describe import code_revision, command_line
from tune_ssl.study.checks import metric_directions
from tune_ssl.study.domains import trials_of
from tune_ssl.study.study import Condition, Study
from tune_ssl.study.trial import override
from tune_ssl.study.variants import (
    Variant,
    distinct_variants,
    factorial_variants,
    generated_variants,
)
from tune_ssl.tuning.phase import RepeatPhase, RunContext

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What is asked of an ablation: which rows (none: all of the file's), and where.

    Nothing at all is to go on with what is planned.
    """

    only: tuple[str, ...] = ()
    auto: bool = False
    factorial: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()


class AblationPhase(RepeatPhase):
    """One job per row and fresh seed. Of the reference, what is confirmed is not run again."""

    name, title = log.ABLATE, "ablate"

    def __init__(self, context: RunContext, index: int) -> None:
        super().__init__(context, index)
        ledger, settings, condition = context.ledger, context.study.settings, self.condition.id
        for name, row in ledger.planned.get(condition, {}).items():
            config = row["config"]
            if row["retune"]:
                config = ledger.retuned(condition, name, settings.mode)
            if config is None:
                context.tell(f"{condition}: no trial that retunes {name} finished: it is left out")
                continue
            reference = name == log.REFERENCE
            confirmed = ledger.confirmed_seeds(condition, config) if reference else set()
            for seed in settings.seeds:
                if seed not in confirmed:
                    self.repeat(f"c{index}-ablate-{name}-s{seed}", config, seed, variant=name)


class Planner:
    """Decides the rows of an ablation that are not planned yet."""

    def __init__(self, run: Path, study: Study, ledger: Ledger) -> None:
        self.run, self.study, self.ledger = run, study, ledger
        self.metric, self.mode = study.settings.metric, study.settings.mode

    def rows(self, wanted: Wanted, tell: Tell) -> list[Record]:
        """A `planned` event for each new row. UserError on any mistake."""
        self._check_conditions(wanted)
        have = self.ledger.planned
        if have and wanted == Wanted():  # given alone, it goes on
            return []
        rows: list[Record] = []
        for condition in self.study.conditions:
            if wanted.conditions and condition.id not in wanted.conditions:
                continue
            mine = have.get(condition.id, {})
            if self.ledger.ablates_old_choice(condition.id):
                tell(
                    f"{condition.id}: its rows are of the config that was chosen before, and not of the chosen one"
                )
            reference = mine.get(log.REFERENCE) or self._reference(condition)
            new = []
            for row, why_not in self._rows(condition, reference, wanted, tell):
                known = mine.get(row["variant"])
                if why_not:
                    tell(f"{condition.id}: {row['variant']} {why_not} and is left out")
                elif known is None:
                    new.append(row)
                elif (known["changes"], known["retune"]) != (row["changes"], row["retune"]):
                    text = (
                        "is planned in this run already, with other changes: give it another name"
                    )
                    raise UserError(Problem(text, f"ablate.{row['variant']}", str(self.run)))
            rows += [reference, *new] if new and not mine else new
        if not rows and not have:
            text = "has no variant to train: write some under `ablate:`, or give --auto"
            if wanted.auto:
                text = "has nothing that --auto could take off: write variants under `ablate:`"
            raise UserError(Problem(text, str(self.study.source)))
        return rows

    def _check_conditions(self, wanted: Wanted) -> None:
        known = [condition.id for condition in self.study.conditions]
        problems = [
            Problem(unknown("condition", name, known), "--condition")
            for name in wanted.conditions
            if name not in known
        ]
        if problems:
            raise UserError(problems)

    def _reference(self, condition: Condition) -> Record:
        """The frozen config of a condition: what is locked, else what the selection rule picks now.

        Of a run without a search it is the fixed part alone.
        """
        if locked := self.ledger.locked.get(condition.id):
            return self._row(condition, Variant(log.REFERENCE, {}), locked["config"])
        if not any(self.ledger.has(phase) for phase in TUNING):
            return self._row(condition, Variant(log.REFERENCE, {}), {})
        if not self._search_is_over(condition):
            text = (
                f"has a search that is not over in condition {condition.id}; "
                f"`tune-ssl search --resume {self.run.name}` goes on with it"
            )
            raise UserError(Problem(text, str(self.run)))
        best = self.ledger.best(condition.id, self.mode)
        if best is None:
            text = f"has no finished trial in condition {condition.id}: there is nothing to ablate"
            raise UserError(Problem(text, str(self.run)))
        config = self.ledger.begun[best.trial]["config"]
        return self._row(condition, Variant(log.REFERENCE, {}), config)

    def _search_is_over(self, condition: Condition) -> bool:
        """Every trial of its budget has ended, and every repeat of its finalists, if there are some."""
        settings, ledger = self.study.settings, self.ledger

        tuned = [end is not None for _, _, end in ledger.trials(condition.id, log.SEARCH)]
        budget = trials_of(settings.searcher, condition.search, settings.num_trials)
        if (condition.id, None) in ledger.exhausted:
            budget = len(tuned)
        best = ledger.finalists(condition.id, self.mode, settings.finalists)
        again = [end is not None for end in ledger.repeats(condition.id, best)]
        wanted = len(best) * len(settings.finalist_seeds)
        return sum(tuned) >= budget and all(tuned) and (not again or sum(again) >= wanted)

    def _rows(
        self, condition: Condition, reference: Record, wanted: Wanted, tell: Tell
    ) -> Sequence[tuple[Record, str]]:
        """(row, why it is left out) of every variant that is wanted in a condition."""
        config = reference["config"]
        base = override(condition.spec, config)
        variants = self._variants(condition, config, wanted)
        rows = []
        try:
            for variant, values, same in distinct_variants(condition.spec, config, variants):
                spec = override(condition.spec, values)
                for key in variant.retune:
                    for end in condition.search[key].ends():
                        override(condition.spec, {**values, key: end})
                tuned, idle = self._tuned(condition, variant, values)
                if idle:
                    tell(
                        f"{condition.id}: {variant.name} does not tune {', '.join(idle)}: not active in it"
                    )
                unmeasured = (
                    "" if self.metric in metric_directions(spec) else f"has no {self.metric}"
                )
                steps, whole = (sum(s.stage_steps().values()) for s in (spec, base))
                if steps != whole and not same:
                    tell(f"{condition.id}: {variant.name} trains {steps} steps of {whole}")
                row = self._row(condition, replace(variant, retune=tuned), values)
                rows.append((row, same or unmeasured))
            return rows
        except UserError as error:
            raise UserError(
                replace(p, where=str(self.run), text=f"{p.text} (condition {condition.id})")
                for p in error.problems
            ) from None

    def _tuned(
        self, condition: Condition, variant: Variant, values: dict[str, Any]
    ) -> tuple[tuple[str, ...], list[str]]:
        """The keys that are tuned again in a row, and those that are not active in it."""
        reached = active(condition.search, values)
        both = {*variant.retune}
        idle = [
            key
            for key in variant.retune
            if any(
                w not in both and reached.get(w) not in of for w, of in condition.search[key].when
            )
        ]
        return tuple(key for key in variant.retune if key not in idle), idle

    def _variants(
        self, condition: Condition, config: dict[str, Any], wanted: Wanted
    ) -> list[Variant]:
        every = {variant.name: variant for variant in condition.variants}
        chosen = dict(every)
        for variant in generated_variants(override(condition.spec, config)):
            every.setdefault(variant.name, variant)
            if wanted.auto:
                chosen.setdefault(variant.name, variant)
        for option, names in (("--only", wanted.only), ("--factorial", wanted.factorial)):
            if missing := [name for name in names if name not in every]:
                raise UserError(Problem(unknown("variant", missing[0], every), option))
        if wanted.only:
            chosen = {name: every[name] for name in wanted.only}
        if wanted.factorial:
            design = factorial_variants(list(every.values()), wanted.factorial)
            chosen = (chosen if wanted.only or wanted.auto else {}) | {v.name: v for v in design}
        return list(chosen.values())

    def _row(self, condition: Condition, variant: Variant, config: dict[str, Any]) -> Record:
        return {
            "event": log.PLANNED,
            "phase": log.ABLATE,
            "trial": None,
            "condition": condition.id,
            "variant": variant.name,
            "changes": dict(variant.changes),
            "retune": list(variant.retune),
            "switches": variant.switches,
            "config": config,
            "command": command_line(),
            "git": code_revision(),
        }
