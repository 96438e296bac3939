"""The reproducibility checklist, filled from what the runs recorded.

The questions are those of Pineau et al. 2021, "Improving Reproducibility in Machine Learning
Research", that a run can answer. What it does not know is NOT_RECORDED, and never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.numbers.places import domain_text
from analysis.numbers.stats import ALPHA, LEAST_SEEDS
from analysis.numbers.tables import CELL, Tables, confirm_trials, device_seconds
from analysis.read.load import RUNNING, SUPERSEDED, TEST_METRIC, Runs
from analysis.read.search_space import searched_keys
from analysis.read.selection import DEFAULT_RULE
from analysis.read.study import Study
from analysis.read.values import missing
from analysis.report.provenance import moment
from analysis.words.display import count, far
from tune_ssl.records import log
from tune_ssl.records.ties import half_width

NOT_RECORDED = "not recorded"
FILE = "checklist.md"
MADE_FROM = (
    "Questions of the machine learning reproducibility checklist (Pineau et al. 2021) that a run can "
    f'answer, answered from its records. "{NOT_RECORDED}" is what the run does not know: fill it in.'
)
MEASURE = (
    "mean per-class accuracy on the test images: of each class that occurs, the share of its images "
    "that is right; then the mean over these classes"
)
PHASES = {
    log.SEARCH: "search",
    log.FINALIST: "finalists, run again",
    log.CONFIRM: "confirmation",
    log.RETUNE: "retuning for an ablation",
    log.ABLATE: "ablation",
    SUPERSEDED: "confirmation of a choice that was taken back",
}
PREPARED = ("image_size", "resize", "range", "background", "duplicates", "on_bad_image")
SPLIT = ("split", "split_seed", "validation", "val_ratio", "balanced")
SEARCH = ("searcher", "sampler", "scheduler", "grace_period", "reduction_factor", "num_trials")


@dataclass(frozen=True)
class Answer:
    """A question and what the runs say to it, a line for each fact."""

    question: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """Questions on one subject."""

    title: str
    answers: tuple[Answer, ...]


def checklist(runs: Runs, found: Tables) -> list[Part]:
    """The checklist of some runs; `found` are the report's tables."""
    return [
        _part(
            "Data",
            ("Which dataset, with how many images and classes?", _dataset(runs)),
            ("Which images are labeled, and how were the parts split?", _splits(runs)),
            ("How many labeled validation images were choices made on?", _validation(runs)),
            ("How were the images prepared?", _prepared(runs)),
            ("Which images were left out?", _remarks(runs)),
            ("Where can the dataset be had?", ()),
        ),
        _part(
            "Code",
            ("Which revision of the code?", _revision(runs)),
            ("By which command?", _each(runs, lambda study: study.raw.get("command"))),
            ("With which dependencies?", _each(runs, lambda s: _listed(s.raw.get("versions")))),
            ("How is a model trained again?", _again(runs)),
        ),
        _part(
            "Hyperparameters",
            ("Which values were considered?", _domains(runs)),
            ("How were configurations searched?", _searched(runs)),
            ("How many configurations were tried?", _tried(found["budget"])),
            ("How was one of them chosen?", _rules(found["chosen"])),
            ("Which values were chosen?", _chosen(runs, found["chosen"])),
        ),
        _part(
            "Results",
            ("Which measure is reported?", _measure(runs)),
            ("What is its mean, and how does it vary?", _results(found["results"])),
            ("Which test tells methods apart?", _tests(found)),
            ("How many training and evaluation runs?", _run_counts(runs)),
            ("When was test data opened, and how often?", _opened(runs)),
            ("What was excluded, or went wrong?", _excluded(runs, found["results"])),
        ),
        _part(
            "Cost",
            ("How long does a model take on average?", _per_model(runs)),
            ("What did everything take?", _total(runs)),
            ("On which machine?", _each(runs, lambda study: _listed(study.raw.get("machine")))),
            ("How much energy?", ()),
        ),
    ]


def markdown(parts: Iterable[Part]) -> str:
    """The checklist as plain Markdown."""
    lines = ["# Reproducibility checklist", "", MADE_FROM]
    for part in parts:
        lines += ["", f"## {part.title}"]
        for answer in part.answers:
            lines += ["", f"**{answer.question}**", "", *(f"- {_plain(x)}" for x in answer.lines)]
    return "\n".join([*lines, ""])


def write(runs: Runs, found: Tables, folder: Path) -> Path:
    """Write `folder`/checklist.md."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    path.write_text(markdown(checklist(runs, found)), encoding="utf-8")
    return path


def _part(title: str, *asked: tuple[str, Iterable[str]]) -> Part:
    answers = ((question, tuple(lines) or (NOT_RECORDED,)) for question, lines in asked)
    return Part(title, tuple(Answer(*answer) for answer in answers))


def _each(runs: Runs, say: Callable[[Study], Any]) -> list[str]:
    """What is said of each method's run: one line where all say the same."""
    return _together([(study.label, say(study)) for study in runs.studies])


def _together(said: Iterable[tuple[str, Any]]) -> list[str]:
    """One line for what all say, else a line for each thing said, naming who says it."""
    by_line: dict[str, list[str]] = {}
    for label, value in said:
        by_line.setdefault(NOT_RECORDED if missing(value) else str(value), []).append(label)
    if len(by_line) == 1:
        return [*by_line]
    return [f"{', '.join(labels)}: {line}" for line, labels in by_line.items()]


def _dataset(runs: Runs) -> Iterator[str]:
    dataset = runs.studies[0].dataset
    yield f"name: {_known(dataset.get('name'))}"
    yield f"digest of images and classes: {_known(dataset.get('digest'))}"
    yield f"images: {_known(_listed(dataset.get('counts')))}"
    classes = dataset.get("classes")
    known = isinstance(classes, (list, tuple))
    yield f"classes: {len(classes) if known and classes else NOT_RECORDED}"
    shape = dataset.get("image_shape")
    yield f"shape of an image: {_known(_listed(shape, ' x '))}"


def _splits(runs: Runs) -> Iterator[str]:
    yield from (f"settings: {line}" for line in _each(runs, lambda s: _fixed(s, "data", SPLIT)))
    for condition, rows in runs.conditions.groupby("condition", sort=False):
        counts = sorted({int(n) for n in rows["labels"].dropna()})
        labels = " or ".join(map(count, counts)) + " labels" if counts else f"labels {NOT_RECORDED}"
        yield f"{condition}: {labels}"
        own = runs.trials[runs.trials["condition"] == condition].dropna(subset=["seed"])
        for phase in (log.SEARCH, log.FINALIST, log.CONFIRM):
            digests = own[own["phase"] == phase].groupby("seed")["split"].unique()
            seeds = [f"{int(seed)} ({_split(found)})" for seed, found in digests.items()]  # type: ignore[call-overload]
            if seeds:
                yield f"{condition}, {PHASES[phase]}: seeds (digest of the split) {', '.join(seeds)}"


def _split(digests: Iterable[Any]) -> str:
    known = [str(digest) for digest in digests if not missing(digest)]
    return " or ".join(known) or NOT_RECORDED


def _validation(runs: Runs) -> list[str]:
    said: list[tuple[str, str | None]] = []
    for row in runs.conditions.to_dict("records"):
        if missing(row["validation"]):
            said.append((f"{row['label']}, {row['condition']}", None))
            continue
        points = f"known to \u00b1{100 * half_width(row['validation']):.1f} points"
        line = f"{count(row['validation'])} images, on which a share is {points} (Hoeffding, 95 %)"
        if not missing(row["labels"]) and row["validation"] > row["labels"]:
            line += "; more than the training labels"
        said.append((f"{row['label']}, {row['condition']}", line))
    return _together(said)


def _prepared(runs: Runs) -> Iterator[str]:
    yield from (f"data: {line}" for line in _each(runs, lambda s: _fixed(s, "data", PREPARED)))
    norm = _each(runs, lambda study: _fixed(study, "model", ("mean", "std")))
    yield from (f"normalization (null: the data's own): {line}" for line in norm)
    for line in _each(runs, lambda study: _fixed(study, "views", None)):
        yield f"augmentations: {line}"


def _remarks(runs: Runs) -> list[str]:
    def remarks(study: Study) -> str | None:
        if "remarks" not in study.dataset:
            return None
        return "; ".join(study.remarks) or "nothing is noted as left out"

    return _each(runs, remarks)


def _revision(runs: Runs) -> list[str]:
    def revision(study: Study) -> str:
        git = study.raw.get("git") or {}
        dirty = git.get("dirty")
        changes = NOT_RECORDED if dirty is None else "yes" if dirty else "none"
        return f"{_known(git.get('revision'))}; uncommitted changes: {changes}"

    return _each(runs, revision)


def _again(runs: Runs) -> Iterator[str]:
    folders = dict.fromkeys(study.home or str(study.path) for study in runs.studies)
    yield from (f"`tune-ssl train {folder} --trial NAME` repeats a trial" for folder in folders)
    yield "the report's page has the command of every trial and of every chosen configuration"


def _domains(runs: Runs) -> Iterator[str]:
    for study in runs.studies:
        keys = searched_keys(study)
        if not keys:
            yield f"{study.label}: nothing was searched"
        for key in keys:
            yield f"{study.label}, {key.name}: {domain_text(key)}"


def _searched(runs: Runs) -> list[str]:
    def settings(study: Study) -> str | None:
        plan = (study.raw.get("study") or {}).get("study") or {}
        return ", ".join(f"{key} {_value(plan[key])}" for key in SEARCH if key in plan)

    return _each(runs, settings)


def _tried(budget: pd.DataFrame) -> Iterator[str]:
    for condition, rows in budget.groupby("condition", sort=False):
        said = [
            (
                str(row["method"]),
                f"{count(row['trials'])} begun, {count(row['candidates'])} of them finished and could be chosen",
            )
            for row in rows.to_dict("records")
        ]
        yield from (f"{condition}: {line}" for line in _together(said))


def _rules(chosen: pd.DataFrame) -> list[str]:
    rules = [str(rule) for rule in chosen["rule"] if not missing(rule)]
    return [*dict.fromkeys(rules)] or [DEFAULT_RULE.sentence]


def _chosen(runs: Runs, chosen: pd.DataFrame) -> Iterator[str]:
    for row in chosen.to_dict("records"):
        config = row["full_config"] if isinstance(row["full_config"], Mapping) else {}
        keys = runs.study(str(row["run"])).searched or [*config]
        values = ", ".join(f"{key}={_value(config[key])}" for key in keys if key in config)
        fixed = "" if row["locked"] else " (not confirmed yet)"
        yield f"{row['method']}, {row['condition']}: {values or 'the fixed configuration'}{fixed}"


def _measure(runs: Runs) -> Iterator[str]:
    yield f"{MEASURE} ({TEST_METRIC})"
    for line in _each(runs, lambda s: f"{s.metric}, {s.mode}imized, on validation images"):
        yield f"choices were made by {line}"


def _results(results: pd.DataFrame) -> Iterator[str]:
    measured = results.dropna(subset=["mean"])
    if measured.empty:
        yield "no configuration has been confirmed on test data"
        return
    yield (
        "mean over fresh seeds; Student's t interval of the mean, 95 % from "
        f"{LEAST_SEEDS} seeds on; std is the standard deviation over seeds"
    )
    for row in measured.to_dict("records"):
        spread = "no interval"
        if not missing(row["low"]):
            ends = f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
            spread = f"{ends}, std {100 * row['std']:.1f}"
        n = f"n = {row['n']}"
        yield f"{row['method']}, {row['condition']}: {100 * row['mean']:.1f} % {spread}, {n}"


def _tests(found: Tables) -> Iterator[str]:
    compared = [
        (name, words)
        for name, words in (
            ("differences", "differences on test"),
            ("gains", "gains averaged over conditions"),
            ("ablation", "variants of an ablation on validation images"),
        )
        if name in found and len(found[name])
    ]
    if not compared:
        yield "nothing is compared"
    for name, words in compared:
        p = int(found[name]["p_holm"].notna().sum())
        yield (
            f"{words}: two-sided paired t test by seed, Holm's correction over {p} comparison"
            f"{'s' * (p != 1)}{' (of each method)' * (name == 'ablation')}, p < {ALPHA} decides"
        )
    if found["results"].groupby(CELL, dropna=False)["method"].nunique().gt(1).any():
        yield "bold: paired t tests against the highest mean, Holm's correction over a condition"


def _run_counts(runs: Runs) -> Iterator[str]:
    for phase, words in PHASES.items():
        own = runs.trials[runs.trials["phase"] == phase]
        if len(own):
            yield f"{words}: {len(own):,} training runs"
    metrics = {study.metric for study in runs.studies} & set(runs.history.columns)
    rows = runs.history[list(metrics)].notna().any(axis=1).sum() if metrics else 0
    yield f"evaluations on validation images: {int(rows):,}"
    tested = runs.trials[TEST_METRIC].notna().sum() if TEST_METRIC in runs.trials else 0
    yield f"evaluations on test images: {int(tested):,}"


def _opened(runs: Runs) -> Iterator[str]:
    if runs.locks.empty:
        yield "never"
        return
    for (run, condition), locks in runs.locks.groupby(["run", "condition"], sort=False):
        label = runs.study(str(run)).label
        times = ", ".join(_known(moment(time), "\u2013") for time in locks["time"])
        again = int(locks["taken_back"].astype(bool).sum())
        often = "once" if len(locks) == 1 else f"{len(locks)} times"
        taken = f"; {again} choice{'s' * (again != 1)} taken back after it" if again else ""
        yield f"{label}, {condition}: {often}, by its locked configuration, {times}{taken}"


def _excluded(runs: Runs, results: pd.DataFrame) -> Iterator[str]:
    words = {
        log.STOPPED: "stopped early: never chosen, and not scored",
        log.DIVERGED: "diverged: never chosen, counted",
        log.COLLAPSED: "collapsed: never chosen, counted",
        log.FAILED: "failed: never chosen, counted",
        RUNNING: "without an ending: in no number",
    }
    for status, sentence in words.items():
        yield f"{int((runs.trials['status'] == status).sum()):,} trials {sentence}"
    apart = False
    for row in results.to_dict("records"):
        where = f"{row['method']}, {row['condition']}"
        if row["missing"]:
            yield f"{where}: {row['missing']} fresh seeds have no test value and are not in the mean"
        if isinstance(row["outlying"], Mapping) and row["outlying"]:
            yield f"{where}: {far(row['outlying'])} from the others, and in the mean"
            apart = True
    if not apart:
        yield "no seed is far from the others, and none was left out for its value"
    yield from runs.notes


def _per_model(runs: Runs) -> Iterator[str]:
    trials = confirm_trials(runs)
    trials = trials[trials["status"] == log.FINISHED]
    for label in runs.labels:
        own = device_seconds(trials[trials["label"] == label]).dropna()
        if len(own):
            mean = own.mean()
            time = f"{mean:,.1f}" if mean >= 1 else f"{mean:.2g}"
            yield f"{label}: {time} device-seconds, mean of {len(own)} confirmed models"
    if trials["reused"].gt(0).any():
        yield "pretraining that several trials share is in the seconds of the one that trained it, and of no other"


def _total(runs: Runs) -> Iterator[str]:
    ended = runs.trials[runs.trials["status"] != RUNNING]
    for phase, words in PHASES.items():
        own = ended[ended["phase"] == phase]
        if len(own):
            blank = int(own["seconds"].isna().sum())
            rest = f" ({blank:,} trials: {NOT_RECORDED})" if blank else ""
            yield f"{words}: {device_seconds(own).sum():,.0f} device-seconds{rest}"
    known = device_seconds(ended).dropna()
    if len(known):
        yield f"together: {known.sum():,.0f} device-seconds"


def _fixed(study: Study, part: str, keys: Iterable[str] | None) -> str | None:
    """Settings of the fixed part of a study; None where it does not say them."""
    fixed = (study.raw.get("study") or {}).get("fixed") or {}
    own = fixed.get(part)
    if not isinstance(own, Mapping):
        return None
    return ", ".join(f"{k} {_value(own[k])}" for k in (own if keys is None else keys) if k in own)


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {_value(item)}" for key, item in value.items()) + ")"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value)


def _listed(value: Any, between: str = ", ") -> str:
    """A mapping or list in words; an empty text for what is absent or empty."""
    if isinstance(value, Mapping):
        return between.join(f"{key} {_value(item)}" for key, item in value.items())
    return between.join(map(_value, value)) if isinstance(value, (list, tuple)) else ""


def _known(value: Any, absent: str = "") -> str:
    return NOT_RECORDED if missing(value) or value == absent else str(value)


def _plain(line: str) -> str:
    """A line as Markdown shows it: only commands are marked up."""
    if line.startswith("`"):
        return line
    return "".join("\\" + c if c in "\\*_`<>#|[]" else c for c in " ".join(line.split()))
