"""From a number to its trials, and from a trial to the command that trains it again."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd

from analysis.numbers.ablations import ablation_trials
from analysis.numbers.tables import confirm_trials
from analysis.read.load import TEST_METRIC, Runs
from analysis.read.study import Study
from analysis.words.display import metric_value

_PLAIN = re.compile(r"[A-Za-z_][\w.:/-]*")  # text that YAML reads as this very text
_NOT_TEXT = {"true", "false", "null", "yes", "no", "on", "off"}


@dataclass(frozen=True)
class Link:
    """A trial behind a row: what it contributed, in words, and its anchor on the page."""

    text: str
    anchor: str


def reproduce(study: Study, config: dict[str, Any], seed: object, trial: str = "") -> str:
    """The command that trains this configuration again: the run's own overrides, then the config.

    Of a run that compares several methods no study file has one fixed part: its trial is named instead.
    """
    if study.renamed is not None:
        return shlex.join(["tune-ssl", "train", study.home or str(study.path), "--trial", trial])
    own = [text for text in overrides(study) if text.split("=", 1)[0] not in config]
    pairs = [f"{key}={_plain(value)}" for key, value in config.items() if key != "seed"]
    pairs += [f"seed={seed}"] if seed is not None else []
    source = str(study.raw.get("source") or "SPEC.yaml")
    return shlex.join(["tune-ssl", "train", source, *own, *pairs, *_options(study)])


def overrides(study: Study) -> list[str]:
    """The key=value texts of the run's own command that set its fixed part."""
    fixed = (study.raw.get("study") or {}).get("fixed") or {}
    found = [word for word in _words(study) if not word.startswith("-") and "=" in word]
    return [word for word in found if _holds(fixed, word.split("=", 1)[0]) and word[:5] != "seed="]


def anchors(runs: Runs) -> list[str]:
    """An id for each row of `runs.trials`, fit for a URL and unique on the page."""
    seen: Counter[str] = Counter()
    found = []
    for label, trial in zip(runs.trials["label"], runs.trials["trial"], strict=True):
        name = "trial-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{label}-{trial}")
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}~{seen[name]}")
    return found


def commands(runs: Runs) -> list[str]:
    """Per row of `runs.trials`: the command that trains it again."""
    values = {(s.run, c["id"]): c.get("values") or {} for s in runs.studies for c in _cells(s)}
    studies = {study.run: study for study in runs.studies}
    return [
        reproduce(studies[run], {**values.get((run, condition), {}), **config}, seed, str(trial))
        for run, condition, config, seed, trial in zip(
            runs.trials["run"],
            runs.trials["condition"],
            configs(runs),
            seeds(runs),
            runs.trials["trial"],
            strict=True,
        )
    ]


def configs(runs: Runs) -> list[dict[str, Any]]:
    """Per row of `runs.trials`: what it set, without what it left alone."""
    return [config if isinstance(config, dict) else {} for config in runs.trials["full_config"]]


def seeds(runs: Runs) -> list[int | None]:
    """Per row of `runs.trials`: its seed, if it has one."""
    return [None if pd.isna(seed) else int(seed) for seed in runs.trials["seed"]]


class TrialLinks:
    """From the rows of the report's tables to the trials that they are made of."""

    def __init__(self, runs: Runs) -> None:
        trials = runs.trials.assign(anchor=anchors(runs))
        trials["metric"] = trials["run"].map({s.run: s.metric for s in runs.studies})
        self._confirm = dict(list(_grouped(trials.loc[confirm_trials(runs).index])))
        self._all = dict(list(_grouped(trials)))
        own = trials.set_index(["run", "trial"])[["anchor", "metric"]]
        ablated = ablation_trials(runs).join(own, on=["run", "trial"])
        self._ablated = dict(list(_grouped(ablated)))
        self._none = trials.iloc[:0]

    def links(self, stem: str, row: dict[str, Any]) -> list[Link]:
        """The trials of one row of the table `stem`; none where a row has no trials of its own."""
        find = {
            "results": self._results,
            "differences": self._differences,
            "chosen": self._chosen,
            "ablation": self._ablation,
        }.get(stem)
        return list(find(row)) if find else []

    def _results(self, row: dict[str, Any]) -> Iterator[Link]:
        for trial in self._of(self._confirm, row["method"], row).to_dict("records"):
            value = metric_value(trial.get(TEST_METRIC), TEST_METRIC)
            yield Link(f"seed {_seed(trial)}: {value}", trial["anchor"])

    def _differences(self, row: dict[str, Any]) -> Iterator[Link]:
        for name in (row["method"], row.get("reference")):
            for trial in self._of(self._confirm, name, row).to_dict("records"):
                value = metric_value(trial.get(TEST_METRIC), TEST_METRIC)
                yield Link(f"{name}, seed {_seed(trial)}: {value}", trial["anchor"])

    def _chosen(self, row: dict[str, Any]) -> Iterator[Link]:
        trials = self._of(self._all, row["method"], row)
        for trial in trials[trials["trial"] == row["trial"]].to_dict("records"):
            yield Link(f"{trial['trial']}: {_value(trial)}", trial["anchor"])
        for trial in self._of(self._confirm, row["method"], row).to_dict("records"):
            yield Link(f"seed {_seed(trial)}: {_value(trial)}", trial["anchor"])

    def _ablation(self, row: dict[str, Any]) -> Iterator[Link]:
        trials = self._of(self._ablated, row["method"], row)
        for trial in trials[trials["variant"] == row["variant"]].to_dict("records"):
            yield Link(f"seed {_seed(trial)}: {_value(trial)}", trial["anchor"])

    def _of(self, found: dict[Any, pd.DataFrame], label: Any, row: dict[str, Any]) -> pd.DataFrame:
        return found.get((label, row["condition"]), self._none)


def _grouped(trials: pd.DataFrame) -> Iterator[tuple[Any, pd.DataFrame]]:
    yield from trials.groupby(["label", "condition"], sort=False)


def _value(trial: dict[Any, Any]) -> str:
    return metric_value(trial["value"], trial["metric"])


def _seed(trial: dict[Any, Any]) -> str:
    return "unknown" if pd.isna(trial["seed"]) else str(int(trial["seed"]))


def _cells(study: Study) -> Sequence[dict[str, Any]]:
    found: Sequence[dict[str, Any]] = study.raw["conditions"]
    return found


def _plain(value: Any) -> str:
    """The value as an override may state it."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    if isinstance(value, float) and value.is_integer():  # pandas makes floats of a column with gaps
        value = int(value)
    return json.dumps(value, default=str)


def _words(study: Study) -> list[str]:
    try:
        return shlex.split(str(study.raw.get("command") or ""))
    except ValueError:  # no closing quotation
        return []


def _holds(fixed: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(fixed, dict) or part not in fixed:
            return False
        fixed = fixed[part]
    return True


def _options(study: Study) -> list[str]:
    """The run's --data-root and --plugin, which training needs as well."""
    words, found = _words(study), []
    for option, value in pairwise(words):
        if option in ("--data-root", "--plugin"):
            found += [option, value]
    return found + [w for w in words if w.startswith(("--data-root=", "--plugin="))]
