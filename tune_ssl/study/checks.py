"""The checks of a study file, section by section: each collects problems, none stops."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from math import prod
from typing import Any

from pydantic import ValidationError

from tune_ssl.base.errors import Problem, UserError, nearest, shown, unknown
from tune_ssl.base.spec import UNBALANCED, StudySpec
from tune_ssl.base.yaml_file import Keys, YamlFile
from tune_ssl.methods import method_names
from tune_ssl.methods.measures import MEASURED
from tune_ssl.records.domain import Domain, active, in_order
from tune_ssl.records.log import REFERENCE
from tune_ssl.study.domains import DomainSpec, domain, grid
from tune_ssl.study.loggers import problems as logger_problems
from tune_ssl.study.messages import validation_problems
from tune_ssl.study.named import name_of
from tune_ssl.study.named import problems as named_problems
from tune_ssl.study.overrides import SECTIONS
from tune_ssl.study.trial import TrialSpec, build_trial, override
from tune_ssl.study.variants import RETUNE

MOST_CONDITIONS = 1000
SAMPLER_PACKAGES = {"cmaes": "cmaes"}  # others need only what tune-ssl itself needs
# Still checked when another key is wrong
CHECKED = ("searcher", "sampler", "metric", "mode", "loggers")
SEEDS = ("seed", "data.split_seed")
VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
# What decides which images are labeled is the same for all trials of a condition.
LABELING = (
    *("dataset", "root", "labels", "val_root", "test_root", "unlabeled_root", "class_depth"),
    *("on_bad_image", "duplicates", "max_pixels"),
    *UNBALANCED,
    *("labeled_ratio", "num_labels", "split", "validation", "val_ratio"),
)


class Checks:
    """The checks of one study file: its sections, and the problems found so far."""

    def __init__(self, file: YamlFile, problems: list[Problem]) -> None:
        self.file, self.problems = file, [*file.twice, *problems]
        for key in file.data:
            if key not in SECTIONS:
                hint = nearest(key, SECTIONS)
                text = f"is not a known key{hint} (known: {', '.join(SECTIONS)})"
                self.add((str(key),), str(key), text)
        self.sections = {name: self._section(name) for name in SECTIONS}
        self.method_known = True
        self.fixed, self.base = self._fixed()

    def add(self, place: Keys, key: str, text: str) -> None:
        self.problems.append(Problem(text, key, self.file.where(place)))

    def finish(self) -> None:
        """UserError with every problem once, in the order of the file's lines."""
        if self.problems:
            raise UserError(sorted(dict.fromkeys(self.problems), key=_line))

    def _section(self, name: str) -> dict[str, Any]:
        section = self.file.data.get(name)
        if section is None:
            return {}
        if not isinstance(section, dict):
            self.add((name,), name, f"is {shown(section)}, but must be a mapping")
            return {}
        return {str(key): value for key, value in section.items()}

    def settings(self) -> StudySpec:
        if "optuna_storage" in self.sections["study"]:
            del self.sections["study"]["optuna_storage"]
            text = (
                "is no longer a key: the studies are rebuilt from the run's records; "
                "`tune-ssl dashboard RUN --write URL` leaves them in a database"
            )
            self.add(("study", "optuna_storage"), "study.optuna_storage", text)
        try:
            settings = StudySpec.model_validate(self.sections["study"])
        except ValidationError as error:
            section = self.sections["study"]
            wrong = validation_problems(error, StudySpec, section, "study.")
            for problem in wrong:
                self.add(tuple(problem.key.split(".")), problem.key, problem.text)
            names = {problem.key.split(".")[1] for problem in wrong}
            sound = {k: section[k] for k in CHECKED if k in section and k not in names}
            settings = StudySpec.model_validate(sound)
        for problem in named_problems(settings):
            self.add(tuple(problem.key.split(".")), problem.key, problem.text)
        for place, problem in logger_problems(settings.loggers):
            self.add(place, problem.key, problem.text)
        package = SAMPLER_PACKAGES.get(name_of(settings.sampler))
        if settings.searcher == "optuna" and package and find_spec(package) is None:
            text = (
                f"is {package!r}, but the package {package} is not installed; "
                "pip install 'tune-ssl[samplers]'"
            )
            self.add(("study", "sampler"), "study.sampler", text)
        return settings

    def _fixed(self) -> tuple[TrialSpec | None, TrialSpec]:
        """The fixed part (None if wrong), and the spec that the other sections are checked on."""
        try:
            fixed = build_trial(self.sections["fixed"])
            return fixed, fixed
        except UserError as error:
            for problem in error.problems:
                self.add(("fixed", *problem.key.split(".")), problem.key, problem.text)
        method = self.sections["fixed"].get("method")
        name = method.get("name") if isinstance(method, dict) else None
        self.method_known = name in method_names()
        return None, build_trial({"method": {"name": name if self.method_known else "supervised"}})

    def axes(self) -> dict[str, list[Any]]:
        axes: dict[str, list[Any]] = {}
        for key, values in self.sections["conditions"].items():
            place, name = ("conditions", key), f"conditions.{key}"
            if not isinstance(values, list) or not values:
                text = f"is {shown(values)}, but must be a list of at least one value"
                self.add(place, name, text)
                continue
            if len(set(map(str, values))) < len(values):
                self.add(place, name, f"is {shown(values)}, but must name each value once")
            self._no_seed(place, key, "conditions.")
            if key == "data.classes":
                text = (
                    "must not be here: all conditions of a study have the same classes; use fixed"
                )
                self.add(place, name, text)
            axes[key] = values
            told: set[str] = set()  # a problem of a whole section is the same for every value
            for i, value in enumerate(values):
                for _, problem in self._override_problems({key: value}):
                    if problem.key not in told:
                        self.add((*place, str(i)), f"conditions.{problem.key}", problem.text)
                    if len(problem.key) < len(key):
                        told.add(problem.key)
        count = prod(map(len, axes.values()))
        if count > MOST_CONDITIONS:
            text = f"make {count} combinations, but must make at most {MOST_CONDITIONS}"
            self.add(("conditions",), "conditions", text)
        return axes

    def search(self) -> dict[str, Domain]:
        search: dict[str, Domain] = {}
        for key, leaf in self.sections["search"].items():
            place, name = ("search", key), f"search.{key}"
            self._no_seed(place, key, "search.")
            if key in self.sections["conditions"]:
                text = "is in conditions too, but a key can be in only one of conditions and search"
                self.add(place, name, text)
            if key in [f"data.{part}" for part in LABELING]:
                text = "must not be searched, because it decides which images are labeled; use conditions"
                self.add(place, name, text)
            if key == "budget.eval_every" or key.startswith("budget.steps"):
                text = (
                    "must not be searched, because only trials with equal budgets can be compared; "
                    "use conditions"
                )
                self.add(place, name, text)
            try:
                search[key] = domain(leaf)
            except ValidationError as error:
                for problem in validation_problems(error, DomainSpec, leaf, f"{name}."):
                    inner = problem.key.removeprefix(name).strip(".")
                    self.add((*place, *inner.split(".")), problem.key, problem.text)
                continue
            wrong = [p for v in search[key].ends() for _, p in self._override_problems({key: v})]
            for problem in {p.text.partition(", but ")[2] or p: p for p in wrong[::-1]}.values():
                self.add(place, f"search.{problem.key}", problem.text)
            if not wrong:
                self._equal_budgets(place, name, search[key].ends())
        self._when(search)
        return search

    def _equal_budgets(self, place: Keys, name: str, ends: list[Any]) -> None:
        """All values of a searched key train as many steps in as many stages."""
        key = place[-1]
        if not self.method_known or name in [p.key for p in self.problems]:
            return
        specs = [override(self.base, {key: value}) for value in ends]
        other = next((s for s in specs if not s.comparable(specs[0])), None)
        if other is not None:
            steps = " and ".join(str(spec.stage_steps()) for spec in (specs[0], other))
            text = (
                f"must not be searched, because its values train {steps} steps, and only trials with equal budgets "
                "can be compared; use conditions"
            )
            self.add(place, name, text)

    def _when(self, search: dict[str, Domain]) -> None:
        """Each `when` names searched keys, with values that they can have."""
        for key, own in search.items():
            for other, values in own.when:
                place, name = ("search", key, "when"), f"search.{key}.when"
                if other not in search or other == key:
                    others = [k for k in self.sections["search"] if k != key]
                    text = f"names {other}, which is not searched{nearest(other, others)}"
                    self.add(place, name, text if other != key else f"names {key} itself")
                    continue
                for value in values:
                    if value not in search[other]:
                        text = (
                            f"is {other}: {shown(value)}, which {other} never is: {search[other]}"
                        )
                        self.add(place, name, text)
        if any(problem.key.endswith(".when") for problem in self.problems):
            return
        try:
            in_order(search)
        except ValueError as error:
            self.add(("search",), "search", str(error))

    def ablate(self) -> dict[str, dict[str, Any]]:
        for variant, values in self.sections["ablate"].items():
            place, name = ("ablate", variant), f"ablate.{variant}"
            if not VARIANT.fullmatch(variant) or variant == REFERENCE:
                text = (
                    "must be named with letters, digits, '.', '_' and '-', up to 60, a letter or "
                    f"digit first; '{REFERENCE}' is taken"
                )
                self.add(place, name, text)
            if not isinstance(values, dict) or not set(values) - {RETUNE}:
                text = f"is {shown(values)}, but must map a trial's keys to values"
                self.add(place, name, text)
                continue
            changes = {key: value for key, value in values.items() if key != RETUNE}
            for key in changes:
                self._no_seed((*place, key), key, f"{name}.")
            wrong = list(self._override_problems(changes))
            for key, problem in wrong:
                self.add((*place, key), f"{name}.{problem.key}", problem.text)
            if not wrong:
                self._comparable(place, name, changes)
            self._retune((*place, RETUNE), f"{name}.{RETUNE}", values.get(RETUNE, []), changes)
        return self.sections["ablate"]

    def _comparable(self, place: Keys, name: str, changes: dict[str, Any]) -> None:
        """All rows of an ablation have the same labels and steps; steps may move from stage to stage."""
        if not self.method_known:
            return
        row, base = override(self.base, changes), self.base
        others = [part for part in LABELING if getattr(row.data, part) != getattr(base.data, part)]
        for key in dict.fromkeys(_own(f"data.{part}", changes) for part in others):
            text = "must not be changed by a variant: all rows of an ablation have the same labels"
            self.add((*place, key), f"{name}.{key}", text)
        for key in changes:
            if key in self.sections["conditions"] and key not in [f"data.{p}" for p in others]:
                text = "is in conditions too, and a variant must not change a condition"
                self.add((*place, key), f"{name}.{key}", text)
        own = [key for key in changes if key.partition(".")[0] == "budget"]
        steps, whole = (sum(spec.stage_steps().values()) for spec in (row, base))
        if own and steps != whole:
            text = f"changes {whole} steps to {steps}, but all rows of an ablation must have equally many"
            self.add((*place, own[0]), f"{name}.{own[0]}", text)

    def _retune(self, place: Keys, name: str, keys: Any, changes: dict[str, Any]) -> None:
        if not isinstance(keys, list) or len(set(map(str, keys))) < len(keys):
            self.add(place, name, f"is {shown(keys)}, but must list searched keys, each once")
            return
        for i, key in enumerate(keys):
            if key not in self.sections["search"]:
                text = unknown("searched key", key, self.sections["search"])
                self.add((*place, str(i)), name, text)
            elif key in changes:
                self.add((*place, str(i)), name, f"has {key}, which the variant itself sets")

    def overridden_elsewhere(self) -> None:
        """An override of the fixed part that a condition or the search would undo."""
        for keys, _ in list(self.file.overrides.items()):
            key = ".".join(keys[1:])
            for section in ("conditions", "search"):
                if keys[0] == "fixed" and key in self.sections[section]:
                    text = f"is in {section} too; {section}.{key}=null takes it out of there"
                    self.add(keys, key, text)

    def together(
        self,
        fixed: TrialSpec,
        axes: dict[str, list[Any]],
        search: dict[str, Domain],
        settings: StudySpec,
    ) -> None:
        """What single keys cannot show: each condition with the domains' ends, and the grid."""
        ends = {key: d.ends() for key, d in search.items()}
        for cell in condition_cells(axes):
            for i in range(max(map(len, ends.values()), default=1)):
                values = cell | active(search, {key: of[i % len(of)] for key, of in ends.items()})
                self._check_values(fixed, values, cell)
        if settings.searcher == "grid":
            try:
                grid(search, settings.num_trials)
            except ValueError as error:
                self.add(("study", "num_trials"), "study.num_trials", str(error))

    def _check_values(self, fixed: TrialSpec, values: dict[str, Any], cell: dict[str, Any]) -> None:
        try:
            override(fixed, values)
        except UserError as error:
            for problem in error.problems:
                key = _own(problem.key, values)
                within = f" (condition {condition_id(cell)})" if cell else ""
                section = "conditions" if key in cell else "search"
                self.add((section, key), f"{section}.{problem.key}", problem.text + within)

    def metric(self, settings: StudySpec) -> None:
        if not self.method_known:
            return
        spec = self.base
        better = metric_directions(spec)
        if settings.metric not in better:
            text = unknown(f"metric of {spec.method.name}", settings.metric, better)
            self.add(("study", "metric"), "study.metric", text)
        elif better[settings.metric] not in (None, settings.mode):
            way = better[settings.metric]
            text = f"is {settings.mode!r}, but must be {way!r} for {settings.metric}"
            self.add(("study", "mode"), "study.mode", text)

    def _no_seed(self, place: Keys, key: str, prefix: str) -> None:
        if key in SEEDS:
            text = "must not be here: study.tuning_seed and study.seeds set the seeds"
            self.add(place, prefix + key, text)

    def _override_problems(self, values: Mapping[str, Any]) -> Iterator[tuple[str, Problem]]:
        """What is wrong with `values` on top of the fixed part, each with the key it comes from."""
        if not self.method_known:
            method_parts = ("method", "losses")
            values = {k: v for k, v in values.items() if str(k).split(".")[0] not in method_parts}
        try:
            override(self.base, {str(key): value for key, value in values.items()})
        except UserError as error:
            for problem in error.problems:
                yield _own(problem.key, values), problem


def metric_directions(spec: TrialSpec) -> dict[str, str | None]:
    """val/<metric> -> which way is better (None: neither), of what a run of `spec` ends with."""
    stage = spec.stages()[-1]
    return {f"val/{k}": way for e in stage.evaluators for k, way in MEASURED[e].items()}


def condition_cells(axes: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """The product of the condition axes, in order; one empty cell without any."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def condition_id(cell: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in cell.items()) or "all"


def _own(key: str, values: Mapping[str, Any]) -> str:
    """Of the overridden keys, the one that a problem at `key` comes from."""
    near = [k for k in values if f"{key}.".startswith(f"{k}.") or f"{k}.".startswith(f"{key}.")]
    return near[0] if near else next(iter(values))


def _line(problem: Problem) -> int:
    line = problem.where.rpartition(":")[2]
    return int(line) if line.isdigit() else 0
