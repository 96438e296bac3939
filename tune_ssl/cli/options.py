"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RAY_CLIENT = "ray://"  # how an --address begins that is reached through Ray Client

Runs = Annotated[Path, typer.Option(help="Folder of the run folders.")]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="A Python file with methods of your own. Repeatable."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Address = Annotated[
    str | None,
    typer.Option(
        help="A Ray cluster: auto or HOST:PORT on one of its nodes, ray://HOST:10001 from outside."
    ),
]
