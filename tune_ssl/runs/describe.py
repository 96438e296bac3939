"""All of study.yaml: what was asked, of which data, by which code, on which machine."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tune_ssl import __version__
from tune_ssl.base.secrets import redact
from tune_ssl.data.store import Store
from tune_ssl.methods import installed
from tune_ssl.records import log
from tune_ssl.runs.splits import label_budget, validation_count
from tune_ssl.study.study import Entry, Study

COMPARISON = "comparison"  # as the method of a run that compares several
PACKAGES = ("torch", "torchvision", "ray", "optuna", "timm", "numpy", "scikit-learn", "pandas")


def describe(study: Study, stores: dict[str, Store], name: str, command: str) -> dict[str, Any]:
    """All of study.yaml: what was asked, of which data, by which code, on which machine."""
    store = stores[study.conditions[0].id]
    seed = study.settings.tuning_seed
    return {
        "schema": log.SCHEMA,
        "name": name,
        "id": uuid.uuid4().hex[:12],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "source": str(study.source),
        "method": COMPARISON if study.compares else study.fixed.method.name,
        "metric": study.settings.metric,
        "mode": study.settings.mode,
        "loss_terms": [] if study.compares else _terms(study.entries[0]),
        **({"compare": _compared(study)} if study.compares else {}),
        "dataset": {
            "name": study.fixed.data.dataset,
            "digest": store.digest,
            "classes": list(store.class_names),
            "counts": store.counts,
            "image_shape": list(store.shape),
            "remarks": store.remarks(),
        },
        "conditions": [
            {
                "id": condition.id,
                **({"method": condition.method, "cell": condition.cell} if study.compares else {}),
                "values": condition.values,
                "labels": label_budget(stores[condition.id], condition, seed),
                "validation": validation_count(stores[condition.id], condition, seed),
                "data": stores[condition.id].digest,
                "store": str(stores[condition.id].path),
            }
            for condition in study.conditions
        ],
        "versions": {
            "tune_ssl": __version__,
            "python": platform.python_version(),
            **_versions(study),
        },
        "git": code_revision(),
        "machine": {"platform": platform.platform(), "processor": platform.machine()},
        "plugins": [plugin._asdict() for plugin in study.plugins],
        "study": study.resolved(),
    }


def _terms(entry: Entry) -> list[str]:
    return [term for term, _ in entry.fixed.losses.items()]


def _compared(study: Study) -> dict[str, Any]:
    """label -> its method, loss terms, whether it is fitted at once, and whether it uses unlabeled images."""
    return {
        entry.label: {
            "method": entry.fixed.method.name,
            "loss_terms": _terms(entry),
            "fitted": all(stage.fits for stage in entry.fixed.stages()),
            "unlabeled": any(stage.unlabeled_views for stage in entry.fixed.stages()),
        }
        for entry in study.entries
    }


def command_line() -> str:
    import shlex

    return shlex.join(["tune-ssl", *map(redact, sys.argv[1:])])


def _versions(study: Study) -> dict[str, str]:
    methods = {entry.fixed.method.name for entry in study.entries}
    points = [point for name in sorted(methods) for point in installed().get(name, [])]
    found = {}
    for package in (*PACKAGES, *(point.dist.name for point in points if point.dist)):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@cache
def code_revision() -> dict[str, Any]:
    """Revision of the code that runs, where it is a checkout; an installed package has none."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        done = subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"revision": None, "dirty": None}
