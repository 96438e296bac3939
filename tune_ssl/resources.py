"""What a trial asks of the cluster, how many trials run at once, and why."""

from __future__ import annotations

from typing import NamedTuple

import ray

from tune_ssl.errors import Problem, UserError
from tune_ssl.spec import StudySpec
from tune_ssl.trial import TrialSpec

GIB = 1 << 30
SMALL = ("small_cnn",)  # encoders that leave most of a GPU idle
SHARE = 0.25  # of a GPU for a trial with a small encoder: a rule of thumb, not measured


class Fit(NamedTuple):
    """`wanted` as Ray names it (cpu, gpu, memory in bytes), `concurrent` trials at once, `reason` in words."""

    wanted: dict[str, float]
    concurrent: int
    reason: str


def fit_resources(settings: StudySpec, spec: TrialSpec | None = None) -> Fit:
    """How the trials of a study lie on the nodes that are alive. UserError if none ever fits one.

    A trial runs on one node: what counts is the largest node, not the sum. `spec` helps to choose
    where `gpus_per_trial` is `auto`.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"cpu": settings.cpus_per_trial}
    gpus, why = _gpus(settings, spec, any(node.get("GPU") for node in nodes))
    if gpus:
        wanted["gpu"] = gpus
    if settings.memory_per_trial:
        wanted["memory"] = settings.memory_per_trial * GIB
    problems = [p for kind in wanted if (p := _too_large(kind, wanted[kind], nodes))]
    if problems:
        raise UserError(problems)
    each = [
        min(int(node.get(_ray(kind), 0) / x + 1e-9) for kind, x in wanted.items()) for node in nodes
    ]
    fitting = sum(each)
    if not fitting:
        have = "; ".join(sorted({_shown(node, wanted) for node in nodes}))
        text = f"no node has all that a trial asks for ({_asked(wanted)}): {have}"
        raise UserError(Problem(text, "study.cpus_per_trial"))
    concurrent = min(fitting, settings.max_concurrent or fitting)
    total = ", ".join(
        f"{_amount(kind, sum(node.get(_ray(kind), 0) for node in nodes))}" for kind in wanted
    )
    limit = " by study.max_concurrent" if concurrent < fitting else ""
    where = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
    reason = f"{_asked(wanted)} per trial, {concurrent} at once{limit} ({total} in {where}{why})"
    return Fit(wanted, concurrent, reason)


def _gpus(settings: StudySpec, spec: TrialSpec | None, there: bool) -> tuple[float, str]:
    """GPUs of a trial, and the reason where they were chosen here."""
    if settings.gpus_per_trial != "auto":
        return settings.gpus_per_trial, ""
    if not there:
        return 0.0, ", no GPU"
    if spec is not None and spec.compute.device == "cpu":
        return 0.0, ", compute.device is cpu"
    if spec is not None and spec.model.encoder in SMALL:
        return SHARE, f", {spec.model.encoder} shares a GPU with others"
    return 1.0, ""


def _too_large(kind: str, amount: float, nodes: list[dict[str, float]]) -> Problem | None:
    largest = max((node.get(_ray(kind), 0) for node in nodes), default=0)
    if amount <= largest:
        return None
    key = "memory_per_trial" if kind == "memory" else f"{kind}s_per_trial"
    given = amount / GIB if kind == "memory" else amount
    text = f"is {given:g}, but the largest of {len(nodes)} nodes has {_amount(kind, largest)}"
    return Problem(text, f"study.{key}")


def _ray(kind: str) -> str:
    return kind if kind == "memory" else kind.upper()


def _amount(kind: str, amount: float) -> str:
    return f"{amount / GIB:.3g} GiB" if kind == "memory" else f"{amount:g} {kind.upper()}"


def _asked(wanted: dict[str, float]) -> str:
    return " and ".join(_amount(kind, amount) for kind, amount in wanted.items())


def _shown(node: dict[str, float], wanted: dict[str, float]) -> str:
    return ", ".join(_amount(kind, node.get(_ray(kind), 0)) for kind in wanted)
