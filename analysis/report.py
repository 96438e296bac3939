"""Run folders -> one self-contained HTML page and the tables as files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from analysis import style, tables
from analysis.display import FORMATS, NONE, columns_of, is_bold, shown, text
from analysis.galleries import by_condition
from analysis.load import Runs, load_runs
from analysis.plots import Plot, all_plots
from analysis.select import DEFAULT_RULE
from analysis.stats import expanded_tail
from analysis.study import Study
from analysis.summary import NOT_A_RESULT, caveats, interval_note, summary
from tune_ssl import records
from tune_ssl.errors import UserError, unknown

PROTOCOL = (
    "Mean over fresh seeds with 95 % expanded percentile bootstrap intervals, in percent. "
    "Hyperparameters were chosen on validation data; test data was opened once, for the locked "
    "configuration. Every mean inside the best one's interval is in bold."
)
CAPTIONS = {
    "results": PROTOCOL,
    "differences": "Mean paired difference in mean per-class accuracy on test, in points, by "
    "shared seed, with 95 % intervals that are not corrected for multiple comparisons.",
    "budget": "Search budget and compute per condition and method.",
    "chosen": "The chosen configuration of each condition. Values are the study's metric.",
    "stability": "How trials ended, search and confirmation together.",
    "trials": "Every trial. Validation values of tuning trials are not results.",
}


@dataclass(frozen=True)
class Figure:
    """A figure as the page holds it: plotly's JSON, made safe to stand inside a script element."""

    title: str
    spec: Markup
    caption: str = ""


def write_report(
    run_paths: Sequence[str | Path], out: Path, formats: Sequence[str] = FORMATS
) -> Path:
    """Write `out`/index.html and `out`/tables/*; returns the page's path.

    Raises:
        UserError: a folder that is not a run, an unknown format, or an `out` that is a file.
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError("a table format " + unknown("format", name, FORMATS))
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, but the report needs a folder")
    runs = load_runs(run_paths)
    found = all_tables(runs)
    out.mkdir(parents=True, exist_ok=True)
    for stem, table in found.items():
        tables.write_table(table, stem, out / "tables", formats, CAPTIONS[stem])
    page = out / "index.html"
    page.write_text(render(runs, found, formats), encoding="utf-8")
    return page


def all_tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """The report's tables by file stem."""
    return {
        "results": tables.results_table(runs),
        "differences": tables.difference_table(runs),
        "chosen": tables.chosen_table(runs),
        "stability": tables.stability_table(runs),
        "budget": tables.budget_table(runs),
        "trials": tables.trial_table(runs),
    }


def render(runs: Runs, found: dict[str, pd.DataFrame], formats: Sequence[str] = ()) -> str:
    """The page as text."""
    results, chosen = found["results"], found["chosen"]
    drawn = all_plots(runs, found)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    measured = not results.empty and bool(results["mean"].notna().any())
    return environment.get_template("report.html.j2").render(
        title=" vs ".join(runs.labels) + f" on {text(runs.studies[0].dataset.get('name'))}",
        made=_moment(datetime.now(UTC).timestamp()),
        summary=summary(runs, results, chosen),
        caveats=caveats(runs, results, found["budget"], chosen),
        interval_note=interval_note(results),
        tails=[(n, f"{200 * expanded_tail(n):.2g}") for n in (5, 10, 20)],
        tables={stem: _table(table, stem) for stem, table in found.items()},
        captions=CAPTIONS,
        suffixes=list(formats),
        measured=measured,
        not_a_result=NOT_A_RESULT,
        efficiency=next((_figure(p) for p in drawn if p.section == "efficiency"), None),
        training=_groups(drawn, "training"),
        diagnostics=_groups(drawn, "diagnostics"),
        from_search=any(
            (p.table["source"] == records.SEARCH).any() for p in drawn if p.section == "training"
        ),
        sees=by_condition(runs.galleries),
        several=len(runs.studies) > 1,
        search=[_figure(p) for p in drawn if p.section == "search"],
        rule=DEFAULT_RULE,
        used_rules=_used_rules(chosen),
        provenance=[_provenance(runs, study, chosen) for study in runs.studies],
        plotly=Markup(get_plotlyjs()),  # the library's own text, no input of ours
        config=_json(style.CONFIG),
        page=style.PAGE,
        font=Markup(style.FONT),  # a constant
    )


def reproduce(study: Study, config: dict[str, Any], seed: object) -> str:
    """The command that trains this configuration again."""
    pairs = [f"{key}={_plain(value)}" for key, value in config.items() if key != "seed"]
    pairs += [f"seed={seed}"] if seed is not None else []
    source = str(study.raw.get("source") or "SPEC.yaml")
    return shlex.join(["tune-ssl", "train", source, *pairs])


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _table(table: pd.DataFrame, stem: str) -> dict[str, Any]:
    columns = columns_of(table, stem)
    cells = shown(table, stem).to_numpy().tolist()
    bold = is_bold(table)
    status = list(table["status"]) if "status" in table else [""] * len(table)
    return {
        "columns": columns,
        "rows": [
            {"cells": row, "bold": marked, "status": state}
            for row, marked, state in zip(cells, bold, status, strict=True)
        ],
    }


def _groups(drawn: Sequence[Plot], section: str) -> list[tuple[str, list[Figure]]]:
    """(condition, its figures), in order of appearance."""
    groups: dict[str, list[Figure]] = {}
    for plot in drawn:
        if plot.section == section:
            groups.setdefault(plot.group, []).append(_figure(plot))
    return list(groups.items())


def _figure(plot: Plot) -> Figure:
    return Figure(plot.title, _json(json.loads(plot.figure.to_json())), plot.caption)


def _json(value: Any) -> Markup:
    """JSON that can stand inside a script element."""
    found = json.dumps(value)
    for character in "<>&":
        found = found.replace(character, f"\\u{ord(character):04x}")
    return Markup(found)  # escaped above


def _used_rules(chosen: pd.DataFrame) -> list[str]:
    """The rules the runs wrote down at their locks, where not word for word the page's own."""
    locked = chosen[chosen["locked"].astype(bool)]
    rules = dict.fromkeys(text(rule) for rule in locked["rule"])
    return [rule for rule in rules if rule != DEFAULT_RULE.sentence]


def _provenance(runs: Runs, study: Study, chosen: pd.DataFrame) -> dict[str, Any]:
    raw, dataset = study.raw, study.dataset
    trials = runs.trials[runs.trials["run"] == study.run]
    git = raw.get("git") or {}
    changed = " with uncommitted changes" if git.get("dirty") else ""
    seeds = {
        phase: sorted({int(s) for s in trials.loc[trials["phase"] == phase, "seed"].dropna()})
        for phase in (records.SEARCH, records.FINALIST, records.CONFIRM)
    }
    facts = {
        "Run": study.run,
        "Folder": study.path,
        "Method": study.method,
        "Loss terms": _listed(raw.get("loss_terms")),
        "Created": raw.get("created"),
        "Command": raw.get("command"),
        "Spec": raw.get("source"),
        "Dataset": f"{text(dataset.get('name'))}, digest {text(dataset.get('digest'))}",
        "Classes": _listed(dataset.get("classes")),
        "Images": _listed(dataset.get("counts")),
        "Code": f"{text(git.get('revision'))}{changed}",
        "Versions": _listed(raw.get("versions")),
        "Machine": _listed(raw.get("machine")),
        "Seeds of the search": _listed(seeds[records.SEARCH]),
        "Seeds of the finalists": _listed(seeds[records.FINALIST]),
        "Fresh seeds": _listed(seeds[records.CONFIRM]),
    }
    mine = chosen[chosen["run"] == study.run].to_dict("records")
    opened = runs.locks[runs.locks["run"] == study.run].to_dict("records")
    return {
        "name": study.label,
        "facts": {key: text(value) for key, value in facts.items()},
        "opened": [
            f"{row['condition']}: {_moment(row['time'])}, for {row['trial']}, "
            f"digest {text(row['digest'])}"
            for row in opened
        ],
        "commands": [(row["condition"], _command(study, row, trials)) for row in mine],
    }


def _command(study: Study, row: dict[Any, Any], trials: pd.DataFrame) -> str:
    wanted = records.CONFIRM if row["locked"] else records.SEARCH
    own = trials[(trials["condition"] == row["condition"]) & (trials["phase"] == wanted)]
    if not row["locked"]:
        own = own[own["trial"] == row["trial"]]
    seeds = own["seed"].dropna()
    values = next(c.get("values") for c in study.raw["conditions"] if c["id"] == row["condition"])
    config = {**(values or {}), **row["full_config"]}
    return reproduce(study, config, int(seeds.iloc[0]) if len(seeds) else None)


def _listed(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else text(value)


def _moment(time: Any) -> str:
    if not isinstance(time, (int, float)) or pd.isna(time):
        return NONE
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
