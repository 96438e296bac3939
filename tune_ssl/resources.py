"""What a trial asks of the cluster, and how many trials run at once."""

from __future__ import annotations

import ray

from tune_ssl.errors import Problem, UserError
from tune_ssl.spec import StudySpec


def fit_resources(settings: StudySpec) -> tuple[dict[str, float], int]:
    """What a trial asks of the cluster, and how many run at once. UserError if none ever can."""
    total = ray.cluster_resources()
    gpus = settings.gpus_per_trial
    wanted = {"cpu": settings.cpus_per_trial}
    if gpus == "auto":
        gpus = 1.0 if total.get("GPU") else 0.0
    if gpus:
        wanted["gpu"] = gpus
    for kind, amount in wanted.items():
        have = total.get(kind.upper(), 0)
        if amount > have:
            text = f"is {amount:g}, but the cluster has {have:g} {kind.upper()} in all"
            raise UserError(Problem(text, f"study.{kind}s_per_trial"))
    fitting = min(int(total[kind.upper()] / amount) for kind, amount in wanted.items())
    return wanted, min(fitting, settings.max_concurrent or fitting)
