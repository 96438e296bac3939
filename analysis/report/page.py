"""The report's page: tables and figures put into their sections, as the template shows them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from analysis.numbers.images import groups
from analysis.numbers.importance import importance_notes
from analysis.numbers.stats import LEAST_SEEDS
from analysis.numbers.tables import CELL, config_text
from analysis.plots import Plot, style
from analysis.read.galleries import galleries_by_condition
from analysis.read.load import TEST_METRIC, Runs
from analysis.read.selection import DEFAULT_RULE
from analysis.report.checklist import checklist
from analysis.report.images import SingleImages
from analysis.report.packing import LARGEST, as_json, common_layout, figure_json, pack
from analysis.report.paper import SUFFIX, PaperTable, csv_text
from analysis.report.provenance import moment, provenance, used_rules
from analysis.report.trace import TrialLinks, anchors, commands, seeds
from analysis.words.answer import LAST_WORDS
from analysis.words.display import brief, metric_value, text
from analysis.words.next_steps import next_steps
from analysis.words.overview import grid, method_sentences
from analysis.words.sections import MEASURED, SECTIONS, TITLES, Section, place_of, section_of
from analysis.words.summary import caveats, interval_note, not_a_result, summary, what_ran
from tune_ssl.records import log

FILTERED = 6  # a table with at least this many rows has a filter
KINDS = {"csv": "CSV", "md": "Markdown", "latex": "LaTeX"}  # of files, and what their buttons say
FIRST = "label-efficiency"  # the figure that stands beside the grid
MANY = 3  # methods, up to which a title names them
TRIALS = "trials"  # the table whose rows the page's script writes, a page of them at a time


@dataclass(frozen=True)
class Download:
    """A file that the page carries, packed."""

    id: str
    title: str
    name: str
    packed: Markup


def render(
    runs: Runs,
    papers: Mapping[str, PaperTable],
    drawn: Sequence[Plot],
    formats: Sequence[str] = (),
    single: SingleImages | None = None,
) -> str:
    """The page as text. `formats` are those of the files written beside it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found = {stem: paper.table for stem, paper in papers.items()}
    results, chosen = found["results"], found["chosen"]
    findings = summary(runs, results, chosen, found["differences"], found["ablation"])
    lead = next((line for line in findings if line.startswith(LAST_WORDS)), "")
    lead = lead or next(iter(findings), "No trial has started yet.")
    glance = grid(runs, found)
    shown_first = next((plot for plot in drawn if glance and plot.name == FIRST), None)
    return environment.get_template("report.html.j2").render(
        title=_title(runs),
        made=moment(datetime.now(UTC).timestamp()),
        lead=lead,
        summary=[line for line in findings if line != lead],
        grid=glance,
        first_figure=_figure(shown_first, shown_first.title) if shown_first else None,
        method_sentences=[*method_sentences(runs, found)] if glance else [],
        what_ran=what_ran(runs, chosen),
        next_steps=next_steps(runs, found),
        caveats=caveats(runs, results, found["budget"], chosen, found["ablation"]),
        interval_note=interval_note(results),
        least_seeds=LEAST_SEEDS,
        sections=_sections(runs, papers, [p for p in drawn if p is not shown_first], formats),
        measured=bool(results["mean"].notna().any()),
        not_a_result=not_a_result(runs),
        sees=galleries_by_condition(runs.galleries),
        single=single,
        single_files=_single_files(single),
        several=len(runs.studies) > 1,
        rule=DEFAULT_RULE,
        used_rules=used_rules(chosen),
        provenance=[provenance(runs, study, chosen) for study in runs.studies],
        checklist=checklist(runs, found),
        plotly=pack(plotly_script()),
        settings=as_json({"config": style.CONFIG, "layout": common_layout()}),
        page=style.PAGE,
        font=Markup(style.FONT),  # a constant
    )


def _title(runs: Runs) -> str:
    several = len(runs.labels) > MANY
    methods = f"{len(runs.labels)} methods" if several else " vs ".join(runs.labels)
    return f"{methods} on {text(runs.studies[0].dataset.get('name'))}"


def _single_files(single: SingleImages | None) -> list[Download]:
    """The tables of single images, as far as the page has room for them."""
    tables = single.tables if single else {}
    found = [_download(stem, "csv", csv_text(table)) for stem, table in tables.items()]
    return [replace(one, title=one.name) for one in found if len(one.packed) <= LARGEST]


def plotly_script() -> str:
    """plotly.js, as the package brings it; the package itself is not imported."""
    package = find_spec("plotly")
    assert package and package.origin
    return (Path(package.origin).parent / "package_data/plotly.min.js").read_text(encoding="utf-8")


def _sections(
    runs: Runs,
    papers: Mapping[str, PaperTable],
    drawn: Sequence[Plot],
    formats: Sequence[str],
) -> list[dict[str, Any]]:
    """The sections that have something to show."""
    wanted = _worth_showing({stem: paper.table for stem, paper in papers.items()})
    trial_links = TrialLinks(runs)
    always = {"results", "provenance", "intervals", *(["sees"] if runs.galleries else [])}
    always |= {"single"} if groups(runs) else set()
    sections = []
    for section in SECTIONS:
        stems = [s for s in dict.fromkeys((*section.tables, *wanted)) if s in wanted]
        views = [
            _trials(runs, papers[stem], formats)
            if stem == TRIALS
            else _table(papers[stem], trial_links)
            for stem in stems
            if section_of(stem) == section.id
        ]
        said = ""
        for view in views:  # a caption is said once to tables that share it
            if view["caption"] == said:
                view["caption"] = view["how"] = ""
            said = view["caption"] or said
        plots = [plot for plot in drawn if place_of(plot.section) == section.id]
        searched = section.id == "importance" and (runs.trials["phase"] == log.SEARCH).any()
        notes = importance_notes(runs) if searched else []
        if views or plots or notes or section.id in always:
            head = {**_head(section), "notes": notes}
            sections.append({**head, "tables": views, **_figures(plots)})
    return sections


def _worth_showing(found: Mapping[str, pd.DataFrame]) -> list[str]:
    """The tables with rows; those of test values only once there are some, none twice."""
    measured = bool(found["results"]["mean"].notna().any())
    single = len(found["results"].drop_duplicates(CELL)) < 2
    left_out = {*(() if measured else MEASURED), *(("results_wide",) if single else ())}
    return [stem for stem, table in found.items() if len(table) and stem not in left_out]


def _head(section: Section) -> dict[str, str]:
    return {"id": section.id, "title": section.title, "intro": section.intro}


def _table(paper: PaperTable, trial_links: TrialLinks) -> dict[str, Any]:
    rows = paper.table.to_dict("records")
    links = [trial_links.links(paper.stem, {str(k): v for k, v in row.items()}) for row in rows]
    return {
        "stem": paper.stem,
        "title": TITLES.get(paper.stem, ""),
        **_caption(paper.caption),
        "columns": paper.columns,
        "rows": [
            {"cells": cells, "links": own} for cells, own in zip(paper.cells, links, strict=True)
        ],
        "linked": any(links),
        "filtered": len(rows) >= FILTERED,
        "downloads": [_download(paper.stem, kind, paper.text(kind)) for kind in KINDS],
    }


def _trials(runs: Runs, paper: PaperTable, formats: Sequence[str]) -> dict[str, Any]:
    """The table of all trials, packed; its script shows a page of it at a time."""
    rows = {
        "cells": [[text for text, _ in cells] for cells in paper.cells],
        "ids": anchors(runs),
        "commands": commands(runs),
        **_trial_facts(runs),
    }
    download = _download(TRIALS, "csv", paper.csv)
    fits = len(download.packed) <= LARGEST
    return {
        "stem": TRIALS,
        "title": "",
        **_caption(paper.caption),
        "columns": paper.columns,
        "rows": [],
        "linked": False,
        "count": len(paper.table),
        "packed": pack(json.dumps(rows)),
        "chosen_by": [
            column.title
            for column in paper.columns
            if column.title in ("Method", "Condition", "Phase", "Status")
        ],
        "downloads": [download] if fits else [],
        "beside": "csv" in formats,
        "too_large": not fits,
    }


def _trial_facts(runs: Runs) -> dict[str, Any]:
    """What an opened trial says besides its row: the names of its facts, and each trial's."""
    trials = runs.trials
    test = trials.get(TEST_METRIC, pd.Series(math.nan, index=trials.index))
    found: dict[str, Iterable[str]] = {
        "Seed": (_fact(seed) for seed in seeds(runs)),
        "Variant": map(_fact, trials["variant"]),
        "Configuration": map(config_words, trials["full_config"]),
        "Test, mean per-class accuracy, %": (
            "" if pd.isna(value) else metric_value(value, TEST_METRIC) for value in test
        ),
        "Digest": map(_fact, trials["digest"]),
        "Digest of the labeled images": map(_fact, trials["split"]),
        "Started": map(moment, trials["started"]),
        "Reason": map(_fact, trials["reason"]),
    }
    return {"facts": list(found), "more": list(zip(*found.values(), strict=True))}


def _figures(plots: Sequence[Plot]) -> dict[str, Any]:
    """`grid`: figures that stand side by side; `groups`: those of each condition, where several."""
    groups: dict[str, list[Plot]] = {}
    for plot in plots:
        groups.setdefault(plot.group, []).append(plot)
    grouped = {name: own for name, own in groups.items() if name}
    if all(len(own) == 1 for own in grouped.values()):
        return {"grid": [_figure(plot, plot.full_title) for plot in plots], "groups": []}
    return {
        "grid": [_figure(plot, plot.title) for plot in groups.get("", [])],
        "groups": [
            (name, [_figure(plot, plot.title) for plot in own]) for name, own in grouped.items()
        ],
    }


def _figure(plot: Plot, title: str) -> dict[str, Any]:
    parts = (plot.full_title or plot.name, plot.caption)
    return {
        "title": title,
        "label": ". ".join(part.rstrip(".") for part in parts if part),
        **_caption(plot.caption),
        "across": plot.figure.layout.get("meta") == "wide",
        "height": plot.figure.layout["height"],
        "spec": figure_json(plot.figure),
        "downloads": [_download(f"figure-{plot.name}", "csv", csv_text(plot.table))],
    }


def _caption(text: str) -> dict[str, str]:
    """What stands in sight, and what is opened on request."""
    return dict(zip(("caption", "how"), brief(text), strict=True))


def _download(stem: str, kind: str, text: str) -> Download:
    name = stem + SUFFIX[kind]
    return Download(f"file-{name}", KINDS[kind], name.removeprefix("figure-"), pack(text))


def config_words(config: Any) -> str:
    return config_text(config, [*config]) if isinstance(config, dict) else ""


def _fact(value: Any) -> str:
    return "" if value is None or value != value else str(value)
