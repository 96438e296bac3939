"""What the page carries for its script: figures without their common look, tables as small archives.

Numbers a reader may download stand in the page, so that it works when moved alone.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from markupsafe import Markup

from analysis.plots import style
from analysis.plots.figure import AXIS, Figure

GZIP_LEVEL = 4  # of gzip; 9 takes twice the time for 4 % less
LARGEST = (
    4_000_000  # characters of one packed table; a larger one stays in the file beside the page
)


@cache
def common_layout() -> dict[str, Any]:
    """The layout that all figures share, stated once on the page."""
    return style.figure("", "").layout


def figure_json(figure: Figure) -> Markup:
    """The figure's JSON without what `common_layout` says already, safe inside a script element.

    The page's script puts the two together: a null takes a common value away.
    """
    spec, common = figure.to_dict(), common_layout()
    layout = spec["layout"]
    axes = [key for key in layout if AXIS.fullmatch(key)]
    own = {key: _less(layout[key], common[f"{key[0]}axis"]) for key in axes}
    rest = {key: value for key, value in layout.items() if key not in axes}
    shared = {key: value for key, value in common.items() if not AXIS.fullmatch(key)}
    return as_json({"data": spec["data"], "layout": {**_less(rest, shared), **own}})


def as_json(value: Any) -> Markup:
    """JSON that can stand inside a script element. ValueError for nan, which no browser reads."""
    found = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        found = found.replace(character, f"\\u{ord(character):04x}")
    return Markup(found)  # escaped above


def pack(text: str) -> Markup:
    """The text as base64 of gzip, which the page's script unpacks."""
    found = gzip.compress(text.encode(), GZIP_LEVEL, mtime=0)
    return Markup(base64.b64encode(found).decode())  # letters, digits, + / =


def _less(own: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    """`own` without what it shares with `common`; null where it lacks a key of it."""
    found: dict[str, Any] = {}
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(common.get(key), dict):
            inner = _less(value, common[key])
            found |= {key: inner} if inner else {}
        elif key not in common or value != common[key]:
            found[key] = value
    return found | {key: None for key in common if key not in own}
