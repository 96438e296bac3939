"""Options that several commands have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

Runs = Annotated[Path, typer.Option(help="Folder of the run folders.")]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="A Python file with methods of your own. Repeatable."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Address = Annotated[
    str | None,
    typer.Option(help="A Ray cluster of which this machine is a node: auto or HOST:PORT."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value, as in the YAML: optim.lr=0.01 study.num_trials=4"),
]
DataRoot = Annotated[
    str | None, typer.Option("--data-root", help="Folder of the data: short for data.root=FOLDER.")
]


def all_overrides(
    overrides: list[str] | None, data_root: str | None, no_cache: bool = False
) -> list[str]:
    """The overrides, with the options that are short for one; a path is quoted, for it may look like a number."""
    root = [] if data_root is None else [f"data.root={json.dumps(data_root)}"]
    return [*(overrides or ()), *root, *(["compute.cache=false"] if no_cache else [])]
