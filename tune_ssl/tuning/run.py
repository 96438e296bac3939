"""A study's run: search in every condition, confirm the winners, all inside one run folder.

The Optuna studies are the truth and Ray is the muscle: a resume builds a fresh Tuner on the same
studies and never unpickles anything of Ray's.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayError
from ray.tune import TuneError
from rich.console import Console

from tune_ssl.base import retry
from tune_ssl.base.errors import EXIT_STOPPED, Interrupted, Problem, Stopped, UserError
from tune_ssl.base.retry import until_it_works
from tune_ssl.base.secrets import redact_value
from tune_ssl.base.spec import StudySpec
from tune_ssl.cluster.connect import cluster, started_here, watched
from tune_ssl.cluster.nodes import refuse_local_data, refuse_unfit_nodes
from tune_ssl.cluster.resources import fit_resources, gpu_share
from tune_ssl.data.store import Store
from tune_ssl.records import ledger, log
from tune_ssl.runs.describe import command_line
from tune_ssl.runs.folder import (
    create,
    refuse_existing,
    refuse_other_data,
    refuse_without_search,
    reopen,
)
from tune_ssl.runs.home import driving, find_home, place_new, rejoin
from tune_ssl.runs.resuming import found
from tune_ssl.runs.splits import check_data, record_splits
from tune_ssl.search.condition import RoutingSearcher, StudySource
from tune_ssl.search.storage import check_storage
from tune_ssl.storage.mirror import mirror_of
from tune_ssl.storage.places import Place, folder_of
from tune_ssl.study.study import Study
from tune_ssl.tuning.ablation import Ablation, Planner, Retuning, Wanted
from tune_ssl.tuning.confirm import ConfirmSource, confirm_trial
from tune_ssl.tuning.finalists import FinalistSource
from tune_ssl.tuning.job import Job
from tune_ssl.tuning.live_table import LiveTable
from tune_ssl.tuning.phase import JobSource
from tune_ssl.tuning.ray_adapters import LONGEST, Bookkeeper, Places, RoutingScheduler, WhenStopped
from tune_ssl.tuning.worker import search_trial

RUNS = Path("runs")


def run_study(
    study: Study,
    *,
    name: str | None = None,
    runs: Path = RUNS,
    confirm: bool = True,
    address: str | None = None,
    verbose: bool = False,
    console: Console | None = None,
) -> Path:
    """Search and confirm `study` in a new run folder, and return the folder.

    Raises:
        UserError: unusable data, a name that is taken, a request no machine here can serve.
        Interrupted: Ctrl-C.
    """
    name = name or study.name
    if not study.search and study.settings.num_trials > 1:
        text = f"has no key, so that all {study.settings.num_trials} trials would be the same"
        raise UserError(Problem(text, "search", str(study.source)))
    study, home = place_new(study, name, runs)
    runs = home.runs
    stores = check_data(study)
    refuse_existing(runs / name)
    check_storage(study.settings, runs / name, study.file.where(("study", "optuna_storage")))
    with cluster(verbose, address):
        console = console or Console()
        fitted = ready(study, stores, home.place or folder_of(str(runs)), console)
        run = create(study, stores, runs, name, command_line())
        with driving(run, home.place, teller(console)):
            return _carry_on(run, fitted, stores, confirm, console, address)


def resume_study(
    name: str,
    *,
    runs: Path = RUNS,
    confirm: bool = True,
    address: str | None = None,
    verbose: bool = False,
    console: Console | None = None,
) -> Path:
    """Go on with a run folder: orphaned trials first, then what is left of the budget.

    Raises as `run_study` does; UserError also when the dataset is not the one the run began with.
    """
    home = find_home(name, runs)
    run, study = reopen(home.runs, name)
    refuse_without_search(run)
    study, place = rejoin(study, home)
    console = console or Console()
    with driving(run, place, teller(console)):
        tell(console, found(run, study.settings.storage))
        check_storage(study.settings, run)
        stores = check_data(study)
        refuse_other_data(run, study, stores)
        with cluster(verbose, address):
            study = ready(study, stores, place or folder_of(str(run)), console)
            return _carry_on(run, study, stores, confirm, console, address)


def ablate_study(
    study: Study,
    wanted: Wanted,
    *,
    name: str | None = None,
    runs: Path = RUNS,
    address: str | None = None,
    verbose: bool = False,
    console: Console | None = None,
) -> Path:
    """Ablate the fixed part of `study`, which nothing was searched for, in a new run folder.

    Raises as `run_study` does; UserError also where a variant does not fit or no row is left.
    """
    name = name or study.name
    study, home = place_new(study, name, runs)
    runs = home.runs
    stores = check_data(study)
    refuse_existing(runs / name)
    check_storage(study.settings, runs / name, study.file.where(("study", "optuna_storage")))
    Planner(runs / name, study, {}).plan(wanted, lambda _: None, write=False)
    with cluster(verbose, address):
        console = console or Console()
        fitted = ready(study, stores, home.place or folder_of(str(runs)), console)
        run = create(study, stores, runs, name, command_line())
        with driving(run, home.place, teller(console)):
            return _ablate(run, fitted, stores, wanted, console, address)


def ablate_run(
    name: str,
    wanted: Wanted,
    *,
    runs: Path = RUNS,
    address: str | None = None,
    verbose: bool = False,
    console: Console | None = None,
) -> Path:
    """Ablate the chosen configs of a run, or go on with its ablation. Raises as `resume_study` does."""
    home = find_home(name, runs)
    run, study = reopen(home.runs, name)
    study, place = rejoin(study, home)
    console = console or Console()
    with driving(run, place, teller(console)):
        tell(console, found(run, study.settings.storage))
        check_storage(study.settings, run)
        stores = check_data(study)
        refuse_other_data(run, study, stores)
        Planner(run, study, {}).plan(wanted, lambda _: None, write=False)
        with cluster(verbose, address):
            study = ready(study, stores, place or folder_of(str(run)), console)
            return _ablate(run, study, stores, wanted, console, address)


def ready(study: Study, stores: dict[str, Store], folder: Place, console: Console) -> Study:
    """Say what a trial gets, and return the study with that decided.

    UserError unless it fits a node and every node can do its work.
    """
    if not started_here():
        refuse_local_data(study)
    fit = fit_resources(study.settings, gpu_share(study))
    tell(console, [f"resources: {fit.reason}"])
    if others := refuse_unfit_nodes(study, stores, folder):
        tell(
            console, [f"nodes: this one and {others} more see the same code, data and {folder.url}"]
        )
    chosen = {"gpus_per_trial": fit.wanted.get("gpu", 0.0)}
    return replace(study, settings=study.settings.model_copy(update=chosen))


def _ablate(
    run: Path,
    study: Study,
    stores: dict[str, Store],
    wanted: Wanted,
    console: Console,
    address: str | None,
) -> Path:
    settings = study.settings
    with resume_hint(run, "ablate", address, study.settings.storage):
        seeds = [*settings.tuning_seeds, *settings.seeds]
        splits = record_splits(run, study, stores, seeds, teller(console))
        Planner(run, study, splits).plan(wanted, teller(console))
        retuning = Retuning(run, study, splits)
        run_jobs(retuning, search_trial, settings, f"retune {run.name}", console)
        be_there(run, console)
        rows = Ablation(run, study, splits)
        run_jobs(rows, search_trial, settings, f"ablate {run.name}", console)
        be_there(run, console)
        tidy(rows)
    return run


def _carry_on(
    run: Path,
    study: Study,
    stores: dict[str, Store],
    confirm: bool,
    console: Console,
    address: str | None,
) -> Path:
    with resume_hint(run, "search --resume", address, study.settings.storage):
        settings = study.settings
        seeds = [*settings.tuning_seeds, *settings.seeds]
        splits = record_splits(run, study, stores, seeds, teller(console))
        search = StudySource(run, study, splits)
        run_jobs(search, search_trial, settings, f"search {run.name}", console)
        if confirm:
            be_there(run, console)
            finalists = FinalistSource(run, study, splits)
            run_jobs(finalists, search_trial, settings, f"finalists {run.name}", console)
            be_there(run, console)
            winners = ConfirmSource(run, study, stores, splits)
            run_jobs(winners, confirm_trial, settings, f"confirm {run.name}", console)
        be_there(run, console)
        tidy(search)
    return run


def teller(console: Console) -> Callable[[str], None]:
    return lambda line: tell(console, [line])


def tell(console: Console, lines: Iterable[str]) -> None:
    """Print lines as they are: a name in brackets is no markup, and no number is coloured."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def be_there(run: Path, console: Console) -> None:
    """A run folder that is away between two phases is waited for, then Stopped: it would look empty."""
    until_it_works((run / log.STUDY).stat, OSError, f"{run / log.STUDY} is away", teller(console))


def tidy(source: JobSource) -> None:
    """Delete Ray's folder, unless a trial of any phase is still to go on from its checkpoint."""
    events = log.read(source.run / log.TRIALS)
    begun = {event["trial"] for event in events if event["event"] in log.BEGINNINGS}
    mirror = mirror_of(source.run)
    if mirror is not None and not mirror.flush(retry.LONGEST):
        return  # the copy would have neither the end nor the checkpoints
    if begun <= set(ledger.endings(events)):
        source.checkpoints.clear()


def run_jobs(
    source: JobSource,
    trainable: Callable[[dict[str, Any]], None],
    settings: StudySpec,
    title: str,
    console: Console,
) -> None:
    """One Ray Tune run over all jobs of `source`.

    Raises:
        Interrupted: Ctrl-C.
        Stopped: it cannot go on: every trial fails, or a disk, a database or Ray itself is gone.
    """
    if not source.remaining():
        return
    source.tell, mirror = teller(console), mirror_of(source.run)
    too_small = "what is left of the cluster is too small"
    resources, concurrent, _ = until_it_works(
        lambda: fit_resources(settings), UserError, too_small, source.tell, LONGEST
    )
    session = source.checkpoints.next_session()
    bookkeeper = Bookkeeper(source, session, mirror)
    try:
        with LiveTable(source, title, console) as table:
            make = partial(
                tune.Tuner,
                tune.with_resources(trainable, resources),
                tune_config=tune.TuneConfig(
                    search_alg=RoutingSearcher(source),
                    scheduler=RoutingScheduler(source, bookkeeper),
                    num_samples=source.remaining(),
                    max_concurrent_trials=concurrent,
                    reuse_actors=True,
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                ),
                run_config=tune.RunConfig(
                    name=session,
                    **source.checkpoints.for_ray,
                    verbose=0,
                    stop=WhenStopped(source, interrupted.is_set),
                    callbacks=[table, bookkeeper, Places(source, resources)],
                    failure_config=tune.FailureConfig(max_failures=settings.max_retries),
                ),
            )
            where = f"{source.checkpoints.place.url} cannot be written"
            until_it_works(make, OSError, where, source.tell).fit()
    except Exception as error:
        if interrupted.is_set():  # Ray makes a SystemError of what is raised while it waits
            raise Interrupted from None
        if source.running or source.remaining():  # else only Ray's own last notes are lost
            source.stop(error)
    if mirror is not None and not mirror.flush() and mirror.lost is not None:
        raise mirror.lost
    if source.stopped is not None:
        raise plainly(source.stopped)
    if interrupted.is_set() or source.running or source.remaining():
        raise Interrupted


def plainly(error: Exception) -> Exception:
    """What a run stopped for, as one line where the machine is to blame and as it is where we are."""
    if isinstance(error, (OSError, EOFError, TuneError, RayError)):
        first = (str(error).strip() or "?").splitlines()[0]
        stopped = Stopped(f"Ray's run ended: {type(error).__name__}: {first}")
        stopped.__cause__ = error
        return stopped
    return error


interrupted = threading.Event()  # what a handler raises may be lost in a callback of some library


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Ctrl-C, and a batch system's or a container's SIGTERM, raise Interrupted. Ray has put its own handlers."""
    interrupted.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    both = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, _interrupt) for number in both]
    try:
        yield
    finally:
        for number, handler in zip(both, before, strict=True):
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    interrupted.set()
    raise Interrupted


@contextlib.contextmanager
def resume_hint(
    run: Path, command: str, address: str | None, storage: str | None = None
) -> Iterator[None]:
    """Whatever ends the block early tells how to go on, also when the cluster is gone."""
    again = f"tune-ssl {command} {run.name}"
    again += "" if run.parent == RUNS else f" --runs {shlex.quote(str(run.parent))}"
    again += "" if address is None else f" --address {address}"
    again += "" if storage is None else f" --storage {shlex.quote(redact_value(storage))}"
    hint = f"what is finished is kept. Go on with: {again}"

    def on_lost(reason: str) -> None:
        # Ray would wait for it for ever. All that counts is on the disk: leave at once.
        print(f"\nthe cluster is gone: {reason}; {hint}", file=sys.stderr, flush=True)
        os._exit(EXIT_STOPPED)

    try:
        with own_signals(), watched(on_lost):
            yield
    except Interrupted:
        raise Interrupted(f"interrupted; {hint}") from None
    except Stopped as error:
        raise Stopped(f"{error}; {hint}") from error
    except Exception:
        if interrupted.is_set():
            raise Interrupted(f"interrupted; {hint}") from None
        raise


def _trial_name(trial: Any) -> str:
    return Job.from_config(trial.config).trial
