"""The ablation: variants of a frozen reference on the same fresh seeds, scored on validation data.

A run's plan is in its records: one `planned` event per condition and variant, written before
anything of it is trained, so that a resume goes on with the very same rows. Test data stays shut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_ssl.base.errors import Problem, UserError, unknown
from tune_ssl.records import log
from tune_ssl.records.ledger import planned
from tune_ssl.records.log import Record
from tune_ssl.runs.describe import code_revision, command_line
from tune_ssl.search.condition import Cell, StudySource
from tune_ssl.study.checks import measured
from tune_ssl.study.domains import trials_of
from tune_ssl.study.study import Condition, Study
from tune_ssl.study.trial import override
from tune_ssl.study.variants import Variant, combined, distinct, generated
from tune_ssl.tuning.repeats import RepeatSource

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

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


class Ablation(RepeatSource):
    """One job per row, condition and fresh seed. Of the reference, what is confirmed is not run again."""

    phase = log.ABLATE

    def __init__(self, run: Path, study: Study, splits: dict[tuple[str, int], str]) -> None:
        super().__init__(run, study, splits)
        plan = planned(self.events)
        for index, condition in enumerate(study.conditions):
            starts = self.starts(condition)
            for name, row in plan.get(condition.id, {}).items():
                config = self._config(condition, row)
                if config is None:  # it was to be tuned again, and no trial of that finished
                    continue
                for seed in study.settings.seeds:
                    stands = f"c{index}-confirm-s{seed}"
                    same = starts.get(stands, {}).get("config") == config
                    if name != log.REFERENCE or stands not in self.endings or not same:
                        trial = f"c{index}-ablate-{name}-s{seed}"
                        self.again(trial, condition, config, seed, variant=name)

    def _config(self, condition: Condition, row: Record) -> dict[str, Any] | None:
        """The row's config; where it was tuned again, that of the best finished trial."""
        config: dict[str, Any] = row["config"]
        if not row["retune"]:
            return config
        sign = -1 if self.mode == "max" else 1
        finished = [
            (sign * end["value"], start["number"], start["config"])
            for trial, start in self.starts(condition).items()
            if start["phase"] == log.RETUNE and start["variant"] == row["variant"]
            if (end := self.endings.get(trial)) and end["event"] == log.FINISHED
            if end["value"] is not None
        ]
        return min(finished, key=lambda item: item[:2])[2] if finished else None


class Retuning(StudySource):
    """Tunes the `retune` keys of each row that has some, with as many trials as the search had."""

    phase = log.RETUNE

    def make_cells(self, storage: BaseStorage) -> list[Cell]:
        plan = planned(log.read(self.run / log.TRIALS))
        return [
            Cell(
                storage,
                self.prefix,
                self.study,
                index,
                condition,
                name,
                row["config"],
                row["retune"],
            )
            for index, condition in enumerate(self.study.conditions)
            for name, row in plan.get(condition.id, {}).items()
            if row["retune"]
        ]


class Planner(RepeatSource):
    """Decides the rows of an ablation and writes those down that are not there yet."""

    def plan(self, wanted: Wanted, tell: Tell, write: bool = True) -> None:
        """Append a `planned` event for each new row. UserError, with nothing written, on any mistake.

        Without `write` only the mistakes are looked for.
        """
        self._check_conditions(wanted)
        have = planned(self.events)
        if have and wanted == Wanted():  # given alone, it goes on
            return
        rows: list[Record] = []
        for condition in self.study.conditions:
            if wanted.conditions and condition.id not in wanted.conditions:
                continue
            mine = have.get(condition.id, {})
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
            raise UserError(Problem(text, str(self.study.source)))
        if write and rows:
            self._write(log.TRIALS, *rows, durable=True)

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
        if locked := self.locked(condition):
            return self._row(condition, Variant(log.REFERENCE, {}), locked["config"])
        tuning = (log.SEARCH, log.FINALIST)
        begun = [e for e in self.events if e["event"] in log.BEGINNINGS]
        if not any(event["phase"] in tuning for event in begun):
            return self._row(condition, Variant(log.REFERENCE, {}), {})
        if not self._search_is_over(condition):
            text = (
                f"has a search that is not over in condition {condition.id}; "
                f"`tune-ssl search --resume {self.run.name}` goes on with it"
            )
            raise UserError(Problem(text, str(self.run)))
        starts, scores = self.starts(condition), self.scores(condition, *tuning)
        if not scores:
            text = f"has no finished trial in condition {condition.id}: there is nothing to ablate"
            raise UserError(Problem(text, str(self.run)))
        best = next(iter(scores))
        return self._row(condition, Variant(log.REFERENCE, {}), starts[best]["config"])

    def _search_is_over(self, condition: Condition) -> bool:
        """Every trial of its budget has ended, and every repeat of its finalists, if there are some."""
        settings = self.study.settings
        budget = trials_of(settings.searcher, self.study.search, settings.num_trials)
        phases = [
            (start["phase"], t in self.endings) for t, start in self.starts(condition).items()
        ]
        ended = Counter(phase for phase, over in phases if over)
        best = list(self.scores(condition, log.SEARCH))[: settings.finalists]
        repeats = len(best) * len(settings.finalist_seeds)
        begun = any(phase == log.FINALIST for phase, _ in phases)
        return ended[log.SEARCH] >= budget and (not begun or ended[log.FINALIST] >= repeats)

    def _rows(
        self, condition: Condition, reference: Record, wanted: Wanted, tell: Tell
    ) -> Sequence[tuple[Record, str]]:
        """(row, why it is left out) of every variant that is wanted in a condition."""
        config = reference["config"]
        base = override(condition.spec, config)
        variants = self._variants(condition, config, wanted)
        rows = []
        try:
            for variant, values, same in distinct(condition.spec, config, variants):
                spec = override(condition.spec, values)
                for key in variant.retune:
                    for end in self.study.search[key].ends():
                        override(condition.spec, {**values, key: end})
                unmeasured = "" if self.metric in measured(spec) else f"has no {self.metric}"
                steps, whole = (sum(s.stage_steps().values()) for s in (spec, base))
                if steps != whole and not same:
                    tell(f"{condition.id}: {variant.name} trains {steps} steps of {whole}")
                rows.append((self._row(condition, variant, values), same or unmeasured))
            return rows
        except UserError as error:
            raise UserError(
                replace(p, where=str(self.run), text=f"{p.text} (condition {condition.id})")
                for p in error.problems
            ) from None

    def _variants(
        self, condition: Condition, config: dict[str, Any], wanted: Wanted
    ) -> list[Variant]:
        every = {variant.name: variant for variant in self.study.variants}
        chosen = dict(every)
        for variant in generated(override(condition.spec, config)):
            every.setdefault(variant.name, variant)
            if wanted.auto:
                chosen.setdefault(variant.name, variant)
        for option, names in (("--only", wanted.only), ("--factorial", wanted.factorial)):
            if missing := [name for name in names if name not in every]:
                raise UserError(Problem(unknown("variant", missing[0], every), option))
        if wanted.only:
            chosen = {name: every[name] for name in wanted.only}
        if wanted.factorial:
            design = combined(list(every.values()), wanted.factorial)
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
