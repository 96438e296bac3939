"""Options that several commands have."""

from __future__ import annotations

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
    typer.Option(help="A Ray cluster of which this machine is a node: auto, or HOST:PORT."),
]
