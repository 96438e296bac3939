"""Figures as PNG, SVG and PDF for a paper: white ground, black text. Needs kaleido and a browser."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from analysis.plots import Follow, Plot, style, unfollowed
from tune_ssl.base.errors import UserError, unknown

FORMATS = ("png", "svg", "pdf")
WIDTH = 640  # pixels; 17 cm at 96 per inch, the text width of most papers
TIMEOUT = 90  # seconds, of one figure
PNG_SCALE = 3  # of PNG files: 288 pixels per inch


def families(plots: Sequence[Plot]) -> dict[str, list[Plot]]:
    """The figures by what their names begin with: those that differ in the condition are one family."""
    found: dict[str, list[Plot]] = {}
    for plot in plots:
        group = re.sub(r"[^A-Za-z0-9._=,@+-]", "_", plot.group)  # as in a file name
        name = plot.name.partition(f"-{group}")[0] if group else plot.name
        found.setdefault(name, []).append(plot)
    return found


def picked(plots: Sequence[Plot], names: Sequence[str]) -> list[Plot]:
    """The figures of these names, in the page's order; all of them without a name.

    A name is that of a figure or of a family, or what names begin with up to a hyphen:
    `search-curves` or `confusion-data.labels=50`.

    Raises:
        UserError: a name that no figure has.
    """
    by_family = families(plots)
    wanted: list[Plot] = []
    for name in names:
        own = by_family.get(name) or [
            plot for plot in plots if f"{plot.name}-".startswith(f"{name}-")
        ]
        if not own:
            raise UserError("--figures " + unknown("figure", name, by_family))
        wanted += own
    kept = {plot.name for plot in wanted}
    return [plot for plot in plots if plot.name in kept or not names]


def check(formats: Sequence[str]) -> None:
    """UserError, in one line, where figures cannot be drawn here."""
    wanted = f"--format {','.join(formats)}"
    if importlib.util.find_spec("kaleido") is None:
        raise UserError(f"{wanted} needs kaleido: pip install 'tune-ssl[report]'")
    if browser() is None:
        raise UserError(
            f"{wanted} needs Chromium or Chrome, and none was found: install one, or name it in "
            "the environment variable BROWSER_PATH"
        )


def browser() -> str | None:
    """The Chromium or Chrome that kaleido would start, if there is one."""
    from choreographer.browsers.chromium import Chromium

    found = Chromium.find_browser(skip_local="BROWSER_PATH" in os.environ)
    return found if found and os.access(found, os.X_OK) else None


def write_figures(
    plots: Sequence[Plot], out: Path, formats: Sequence[str], follow: Follow = unfollowed
) -> list[Path]:
    """Write `out`/<name>.<format> of every figure; one browser draws them all.

    Raises:
        UserError: the browser could not be started, or could not draw a figure.
    """
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    out.mkdir(parents=True, exist_ok=True)
    work = _draw(follow(plots, "writing figures", len(plots)), out, formats)
    try:
        # In a thread of its own, for a notebook has an event loop already.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, work).result()
    except Exception as error:  # kaleido and the browser raise many kinds
        reason = " ".join(str(error.args[0] if error.args else error).split())
        reason = reason or type(error).__name__
        raise UserError(f"{browser()} could not draw the figures: {reason}") from error


async def _draw(plots: Iterable[Plot], out: Path, formats: Sequence[str]) -> list[Path]:
    import kaleido

    written = []
    async with kaleido.Kaleido(n=1, timeout=TIMEOUT, mathjax=False) as drawing:
        for plot in plots:
            figure = style.on_paper(plot.figure, plot.full_title, WIDTH)
            for name in formats:
                path = out / f"{plot.name}.{name}"
                size = {"width": WIDTH, "height": figure.layout["height"]}
                size["scale"] = PNG_SCALE if name == "png" else 1
                path.write_bytes(
                    await drawing.calc_fig(figure.to_dict(), opts={"format": name, **size})
                )
                written.append(path)
    return written
