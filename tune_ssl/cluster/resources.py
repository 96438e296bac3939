"""What a trial asks of the cluster, how many trials run at once, and why."""

from __future__ import annotations

from typing import NamedTuple

import ray

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.base.spec import StudySpec
from tune_ssl.study.study import Study

GIB = 1 << 30
SMALL = ("small_cnn",)  # encoders that leave most of a GPU idle
SHARE = 0.25  # of a GPU for a trial with a small encoder: a rule of thumb, not measured


class Fit(NamedTuple):
    """`wanted` as Ray names it (cpu, gpu, memory in bytes), `concurrent` trials at once, `reason` in words."""

    wanted: dict[str, float]
    concurrent: int
    reason: str


def gpu_share(study: Study) -> tuple[float, str]:
    """What `gpus_per_trial: auto` means for a study where there are GPUs, and the reason."""
    specs = [condition.spec for condition in study.conditions]
    if all(spec.compute.device == "cpu" for spec in specs):
        return 0.0, ", compute.device is cpu"
    encoders = {spec.model.encoder for spec in specs if spec.model.encoder != "pixels"}
    for condition in study.conditions:
        if searched := condition.search.get("model.encoder"):
            encoders |= {str(choice) for choice in searched.choices}
    if encoders <= set(SMALL):
        return SHARE, f", {SMALL[0]} shares a GPU with others"
    return 1.0, ""


def fit_resources(settings: StudySpec, share: tuple[float, str] = (1.0, "")) -> Fit:
    """How the trials of a study lie on the nodes that are alive. UserError if none ever fits one.

    A trial runs on one node: what counts is the largest node, not the sum. `share` is what
    `gpus_per_trial: auto` takes where there are GPUs, and why.
    """
    nodes = _alive()
    wanted = {"cpu": settings.cpus_per_trial}
    gpus, why = settings.gpus_per_trial, ""
    if gpus == "auto":
        gpus, why = share if any(node.get("GPU") for node in nodes) else (0.0, ", no GPU")
    if gpus:
        wanted["gpu"] = gpus
    if settings.memory_per_trial:
        wanted["memory"] = settings.memory_per_trial * GIB
    if not any(node.get("CPU") for node in nodes):  # a cluster that starts its workers on demand
        return Fit(wanted, 0, f"{_asked(wanted)} per trial; the cluster has no worker yet")
    problems = [p for kind in wanted if (p := _too_large(kind, wanted[kind], nodes))]
    if problems:
        raise UserError(problems)
    fitting = sum(_at_once(node, wanted) for node in nodes)
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


class Capacity(NamedTuple):
    """What the nodes that are alive could run, were they idle.

    `places` are nodes, or GPUs where a trial asks for one. `missing` is what no node has, in words, or empty.
    """

    jobs: int
    places: int
    nodes: int
    missing: str


def capacity(wanted: dict[str, float]) -> Capacity:
    nodes = _alive()
    fitting = [node for node in nodes if _at_once(node, wanted)]
    return Capacity(
        jobs=sum(_at_once(node, wanted) for node in fitting),
        places=int(sum(node["GPU"] for node in fitting)) if "gpu" in wanted else len(fitting),
        nodes=len(nodes),
        missing="" if fitting else _asked(wanted),
    )


def _alive() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _at_once(node: dict[str, float], wanted: dict[str, float]) -> int:
    """How many trials fit a node. One never lies on two GPUs: what a GPU has left over stays idle."""
    return min(
        int(node.get("GPU", 0)) * int(1 / amount + 1e-9)
        if kind == "gpu" and amount < 1
        else int(node.get(_ray(kind), 0) / amount + 1e-9)
        for kind, amount in wanted.items()
    )


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
