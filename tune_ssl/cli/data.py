"""`tune-ssl data`: images prepared, looked at, and what is kept of them listed and deleted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tune_ssl.cli.options import DataRoot, Debug, Overrides, Plugins, all_overrides

app = typer.Typer(help="Prepare datasets, look at them, and clean up.", no_args_is_help=True)


@app.command("list")
def list_stores(debug: Debug = False) -> None:
    """What this machine keeps between runs: stores of images, features, pretrained networks."""
    from datetime import datetime

    from tune_ssl.data.kept import kept

    found = kept()
    console = Console(highlight=False, soft_wrap=True)
    width = max((len(one.name) for one in found), default=0)
    for one in found:
        used = f"{datetime.fromtimestamp(one.used):%Y-%m-%d %H:%M}"
        images = f"{one.images} images of {one.about}" if one.images else ""
        line = f"{one.name:{width}}  {one.kind:8}  {one.size / 1e6:9,.1f} MB  used {used}  {images}"
        console.print(line.rstrip(), markup=False)
    total = sum(one.size for one in found) / 1e6
    console.print(f"{len(found)} folders, {total:,.1f} MB", markup=False)


@app.command()
def clean(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names, as `data list` has them.")
    ] = None,
    unused: Annotated[
        float | None, typer.Option("--unused", help="All that was not used for so many days.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Delete what this machine keeps: tune-ssl data clean --unused 30. It is made anew when needed."""
    from tune_ssl.data.kept import delete

    gone = delete(names or (), unused)
    size = sum(one.size for one in gone) / 1e6
    console = Console(highlight=False, soft_wrap=True)
    for one in gone:
        ago = max(0.0, time.time() - one.used) / 60
        last = (
            f" (used {ago:.0f} minutes ago: a run that needs it reads its images again)"
            if ago < 60
            else ""
        )
        console.print(f"deleted: {one.kind} {one.name}{last}", markup=False)
    console.print(f"{len(gone)} folders, {size:,.1f} MB", markup=False)


@app.command()
@app.command("info", help="Show what a dataset's store holds; builds it if it is not there yet.")
def prepare(
    study: Annotated[Path | None, typer.Argument(help="A study's YAML file, or key=value.")] = None,
    overrides: Overrides = None,
    data_root: DataRoot = None,
    plugin: Plugins = None,
    debug: Debug = False,
) -> None:
    """Build a dataset's store: tune-ssl data prepare data.dataset=folder data.root=PATH"""
    from tune_ssl.data.store import prepare as prepare_store
    from tune_ssl.study.study import load_fixed

    texts = all_overrides(overrides, data_root)
    if study is not None and "=" in str(study):
        texts, study = [str(study), *texts], None
    loaded = load_fixed(study, texts, plugin or ())
    console = Console(highlight=False, soft_wrap=True)
    with loaded.placing():
        store = prepare_store(loaded.fixed.data)
    said = ("notes", "left_out", "skipped", "duplicates")
    for key, value in store.info().items():
        if key not in said:
            console.print(f"{key}: {value}", markup=False)
    for line in store.remarks():
        console.print(f"note: {line}", markup=False)
