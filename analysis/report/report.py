"""Run folders -> one self-contained HTML page, the tables and the figures as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.numbers import ablations, comparisons, early, labels_saved, places, tables
from analysis.plots import Follow, all_plots, unfollowed
from analysis.read.load import Runs, load_runs
from analysis.report import checklist, export, images, page, paper
from analysis.report.latex import INTERVALS
from analysis.words.sections import CAPTIONS
from tune_ssl.base.errors import UserError, unknown

FORMATS = (*paper.FORMATS, *export.FORMATS)


def write_report(
    run_paths: Sequence[str | Path],
    out: Path,
    formats: Sequence[str] = paper.FORMATS,
    find_images: images.FindImages | None = None,
    figures: Sequence[str] = (),
    intervals: str = "",
    follow: Follow = unfollowed,
    home: str = "",
) -> Path:
    """Write `out`/index.html, `out`/tables/* and `out`/figures/*; returns the page's path.

    `formats`: csv, md, latex for the tables; png, svg, pdf for the figures, which need kaleido and
    a browser. `find_images` opens the images of a run's data, by digest and path, for the page to show.
    `figures` names those to draw, as `export.picked` takes them; none names all. `intervals` says how
    LaTeX sets them, one of `latex.INTERVALS`; "" is what suits each table. `follow` hands on what is
    drawn, item by item, and may show how far it is. `home` is the URL that the run folder is a copy of:
    commands name that one.

    Raises:
        UserError: before anything is written, a folder that is not a run, an unknown format, figure
            or setting of intervals, an `out` that is a file, or no kaleido or browser where figures
            were asked for; at the end, a browser that does not work.
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError("--format " + unknown("format", name, FORMATS))
    if intervals and intervals not in INTERVALS:
        raise UserError("--intervals " + unknown("setting", intervals, INTERVALS))
    of_tables = [name for name in formats if name in paper.FORMATS]
    of_figures = [name for name in formats if name in export.FORMATS]
    if figures and not of_figures:
        raise UserError(
            f"--figures names figures to draw as files, but --format is {','.join(formats)}: "
            f"add one of {', '.join(export.FORMATS)}"
        )
    if of_figures:
        export.check(of_figures)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, but the report needs a folder")
    runs = load_runs(run_paths, home)
    found = all_tables(runs)
    captions = all_captions(runs, found)
    papers = {
        stem: paper.PaperTable(table, stem, captions.get(stem, ""), intervals)
        for stem, table in found.items()
    }
    drawn = all_plots(runs, found, follow)
    wanted = export.picked(drawn, figures)
    single = images.single_images(runs, find_images)
    text = page.render(runs, papers, drawn, of_tables, single)
    path = out / "index.html"
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        text = f"{out} cannot be written: {error.strerror}"
        raise UserError(text) from None
    for one in papers.values() if of_tables else ():
        one.write(out / "tables", of_tables)
    if "csv" in of_tables:
        single.write(out / "tables")
    if "md" in of_tables:
        checklist.write(runs, found, out / "tables")
    if of_figures:
        export.write_figures(wanted, out / "figures", of_figures, follow)
    return path


def figure_names(run_paths: Sequence[str | Path]) -> list[str]:
    """The names that `figures` may have, with how many figures each draws."""
    runs = load_runs(run_paths)
    found = export.families(all_plots(runs, all_tables(runs)))
    return [f"{name}{f' ({len(own)})' if len(own) > 1 else ''}" for name, own in found.items()]


def all_tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """The report's tables by file stem."""
    results, chosen = tables.results_table(runs), tables.chosen_table(runs)
    return {
        "results_wide": paper.wide_table(results),
        "results": results,
        "differences": comparisons.difference_table(runs),
        "gains": comparisons.gain_table(runs),
        "labels_saved": labels_saved.labels_saved(runs),
        "chosen": chosen,
        "places": places.places_table(runs, chosen),
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
