"""Commands for runs that there are: list them, take their winner and its network, use it, look inside."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.cli.options import Debug, Plugins, Runs
from tune_ssl.records.log import plain

app = typer.Typer()

Run = Annotated[str, typer.Argument(help="A run's folder, or its name under --runs.")]
OneCondition = Annotated[
    str | None, typer.Option(help="Its id; may be left out where there is only one.")
]


@app.command("list")
def list_runs(
    runs: Runs = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    debug: Debug = False,
) -> None:
    """List the runs: what they are of, how far they are, and their best validation value."""
    from tune_ssl.viewers import listing

    found = listing.read_all(runs)
    if as_json:
        print(json.dumps(plain([item.to_plain() for item in found]), indent=1))
        return
    console = Console(highlight=False)
    whole = [item for item in found if item.problem is None]
    if whole:
        console.print(listing.table(whole))
    for item in found:
        if item.problem is not None:
            console.print(f"broken: {item.problem}", markup=False, soft_wrap=True)
    if not found:
        console.print(f"{runs} has no run folder", markup=False, soft_wrap=True)


@app.command()
def best(
    run: Run,
    condition: OneCondition = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="File to write; a folder for a file of each condition."),
    ] = None,
    runs: Runs = Path("runs"),
    plugin: Plugins = None,
    debug: Debug = False,
) -> None:
    """Print a condition's winning spec as a study's YAML, for train, check and search."""
    from tune_ssl.methods.plugins import load_plugins
    from tune_ssl.runs import winner
    from tune_ssl.runs.folder import reopen

    load_plugins(plugin or ())  # for what has moved
    folder, study = reopen(runs, run)
    chosen = winner.winners(folder, study, condition, every=out is not None)
    if out is None:
        print(winner.as_yaml(folder, study, chosen[0]), end="")
        return
    for path in winner.write(folder, study, chosen, out):
        print(path)


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; new or empty.")],
    condition: OneCondition = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write the network as model.onnx, too, and compare it.")
    ] = False,
    runs: Runs = Path("runs"),
    plugin: Plugins = None,
    debug: Debug = False,
) -> None:
    """Write a confirmed condition's network to a folder of its own, with a card that says what it is."""
    from tune_ssl.artifacts.export import export_model
    from tune_ssl.methods.plugins import load_plugins
    from tune_ssl.runs.folder import find_run

    load_plugins(plugin or ())  # for what has moved
    card, difference = export_model(find_run(runs, run), condition, out, onnx)
    console = Console(highlight=False)
    console.print(f"model: {out} ({card.condition}, {card.trial})", markup=False, soft_wrap=True)
    if difference is not None:
        line = f"onnx: model.onnx in it, probabilities differ by at most {difference:.1e}"
        console.print(line, markup=False, soft_wrap=True)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="An exported folder, or RUN/models/<i>.")],
    images: Annotated[
        list[Path], typer.Argument(help="Image files, and folders to search for them.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="CSV to write; printed if absent.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images that are classified at once.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0.")] = "auto",
    plugin: Plugins = None,
    debug: Debug = False,
) -> None:
    """Classify images: a CSV with each one's class, its confidence, and every class's probability.

    An image that cannot be read is one line on stderr; the others are classified, and the exit code is 1.
    """
    from tune_ssl.artifacts import predict

    if batch_size < 1:
        raise UserError(Problem(f"is {batch_size}, but must be at least 1", "--batch-size"))
    files = predict.image_files(images, _warn)
    loaded = predict.load(model, device, plugin or ())
    bad = predict.write_csv(loaded, files, out, batch_size, _warn)
    if out is not None:
        done = f"predictions: {out} ({len(files) - bad} images)"
        Console(highlight=False).print(done, markup=False, soft_wrap=True)
    if bad:
        _warn(f"{bad} of {len(files)} images cannot be read")
        raise typer.Exit(1)


@app.command()
def dashboard(
    run: Run,
    port: Annotated[int, typer.Option(help="0 is any free one.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    write: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Write the studies to an Optuna storage (sqlite:///x.db) instead."
        ),
    ] = None,
    runs: Runs = Path("runs"),
    plugin: Plugins = None,
    debug: Debug = False,
) -> None:
    """Open optuna-dashboard on a run, also while it runs; it shows and changes nothing. Ctrl-C ends it.

    With --write it leaves the run's studies in an Optuna storage for other tools, and ends.
    """
    from tune_ssl.methods.plugins import load_plugins
    from tune_ssl.runs.folder import reopen
    from tune_ssl.viewers import dashboard as command

    def tell(line: str) -> None:
        print(line, flush=True)

    load_plugins(plugin or ())  # for what has moved
    folder, study = reopen(runs, run)
    if write is None:
        return command.serve(folder, study, host, port, tell)
    for name in command.write(folder, study, write):
        tell(f"study: {name}")


@app.command()
def watch(
    run: Annotated[
        str,
        typer.Argument(help="A run's folder, its name under --runs, or the URL of a run (s3://)."),
    ],
    port: Annotated[int, typer.Option(help="0 is any free one.")] = 8081,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Show a run in the browser while it goes on, and after it: a page that keeps itself up to date.

    Progress, time left, the curves of running trials, and the report. It changes nothing. Ctrl-C ends it.
    """
    from tune_ssl.viewers.watch import serve

    serve(run, runs, host, port, lambda line: print(line, flush=True))


@app.command()
def tensorboard(
    run: Run,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder to write; RUN/tensorboard if absent.")
    ] = None,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Write a run's history as TensorBoard logs: one run per trial, with its hyperparameters."""
    from tune_ssl.runs.folder import find_run
    from tune_ssl.viewers.tensorboard import write_logs

    folder = find_run(runs, run)
    target = out or folder / "tensorboard"
    count = write_logs(folder, target, replace=out is None)
    console = Console(highlight=False)
    console.print(f"logs of {count} trials: {target}", markup=False, soft_wrap=True)
    console.print(f"look at them: tensorboard --logdir {target}", markup=False, soft_wrap=True)


@app.command()
def fetch(
    url: Annotated[str, typer.Argument(help="URL/NAME of a run that `study.storage` keeps.")],
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Copy a run from its storage to --runs, or bring the copy up to date, for report, best, list and all."""
    from tune_ssl.runs.home import fetch_run

    print(f"run: {fetch_run(url, runs)}")


def _warn(line: str) -> None:
    print(line, file=sys.stderr)
