"""Run folders -> one self-contained HTML page, the tables and the figures as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.numbers import ablations, comparisons, early, tables
from analysis.plots import all_plots
from analysis.read.load import Runs, load_runs
from analysis.report import export, page, paper
from analysis.words.sections import CAPTIONS
from tune_ssl.base.errors import UserError, unknown

FORMATS = (*paper.FORMATS, *export.FORMATS)


def write_report(
    run_paths: Sequence[str | Path], out: Path, formats: Sequence[str] = paper.FORMATS
) -> Path:
    """Write `out`/index.html, `out`/tables/* and `out`/figures/*; returns the page's path.

    `formats`: csv, md, latex for the tables; png, svg, pdf for the figures, which need kaleido and
    a browser.

    Raises:
        UserError: before anything is written, a folder that is not a run, an unknown format, an
            `out` that is a file, or no kaleido or browser where figures were asked for; at the
            end, a browser that does not work.
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError("--format " + unknown("format", name, FORMATS))
    of_tables = [name for name in formats if name in paper.FORMATS]
    of_figures = [name for name in formats if name in export.FORMATS]
    if of_figures:
        export.check(of_figures)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, but the report needs a folder")
    runs = load_runs(run_paths)
    found = all_tables(runs)
    captions = all_captions(runs, found)
    papers = {s: paper.PaperTable(table, s, captions.get(s, "")) for s, table in found.items()}
    drawn = all_plots(runs, found)
    text = page.render(runs, papers, drawn, of_tables)
    path = out / "index.html"
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        text = f"{out} cannot be written: {error.strerror}"
        raise UserError(text) from None
    for one in papers.values() if of_tables else ():
        one.write(out / "tables", of_tables)
    if of_figures:
        export.write_figures(drawn, out / "figures", of_figures)
    return path


def all_tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """The report's tables by file stem."""
    results = tables.results_table(runs)
    return {
        "results_wide": paper.wide_table(results),
        "results": results,
        "differences": comparisons.difference_table(runs),
        "aggregate": comparisons.aggregate_table(runs),
        "ranks": comparisons.rank_table(runs),
        "chosen": tables.chosen_table(runs),
        "ablation": ablations.ablation_table(runs),
        "effects": ablations.effect_table(runs),
        "early_ranks": early.early_ranks(runs),
        "stability": tables.stability_table(runs),
        "budget": tables.budget_table(runs),
        "trials": tables.trial_table(runs),
    }


def all_captions(runs: Runs, found: dict[str, pd.DataFrame]) -> dict[str, str]:
    """What stands above each table, by stem."""
    protocol = paper.protocol(runs, found["results"], found["budget"])
    return {**CAPTIONS, "results": protocol, "results_wide": protocol}
