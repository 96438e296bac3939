"""Figures as PNG, SVG and PDF for a paper: white ground, black text. Needs kaleido and a browser."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from analysis.plots import Plot, style
from tune_ssl.base.errors import UserError

FORMATS = ("png", "svg", "pdf")
WIDTH = 640  # pixels; 17 cm at 96 per inch, the text width of most papers
TIMEOUT = 90  # seconds, of one figure
PNG_SCALE = 3  # of PNG files: 288 pixels per inch


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


def write_figures(plots: Sequence[Plot], out: Path, formats: Sequence[str]) -> list[Path]:
    """Write `out`/<name>.<format> of every figure; one browser draws them all.

    Raises:
        UserError: the browser could not be started, or could not draw a figure.
    """
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    out.mkdir(parents=True, exist_ok=True)
    work = _draw(plots, out, formats)
    try:
        # In a thread of its own, for a notebook has an event loop already.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, work).result()
    except Exception as error:  # kaleido and the browser raise many kinds
        reason = " ".join(str(error.args[0] if error.args else error).split())
        reason = reason or type(error).__name__
        raise UserError(f"{browser()} could not draw the figures: {reason}") from error


async def _draw(plots: Sequence[Plot], out: Path, formats: Sequence[str]) -> list[Path]:
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
