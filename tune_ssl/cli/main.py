"""The command line. What is heavy loads inside the commands: `--help` needs no torch and no ray."""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tune_ssl.base.errors import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    Interrupted,
    Stopped,
    UserError,
)
from tune_ssl.base.lazy import no_garbage
from tune_ssl.base.secrets import STORAGE, Redacting
from tune_ssl.cli import data, on_runs, submit
from tune_ssl.cli.options import (
    Address,
    DataRoot,
    Debug,
    Overrides,
    Plugins,
    Runs,
    all_overrides,
)

app = typer.Typer(
    name="tune-ssl",
    help="Search, compare and report semi-supervised image classification, fairly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app, name="data")


def _version(asked: bool) -> None:
    if asked:
        from tune_ssl import __version__

        print(f"tune-ssl {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Search, compare and report semi-supervised image classification, fairly."""


app.add_typer(on_runs.app)
app.add_typer(submit.app)

NoCache = Annotated[
    bool,
    typer.Option("--no-cache", help="Reuse no pretrained network: short for compute.cache=false."),
]

Resume = Annotated[
    str | None,
    typer.Option(
        help="Go on with this run; with study.num_trials=40 or study.seeds=[...] with more."
    ),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="With --resume: run failed trials once more.")
]
Reopen = Annotated[
    bool,
    typer.Option(
        "--reopen",
        help="With --resume: choose anew, though test data was opened; the report says so.",
    ),
]

Storage = Annotated[
    str | None,
    typer.Option(help="Folder or URL (s3://, gs://) that keeps the runs; wins over study.storage."),
]


@app.command()
def search(
    study: Annotated[Path | None, typer.Argument(help="A study's YAML file.")] = None,
    overrides: Overrides = None,
    data_root: DataRoot = None,
    no_cache: NoCache = False,
    plugin: Plugins = None,
    name: Annotated[str | None, typer.Option(help="Name of the run folder.")] = None,
    resume: Resume = None,
    retry_failed: RetryFailed = False,
    reopen: Reopen = False,
    runs: Runs = Path("runs"),
    storage: Storage = None,
    confirm: Annotated[bool, typer.Option(help="Re-run the winners on fresh seeds.")] = True,
    address: Address = None,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show Ray's output.")] = False,
    debug: Debug = False,
) -> None:
    """Tune a study's method in each of its conditions, confirm the winners, write the report."""
    from tune_ssl.study.study import load_study

    _keep_in(storage)
    _only_with_resume(resume, retry_failed, reopen)
    console = Console()
    more: list[str] = []
    if resume is not None:
        more = _more([str(study)] if study else [], overrides)
        _refuse_with_resume(name or data_root or no_cache, plugin)
        going: Any = resume
    elif study is None:
        raise UserError("give either a study's YAML file or --resume RUN")
    else:
        going = load_study(study, all_overrides(overrides, data_root, no_cache), plugin or ())
        name = _run_name(name or going.settings.name, going.name)
    options = {"name": name, "runs": runs, "address": address, "verbose": verbose}
    taken_on = {"more": more, "again": retry_failed, "anew": reopen}
    run = _run(going, console, report, confirm=confirm, **options, **taken_on)
    if resume is not None and _compares(run):
        _answer(run, console)


@app.command()
def compare(
    methods: Annotated[
        list[str] | None,
        typer.Argument(help="Methods, key=value, or a study file with a section `compare`."),
    ] = None,
    data_root: DataRoot = None,
    no_cache: NoCache = False,
    plugin: Plugins = None,
    name: Annotated[str | None, typer.Option(help="Name of the run folder.")] = None,
    resume: Resume = None,
    retry_failed: RetryFailed = False,
    reopen: Reopen = False,
    runs: Runs = Path("runs"),
    storage: Storage = None,
    confirm: Annotated[bool, typer.Option(help="Re-run the winners on fresh seeds.")] = True,
    address: Address = None,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show Ray's output.")] = False,
    debug: Debug = False,
) -> None:
    """Tune several methods on the same data, labels and budget, and say which one helps.

    Without a file, what is left open is chosen from the data and the machine, and said. Without names: supervised,
    logistic_regression, label_spreading, fixmatch, soft_kmeans and simclr, as far as the machine carries them.
    """
    _keep_in(storage)
    console = Console()
    given = methods or []
    options = {"runs": runs, "address": address, "verbose": verbose, "confirm": confirm}
    _only_with_resume(resume, retry_failed, reopen)
    if resume is not None:
        more = _more(given, None)
        _refuse_with_resume(name or data_root or no_cache, plugin)
        taken_on = {"more": more, "again": retry_failed, "anew": reopen}
        run = _run(resume, console, report, **options, **taken_on)
    else:
        study, file, stores = _comparison(
            given, all_overrides(None, data_root, no_cache), plugin, console
        )
        name = _run_name(name or study.settings.name, file or study.name)
        run = _run(study, console, report, name=name, stores=stores, **options)
    if confirm:
        _answer(run, console)


@app.command()
def ablate(
    target: Annotated[str, typer.Argument(help="A run with a search, or a study's YAML file.")],
    overrides: Overrides = None,
    only: Annotated[
        str | None, typer.Option(help="The variants to train: a,b. All of `ablate:` if absent.")
    ] = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="Each loss term off or alone, no ramp-ups, supervised.")
    ] = False,
    factorial: Annotated[
        str | None, typer.Option(help="Every combination of these variants: a,b or a,b,c.")
    ] = None,
    condition: Annotated[
        list[str] | None, typer.Option(help="Its id; all of them if absent. Repeatable.")
    ] = None,
    data_root: DataRoot = None,
    no_cache: NoCache = False,
    plugin: Plugins = None,
    name: Annotated[str | None, typer.Option(help="Name of a YAML's run folder.")] = None,
    runs: Runs = Path("runs"),
    storage: Storage = None,
    address: Address = None,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show Ray's output.")] = False,
    debug: Debug = False,
) -> None:
    """Take the chosen configuration apart: variants on the same fresh seeds, scored on validation data.

    Of a run, each condition's chosen configuration is the reference; of a YAML file, its fixed part.
    `tune-ssl ablate RUN` alone goes on after Ctrl-C or a crash; with options it adds rows.
    """
    from tune_ssl.tuning.ablation import Wanted

    _keep_in(storage)
    console = Console()
    rows, switches = _listed("--only", only), _listed("--factorial", factorial)
    wanted = Wanted(rows, auto, switches, tuple(condition or ()))
    going: Any = target
    if target.endswith((".yaml", ".yml")):
        from tune_ssl.study.study import load_study

        going = load_study(target, all_overrides(overrides, data_root, no_cache), plugin or ())
        name = _run_name(name or going.settings.name, f"{going.name}-ablation")
    else:
        if overrides or name or data_root or no_cache:
            raise UserError("a run keeps its name, study and data: give it alone")
        from tune_ssl.methods.plugins import load_plugins

        load_plugins(plugin or ())  # for what has moved
    options = {"name": name, "runs": runs, "address": address, "verbose": verbose}
    _run(going, console, report, ablation=wanted, **options)


@app.command()
def report(
    run: Annotated[list[str], typer.Argument(help="Run folders, or names under --runs.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder to write to.")] = None,
    formats: Annotated[
        str, typer.Option("--format", help="Tables as csv,md,latex; figures as png,svg,pdf.")
    ] = ("csv,md,latex"),
    figures: Annotated[
        str | None,
        typer.Option(
            help="The figures to draw, a,b: by name, or by what names begin with (search-curves is "
            "that of every condition). `list` prints the names."
        ),
    ] = None,
    intervals: Annotated[
        str | None,
        typer.Option(
            help="How LaTeX tables set intervals: brackets, plusminus or stacked (below the mean). "
            "Absent: stacked in results_wide, brackets in the others."
        ),
    ] = None,
    home: Annotated[str, typer.Option(hidden=True, help="The URL that RUN is a copy of.")] = "",
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Write one HTML page, the tables and, if asked, the figures of one run or of several."""
    from analysis.report.report import figure_names, write_report
    from tune_ssl.artifacts.thumbnails import images_of
    from tune_ssl.base.progress import progress

    paths = [Path(name) if Path(name).exists() else runs / name for name in run]
    wanted = tuple(part.strip() for part in formats.split(",") if part.strip())
    if figures == "list":
        print("\n".join(figure_names(paths)))
        return
    only = _listed("--figures", figures, "figures")
    if out is None:
        if len(paths) > 1:
            raise UserError("a report of several runs needs a folder to write to: --out FOLDER")
        out = paths[0] / "report"
    page = write_report(paths, out, wanted, images_of, only, intervals or "", progress, home)
    _name(page, Console())


@app.command()
def neighbors(
    run: Annotated[str, typer.Argument(help="A confirmed run's folder, or its name under --runs.")],
    query: Annotated[int, typer.Option(help="How many query images, 1 to 100.")] = 4,
    k: Annotated[int, typer.Option("--k", help="Neighbours of each, 1 to 100.")] = 5,
    condition: Annotated[str | None, typer.Option(help="Its id; the first one if absent.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="PNG to write; RUN/neighbors.png if absent.")
    ] = None,
    runs: Runs = Path("runs"),
    plugin: Plugins = None,
    debug: Debug = False,
) -> None:
    """Show which validation images a confirmed run's network finds alike."""
    from tune_ssl.artifacts import neighbors as command
    from tune_ssl.methods.plugins import load_plugins
    from tune_ssl.runs.folder import find_run, run_plugins

    load_plugins(plugin or ())  # for what has moved
    folder = find_run(runs, run)
    run_plugins(folder)
    found = command.find(folder, condition, query, k)
    out = out or folder / "neighbors.png"
    command.write_grid(found, out)
    console = Console(highlight=False)
    console.print(f"{found.condition}, {found.trial}", soft_wrap=True, markup=False)
    console.print(command.table(found))
    console.print(command.sentence(found), soft_wrap=True)
    console.print(f"images: {out}", soft_wrap=True, markup=False)


@app.command()
def train(
    study: Annotated[
        Path,
        typer.Argument(
            help="A study's YAML file, whose fixed part is trained; a run with --trial."
        ),
    ],
    overrides: Overrides = None,
    trial: Annotated[str | None, typer.Option(help="Train this trial of a run again.")] = None,
    data_root: DataRoot = None,
    no_cache: NoCache = False,
    plugin: Plugins = None,
    debug: Debug = False,
) -> None:
    """Train one spec here and now, without Ray; prints every evaluation."""
    from tune_ssl.study.study import load_fixed

    texts = all_overrides(overrides, data_root, no_cache)
    if trial is None:
        loaded = load_fixed(study, texts, plugin or ())
    else:
        from tune_ssl.runs.winner import study_of_trial

        if texts:
            raise UserError("a trial of a run is trained as it was: give --trial alone")
        loaded = study_of_trial(study, trial)
    from tune_ssl.base.progress import StepBar
    from tune_ssl.base.spec import digest
    from tune_ssl.data.store import prepare as prepare_store
    from tune_ssl.training.loop import Collapsed, Diverged, TooLong
    from tune_ssl.training.loop import train as run_training

    spec, settings = loaded.fixed, loaded.settings
    console = Console(highlight=False, soft_wrap=True)
    shown = f"{spec.method.name} on {spec.data.dataset}, seed {spec.seed}"
    console.print(f"spec {digest(spec)}: {shown}", markup=False)
    try:
        with loaded.placing():
            store = prepare_store(spec.data)
            for line in store.remarks():
                console.print(f"data: {line}", markup=False)
            total = sum(spec.stage_steps().values())
            with StepBar(console, total) as bar:
                for item in run_training(
                    spec,
                    metric=settings.metric,
                    mode=settings.mode,
                    store=store,
                    on_step=bar.step,
                ):
                    kept = {
                        k: v
                        for k, v in item.metrics.items()
                        if k.startswith(("val/", "raw/", "loss/"))
                    }
                    values = {key: f"{key} {value:.4f}" for key, value in kept.items()}
                    console.print(
                        f"{item.stage} step {item.step} ({item.seconds:.1f} s)  {'  '.join(values.values())}",
                        markup=False,
                    )
                    bar.step(item.stage, item.step)
                    last = ("loss/total", settings.metric)
                    bar.say(", ".join(values[key] for key in last if key in values))
                    for note in item.notes:
                        console.print(note, markup=False)
            _say_chance(item, console)
    except (Diverged, Collapsed, TooLong) as error:
        console.print(f"{type(error).__name__.lower()}: {error}", markup=False)
        raise typer.Exit(1) from None


def _say_chance(last: Any, console: Console) -> None:
    """One line where a training ends with what guessing would reach."""
    from tune_ssl.records.ties import at_chance

    value, classes = last.result.get("val/mean_class_accuracy"), last.trained.data.task.num_classes
    images = len(last.trained.data.sets.validation)
    if value is not None and at_chance(value, value, classes, images):
        near = value <= 1.2 / classes
        how = "is at chance level" if near else f"on {images} images cannot be told from chance"
        console.print(
            f"val/mean_class_accuracy {value:.4f} {how}: guessing among {classes} classes gives {1 / classes:.4f}"
        )


@app.command()
def check(
    study: Annotated[Path | None, typer.Argument(help="A study's YAML file.")] = None,
    overrides: Overrides = None,
    data_root: DataRoot = None,
    plugin: Plugins = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print a JSON schema for editors instead.")
    ] = False,
    fast: Annotated[
        bool, typer.Option("--fast", help="Take no step: look at the file and the data.")
    ] = False,
    runs: Runs = Path("runs"),
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Validate a study: both ends of every domain, its data, its splits, and one step and evaluation of each condition.

    With --address its trials are for that cluster, and not measured against this machine.
    """
    if schema:
        from tune_ssl.methods.plugins import load_plugins
        from tune_ssl.study.editor_schema import study_schema

        load_plugins(plugin or ())
        print(json.dumps(study_schema(), indent=2))
        return
    if study is None:
        raise UserError("give a study's YAML file, or --schema")
    from tune_ssl.runs.splits import caveats, check_data
    from tune_ssl.runs.start_from import with_starts
    from tune_ssl.search.rehearsal import refuse_unusable
    from tune_ssl.study.domains import trials_of
    from tune_ssl.study.loggers import refuse_missing
    from tune_ssl.study.study import load_study
    from tune_ssl.tuning.check import refuse_beyond_machine, rehearse_all

    loaded = load_study(study, all_overrides(overrides, data_root), plugin or ())
    if address is None:
        refuse_beyond_machine(loaded)
    refuse_missing(loaded)
    stores = check_data(loaded)
    loaded = with_starts(loaded, stores, runs)
    refuse_unusable(loaded)
    settings, first = loaded.settings, stores[loaded.conditions[0].id]
    console = Console(highlight=False, soft_wrap=True)
    rehearsed = [] if fast else rehearse_all(loaded, stores)
    cells = len({condition.cell for condition in loaded.conditions})
    methods = ", ".join(entry.label for entry in loaded.entries)
    keys = ", ".join(str(len(entry.search)) for entry in loaded.entries)
    each = {
        e.label: trials_of(settings.searcher, e.search, settings.num_trials) for e in loaded.entries
    }
    trials = ", ".join(map(str, dict.fromkeys(each.values())))
    console.print(
        f"{study}: sound. {methods} on {loaded.fixed.data.dataset} "
        f"(digest {first.digest}); {cells} condition{'s' * (cells != 1)} x "
        f"{trials} trial{'s' * (trials != '1')} over {keys} searched key{'s' * (keys != '1')}, confirmed on "
        f"{len(settings.seeds)} seed{'s' * (len(settings.seeds) != 1)}",
        markup=False,
    )
    fewer = [
        f"{label}: {count} of study.num_trials={settings.num_trials} trials, for the space has no more configs"
        for label, count in each.items()
        if count < settings.num_trials and settings.num_trials > 1
    ]
    for line in (*caveats(loaded, stores), *fewer, *rehearsed):
        console.print(line, markup=False)


def _keep_in(storage: str | None) -> None:
    """--storage is for this command what the variable is for all: it wins over the study's file."""
    if storage is not None:
        os.environ[STORAGE] = storage


def _run_name(given: str | None, otherwise: str) -> str:
    """The run folder's name: the given one, checked, or one with the time in it."""
    from datetime import datetime

    from tune_ssl.study.study import check_name

    chosen = given or f"{otherwise}-{datetime.now():%Y%m%d-%H%M%S}"
    check_name(chosen)
    return chosen


def _refuse_with_resume(given: object, plugin: list[Path] | None) -> None:
    """UserError if anything of a new run is `given`; plugins are loaded, for they may have moved."""
    if given:
        raise UserError(
            "a resumed run keeps its name, study and data: give none of them with --resume"
        )
    from tune_ssl.methods.plugins import load_plugins

    load_plugins(plugin or ())


def _more(given: list[str], overrides: list[str] | None) -> list[str]:
    """What a run is taken on with: `study.num_trials=40`. UserError for a file."""
    texts = [*given, *(overrides or ())]
    if files := [text for text in texts if "=" not in text]:
        raise UserError(
            f"a resumed run keeps its name, study and data: {files[0]} is not taken; study.num_trials=40 adds trials"
        )
    return texts


def _only_with_resume(resume: str | None, retry_failed: bool, reopen: bool) -> None:
    for option, given in (("--retry-failed", retry_failed), ("--reopen", reopen)):
        if given and resume is None:
            raise UserError(f"{option} is for a run that goes on: give --resume RUN too")


def _comparison(
    given: list[str], more: list[str], plugin: list[Path] | None, console: Console
) -> tuple[Any, str | None, dict[str, Any]]:
    """The study of `compare`'s arguments, with what was chosen said, its file's name, and its images."""
    from tune_ssl.runs.splits import check_data, without_negatives
    from tune_ssl.study.proposal import load_comparison
    from tune_ssl.tuning.estimate import has_gpu, minutes, side_carried, why_no_weights

    overrides = [text for text in given if "=" in text] + more
    names = [text for text in given if "=" not in text]
    files = [name for name in names if name.endswith((".yaml", ".yml"))]
    if len(files) > 1:
        raise UserError(f"is given {len(files)} study files ({', '.join(files)}), but takes one")
    path = Path(files[0]) if files else None
    named = [name for name in names if name not in files]

    def loaded(methods: list[str]) -> tuple[Any, list[str]]:
        return load_comparison(
            path,
            methods,
            overrides,
            plugin or (),
            gpu=has_gpu(),
            reachable=why_no_weights,
            side=side_carried,
        )

    study, lines = loaded(named)
    proposed = path is None and not named
    stores = check_data(study, negatives=not proposed)
    if proposed and (left := without_negatives(study, stores)):
        study, lines = loaded([e.label for e in study.entries if e.label not in left])
        lines += [f"{method} is left out: {why}" for method, why in left.items()]
        stores = {condition.id: stores[condition.id] for condition in study.conditions}
    for line in (*lines, *minutes(study, stores)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return study, path.stem if path else None, stores


def _compares(run: Path) -> bool:
    """Whether a run compares methods, so that its last lines are the answer."""
    from tune_ssl.base.yaml_file import read_yaml
    from tune_ssl.records import log

    return "compare" in read_yaml(run / log.STUDY).data


def _answer(run: Path, console: Console) -> None:
    """What a comparison found, in words, and what to do next."""
    from analysis.report.report import all_tables
    from analysis.words.answer import answer

    for line in answer(run, all_tables):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _run(going: Any, console: Console, report: bool, **options: Any) -> Path:
    """Run a study, or go on with a run, and write its report: what search and ablate end with."""
    with no_garbage():
        from tune_ssl.tuning.run import run_study

    run = run_study(going, console=console, **options)
    if report:
        _write_report(run, console)
    return run


def _write_report(run: Path, console: Console) -> None:
    from analysis.report.report import write_report
    from tune_ssl.artifacts.thumbnails import images_of
    from tune_ssl.base.progress import progress
    from tune_ssl.storage.mirror import mirror_of

    page = write_report([run], run / "report", find_images=images_of, follow=progress)
    if mirror := mirror_of(run):
        mirror.push()
    _name(page, console)


def _name(page: Path, console: Console) -> None:
    console.print(f"report: {page}", soft_wrap=True, highlight=False, markup=False)


def _listed(option: str, names: str | None, kind: str = "variants") -> tuple[str, ...]:
    found = tuple(part.strip() for part in (names or "").split(",") if part.strip())
    if names is not None and not found:
        raise UserError(f"{option} is {names!r}, but must name {kind}: a,b")
    return found


def _interrupt(*_: object) -> None:
    raise Interrupted("interrupted")


def main() -> None:
    """Entry point: a user's mistakes are one line each on stderr and exit code 2, no traceback."""
    debug = "--debug" in sys.argv
    # Before it ends, Python would search all that is loaded for garbage: .8 seconds.
    atexit.register(gc.freeze)
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    out, err = Redacting(sys.stdout), Redacting(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):  # type: ignore[type-var]
        _main(debug)


def _main(debug: bool) -> None:
    try:
        app(prog_name="tune-ssl")
    except UserError as error:
        if debug:
            traceback.print_exc()
        for problem in error.problems:
            print(problem, file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except Stopped as stop:
        if debug:
            traceback.print_exc()
        print(stop, file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except Exception:  # ours; its traceback goes through what redacts, too
        traceback.print_exc()
        sys.exit(EXIT_STOPPED)


if __name__ == "__main__":
    main()
