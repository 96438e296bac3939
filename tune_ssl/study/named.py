"""Samplers and pruners that a study names: `percentile`, `{name: percentile, percentile: 30}`, or a class by its
dotted name, `{name: optuna.pruners.WilcoxonPruner, p_threshold: 0.1}`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from tune_ssl.base.errors import Problem, first_line, nearest, unknown
from tune_ssl.base.spec import Named, StudySpec

OWN = ("asha", "none")  # schedulers that are no class of Optuna's
CLASSES = {
    "scheduler": {
        "hyperband": "optuna.pruners.HyperbandPruner",
        "median": "optuna.pruners.MedianPruner",
        "percentile": "optuna.pruners.PercentilePruner",
        "patient": "optuna.pruners.PatientPruner",
    },
    "sampler": {
        "tpe": "optuna.samplers.TPESampler",
        "gp": "optuna.samplers.GPSampler",
        "cmaes": "optuna.samplers.CmaEsSampler",
        "qmc": "optuna.samplers.QMCSampler",
    },
}
BASES = {"scheduler": "BasePruner", "sampler": "BaseSampler"}
NEEDED: dict[str, dict[str, Any]] = {  # arguments without a default of Optuna's
    "percentile": {"percentile": 25.0},
    "patient": {"wrapped_pruner": None, "patience": 2},
}
LEARN_EARLY = ("tpe", "qmc")  # the samplers that learn from stopped trials too, or from none


def name_of(named: Named) -> str:
    return named if isinstance(named, str) else str(named["name"])


def arguments(named: Named) -> dict[str, Any]:
    """The arguments that the study gives, over those that a class has no default for."""
    return {**NEEDED.get(name_of(named), {}), **given_arguments(named)}


def given_arguments(named: Named) -> dict[str, Any]:
    return {} if isinstance(named, str) else {k: v for k, v in named.items() if k != "name"}


def class_of(kind: str, named: Named) -> Any:
    """The class that a sampler or a scheduler is of. ImportError, AttributeError where there is none."""
    name = name_of(named)
    module, _, last = CLASSES[kind].get(name, name).rpartition(".")
    return getattr(importlib.import_module(module), last)


def problems(settings: StudySpec) -> Iterator[Problem]:
    """What is wrong with the study's sampler and scheduler: an unknown name, or arguments that its class refuses."""
    for kind, known in CLASSES.items():
        named: Named = getattr(settings, kind)
        name, key = name_of(named), f"study.{kind}"
        names = [*(OWN if kind == "scheduler" else ()), *known]
        given = given_arguments(named)
        if name in OWN and kind == "scheduler":
            if given:
                text = f"is {name!r}, which takes no arguments: it has study.grace_period and study.reduction_factor"
                yield Problem(text, key)
            continue
        if name not in names and "." not in name:
            text = unknown(kind, name, names)
            yield Problem(f"{text}, or a class by its dotted name", key)
        elif name not in names or given:
            yield from _class_problems(kind, named, given, key)


def _class_problems(
    kind: str, named: Named, given: Mapping[str, Any], key: str
) -> Iterator[Problem]:
    name = name_of(named)
    try:
        found = class_of(kind, named)
    except Exception:  # whatever a module does when it is imported
        yield Problem(f"is {name!r}, but there is no such class here", key)
        return
    bases = [base.__name__ for base in inspect.getmro(found)] if inspect.isclass(found) else []
    if BASES[kind] not in bases:
        yield Problem(f"is {name!r}, which is no {BASES[kind]} of Optuna's", key)
        return
    parameters = inspect.signature(found).parameters
    for argument in given:
        if argument == "seed":
            yield Problem("has a seed, but study.tuning_seed is where it is set", key)
            return
        if argument not in parameters:
            hint = nearest(argument, parameters)
            takes = f"(it takes: {', '.join(parameters)})"
            text = f"has the argument {argument!r}, which {name} does not take{hint} {takes}"
            yield Problem(text, key)
            return
    try:
        found(**arguments(named))
    except Exception as error:
        yield Problem(f"is {name!r}, which refuses its arguments: {first_line(error)}", key)


def learns_early(sampler: Named) -> bool:
    """Whether a sampler learns from stopped trials too, or from none."""
    name = name_of(sampler)
    return name in LEARN_EARLY or name.endswith(".TPESampler")


def cautions(settings: StudySpec) -> Iterator[str]:
    """What a user should know of a sampler and a scheduler that do not go well together."""
    sampler, scheduler = name_of(settings.sampler), name_of(settings.scheduler)
    early = scheduler != "none" and settings.searcher == "optuna"
    if early and not learns_early(settings.sampler):
        yield (
            f"study.sampler {sampler} learns from finished trials only, and study.scheduler {scheduler} stops most of "
            "them: with scheduler: none it learns from all, and tpe learns from stopped ones too"
        )
