"""What `tune-ssl check` does beyond reading: what the machine lacks, and one step of each condition."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.data.store import Store
from tune_ssl.records.domain import active
from tune_ssl.runs.splits import store_of
from tune_ssl.study.study import Condition, Study
from tune_ssl.study.trial import TrialSpec, override

LONGEST = 60.0  # seconds after which no further corner is begun
GIB = 1 << 30


def refuse_beyond_machine(study: Study) -> None:
    """UserError where a trial asks for more than this machine has."""
    settings, problems = study.settings, []
    cpus = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    on_cluster = "; --address names a cluster that has them"
    if settings.cpus_per_trial > cpus:
        text = f"is {settings.cpus_per_trial:g}, but this machine has {cpus} CPUs{on_cluster}"
        problems.append(Problem(text, "study.cpus_per_trial"))
    if settings.memory_per_trial is not None and settings.memory_per_trial > memory:
        text = (
            f"is {settings.memory_per_trial:g}, but this machine has {memory:.1f} GiB{on_cluster}"
        )
        problems.append(Problem(text, "study.memory_per_trial"))
    if isinstance(settings.gpus_per_trial, float) and settings.gpus_per_trial > 0:
        from tune_ssl.tuning.estimate import has_gpu

        if not has_gpu():
            text = f"is {settings.gpus_per_trial:g}, but this machine has no GPU{on_cluster}"
            problems.append(Problem(text, "study.gpus_per_trial"))
    if problems:
        raise UserError(replace(p, where=study.where(p.key)) for p in problems)


def rehearse_all(study: Study, stores: Mapping[str, Store]) -> list[str]:
    """A real step and evaluation at the corners of each condition's space; a line that says how many.

    UserError with what training would fail with, once for each cause.
    """
    from tune_ssl.training.rehearsal import rehearse

    corners = [corners_of(condition) for condition in study.conditions]
    wanted = [
        (condition, own[i])
        for i in range(max(map(len, corners)))
        for condition, own in zip(study.conditions, corners, strict=True)
        if i < len(own)
    ]
    began, done = time.monotonic(), 0
    others: dict[str, Store] = {}
    found: dict[Problem, list[str]] = {}
    for condition, spec in wanted:
        if done and time.monotonic() - began > LONGEST:
            break
        done += 1
        try:
            rehearse(spec, store_of(condition, spec.data, stores, others))
        except UserError as error:
            for problem in error.problems:
                where = problem.where or study.where(problem.key, condition.method)
                found.setdefault(replace(problem, where=where), []).append(condition.id)
    if found:
        raise UserError(
            replace(p, text=f"{p.text} (condition {', '.join(dict.fromkeys(ids))})")
            for p, ids in found.items()
        )
    spent = time.monotonic() - began
    if done < len(wanted):
        return [
            f"one step at {done} of {len(wanted)} corners of the spaces trains ({spent:.0f} s); --fast takes none"
        ]
    return [
        f"one step and evaluation at each of {done} corners of the spaces: they train ({spent:.1f} s)"
    ]


def corners_of(condition: Condition) -> list[TrialSpec]:
    """The condition's spec with all domains at their lowest and at their highest end, or at each of their choices."""
    ends = {key: d.ends() for key, d in condition.search.items()}
    specs: dict[str, TrialSpec] = {}
    for i in range(max(map(len, ends.values()), default=1)):
        values = active(condition.search, {key: of[i % len(of)] for key, of in ends.items()})
        spec = override(condition.spec, values)
        specs.setdefault(spec.model_dump_json(), spec)
    return list(specs.values())
