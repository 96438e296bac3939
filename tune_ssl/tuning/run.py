"""The one road of a run: a study becomes a run folder, its conditions a stream of jobs, and Ray trains them.

Search, finalists and confirmation, or an ablation, new or gone on with: it is all `run_study`. The records
are the truth and Ray is the muscle: a run that goes on begins a fresh Tuner and unpickles nothing of Ray's.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayError
from ray.tune import TuneError
from rich.console import Console

from tune_ssl.base import retry
from tune_ssl.base.errors import (
    EXIT_STOPPED,
    Interrupted,
    Problem,
    Stopped,
    UserError,
    first_line,
)
from tune_ssl.base.retry import until_it_works
from tune_ssl.base.secrets import redact
from tune_ssl.cluster.connect import cluster, started_here, watched
from tune_ssl.cluster.nodes import refuse_local_data, refuse_unfit_nodes
from tune_ssl.cluster.resources import Fit, fit_resources, gpu_share
from tune_ssl.data.store import Store
from tune_ssl.records import log
from tune_ssl.records.ledger import TUNING, Ledger
from tune_ssl.runs.describe import command_line
from tune_ssl.runs.extend import changed, extended, reopening, write_changes
from tune_ssl.runs.folder import (
    create,
    refuse_existing,
    refuse_without_search,
    reopen,
    stores_of,
)
from tune_ssl.runs.home import driving, find_home, place_new, rejoin
from tune_ssl.runs.splits import caveats, changed_folders, check_data, record_splits
from tune_ssl.runs.start_from import with_starts
from tune_ssl.runs.status import what_was_found
from tune_ssl.search.rehearsal import refuse_unusable
from tune_ssl.storage.checkpoints import Checkpoints
from tune_ssl.storage.mirror import mirror_of
from tune_ssl.storage.places import Place, folder_of
from tune_ssl.study.domains import repeats_of
from tune_ssl.study.loggers import refuse_missing
from tune_ssl.study.study import Study
from tune_ssl.tuning.ablation import AblationPhase, Planner, Wanted
from tune_ssl.tuning.confirm import ConfirmPhase
from tune_ssl.tuning.finalists import FinalistPhase, RetunedFinalistPhase
from tune_ssl.tuning.live_table import LiveTable
from tune_ssl.tuning.loggers import following
from tune_ssl.tuning.phase import Deadline, RunContext
from tune_ssl.tuning.ray_adapters import (
    Caretaker,
    Room,
    StreamScheduler,
    StreamSearcher,
    WhenStopped,
)
from tune_ssl.tuning.search_phase import search_phases
from tune_ssl.tuning.stream import Begin, JobStream
from tune_ssl.tuning.worker import train_job
from tune_ssl.tuning.writer import Writer

RUNS = Path("runs")
Tell = Callable[[str], None]


def run_study(
    study: Study | str,
    *,
    ablation: Wanted | None = None,
    name: str | None = None,
    runs: Path = RUNS,
    confirm: bool = True,
    address: str | None = None,
    verbose: bool = False,
    console: Console | None = None,
    stores: dict[str, Store] | None = None,
    more: Sequence[str] = (),
    again: bool = False,
    anew: bool = False,
) -> Path:
    """Run a study in a new run folder, or go on with the run of that name; returns the folder.

    It is searched and, with `confirm`, confirmed; with an `ablation` its rows are trained instead: of a run
    the chosen configs are taken apart, of a new study its fixed part. `stores` are a new study's images, where
    `check_data` has found them already.

    Of a run that goes on, `more` are changes of its study (`study.num_trials=40`), `again` says that failed trials are
    run once more, and `anew` that a config may be chosen again after test data was opened.

    Raises:
        UserError: unusable data, a name that is taken, a request no machine here can serve, a run on other
            data, a variant that does not fit.
        Stopped: it cannot go on, or nothing could be chosen.
        Interrupted: Ctrl-C.
    """
    tell = teller(console := console or Console())
    with contextlib.ExitStack() as held:
        if isinstance(study, Study):
            name = name or study.name
            single = not study.compares and not study.search
            if ablation is None and single and study.settings.num_trials > 1:
                trials = study.settings.num_trials
                text = f"has no key, so that all {trials} trials would be the same"
                raise UserError(Problem(text, "search", str(study.source)))
            study, home = place_new(study, name, runs)
            run, place, ledger, resumed = home.runs / name, home.place, Ledger(), False
            changes, reopened = {}, []
            refuse_missing(study)
            stores = stores or check_data(study)
            study = with_starts(study, stores, runs)
            if ablation is None:
                refuse_unusable(study)
            refuse_existing(run)
        else:
            home, given = find_home(study, runs), study
            run, study = reopen(home.runs, given)
            _, place = rejoin(study, home)
            held.enter_context(driving(run, place, tell))
            if place is not None:  # the copy may have had more
                _, study = reopen(home.runs, given)
            study, _ = rejoin(study, home)
            ledger, resumed = Ledger.glance(run), True
            if ablation is None:
                refuse_without_search(run, ledger)
            wanted = extended(study, more, run)
            changes = changed(study, wanted)
            reopened, study = reopening(study, wanted, ledger, anew), wanted
            refuse_missing(study)
            for line in what_was_found(run, ledger, study.settings.storage):
                tell(line)
            stores = check_data(study, stores_of(run))
            for line in changed_folders(study, stores):
                tell(line)
        if ablation is not None:
            Planner(run, study, ledger).rows(ablation, lambda _: None)
        held.enter_context(cluster(verbose, address))
        study, fit = fit_study(study, stores, place or folder_of(str(run.parent)), tell)
        for line in () if resumed else caveats(study, stores):
            tell(line)
        if not resumed:
            create(study, stores, run.parent, run.name, command_line())
            held.enter_context(driving(run, place, tell))
        verb = "search" if ablation is None else "ablate"
        with resume_hint(run, verb, address, study.settings.storage):
            context = open_run(run, study, stores, ledger, tell)
            opened = sorted({*ledger.locked, *ledger.reopened})
            # Before the settings: a run that is killed in between has chosen nothing
            for event in reopened:
                context.writer.event(event)
            if changes:
                write_changes(run, changes, opened)
                tell(f"{run.name}: goes on with {log.changes_in_words(changes)}")
            if ablation is not None:
                for row in Planner(run, study, ledger).rows(ablation, tell):
                    context.writer.event(row)
            phases = searching(context, confirm, again) if ablation is None else ablating(context)
            stream = JobStream(context, phases)
            with following(context, resumed):
                train_all(stream, fit, f"{verb} {run.name}", console)
            delete_checkpoints(context)
        refuse_without_result(context, ablation is not None)
    return run


def open_run(
    run: Path, study: Study, stores: dict[str, Store], ledger: Ledger, tell: Tell
) -> RunContext:
    """What the phases of a run need; its splits are drawn and written down."""
    seeds = [*study.settings.tuning_seeds, *study.settings.seeds]
    splits = record_splits(run, study, stores, seeds, tell)
    checkpoints = Checkpoints(run, study.settings.storage, tell)
    deadline = Deadline(study.settings.time_budget)
    writer = Writer(run, ledger, tell)
    return RunContext(run, study, stores, splits, writer, checkpoints, tell, deadline)


def searching(
    context: RunContext, confirm: bool = True, again: bool = False
) -> list[Sequence[Begin]]:
    """The phases of each condition: its search, and then its finalists and its confirmation.

    `again` says that failed trials of the search are run once more.
    """
    settings = context.study.settings

    def later(index: int) -> int:
        return sum(begin.expected for begin in then(index)) if confirm else 0

    def then(index: int) -> list[Begin]:
        repeats = repeats_of(settings, context.study.conditions[index].search)
        return [
            Begin(partial(FinalistPhase, context, index), repeats),
            Begin(partial(ConfirmPhase, context, index), len(settings.seeds)),
        ]

    return [
        [Begin(search), *(then(index) if confirm else ())]
        for index, search in enumerate(search_phases(context, later=later, again=again))
    ]


def ablating(context: RunContext) -> list[Sequence[Begin]]:
    """The phases of each condition: the retuning of its rows, and the rows."""
    rows = [context.ledger.planned.get(c.id, {}) for c in context.study.conditions]
    seeds = len(context.study.settings.seeds)
    return [
        [
            Begin(retuning),
            Begin(partial(RetunedFinalistPhase, context, index)),
            Begin(partial(AblationPhase, context, index), len(rows[index]) * seeds),
        ]
        for index, retuning in enumerate(search_phases(context, retuning=True))
    ]


def fit_study(
    study: Study, stores: dict[str, Store], folder: Place, tell: Tell
) -> tuple[Study, Fit]:
    """Say what a trial gets, and return the study with that decided.

    UserError unless it fits a node and every node can do its work.
    """
    if not started_here():
        refuse_local_data(study)
    fit = fit_resources(study.settings, gpu_share(study))
    tell(f"resources: {fit.reason}")
    if others := refuse_unfit_nodes(study, stores, folder):
        tell(f"nodes: this one and {others} more see the same code, data and {folder.url}")
    chosen = {"gpus_per_trial": fit.wanted.get("gpu", 0.0)}
    return replace(study, settings=study.settings.model_copy(update=chosen)), fit


def refuse_without_result(context: RunContext, ablation: bool) -> None:
    """Say which conditions have no result. Stopped where none has: a resume could not change that."""
    ledger, mode = context.ledger, context.study.settings.mode
    conditions = [condition.id for condition in context.study.conditions]
    phases: tuple[str, ...] = TUNING
    if ablation:
        phases = (log.RETUNE, log.ABLATE)
        conditions = [condition for condition in conditions if condition in ledger.planned]

    def has_result(condition: str) -> bool:
        if not ablation:
            return ledger.best(condition, mode) is not None
        return any(
            e and e["event"] == log.FINISHED for *_, e in ledger.trials(condition, log.ABLATE)
        )

    have = [condition for condition in conditions if has_result(condition)]
    without = [condition for condition in conditions if condition not in have]
    if not without:
        return
    first = ledger.first_failure(*phases)
    because = f"; the first one that went wrong: {first}" if first else ""
    if not have:
        what = "no row of the ablation finished" if ablation else "nothing could be chosen"
        raise Stopped(f"{context.run.name}: {what}: no trial finished{because}")
    context.tell(f"no trial finished in {', '.join(without)}: no result there{because}")


def teller(console: Console) -> Tell:
    """Prints lines as they are: a name in brackets is no markup, and no number is coloured."""
    return lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)


def delete_checkpoints(context: RunContext) -> None:
    """Delete Ray's folder, unless a trial of any phase is still to go on from its checkpoint."""
    mirror = mirror_of(context.run)
    if mirror is not None and not mirror.flush(retry.LONGEST):
        return  # the copy would have neither the end nor the checkpoints
    if not context.ledger.open_trials():
        context.checkpoints.clear()


def train_all(stream: JobStream, fit: Fit, title: str, console: Console) -> None:
    """One Ray Tune run, with one set of workers, over all jobs of the stream.

    Raises:
        Interrupted: Ctrl-C.
        Stopped: it cannot go on: every trial fails, or a disk or Ray itself is gone.
    """
    if stream.over:
        return
    context = stream.context
    settings, mirror, checkpoints = (
        context.study.settings,
        mirror_of(context.run),
        context.checkpoints,
    )
    session = checkpoints.next_session()
    caretaker = Caretaker(stream, checkpoints, session, mirror)
    room = Room(stream, fit.wanted, settings.max_concurrent, fixed=started_here())
    try:
        with LiveTable(stream, title, console) as table:
            make = partial(
                tune.Tuner,
                tune.with_resources(train_job, fit.wanted),
                tune_config=tune.TuneConfig(
                    search_alg=StreamSearcher(stream, room),
                    scheduler=StreamScheduler(stream, caretaker),
                    num_samples=-1,
                    reuse_actors=True,
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                ),
                run_config=tune.RunConfig(
                    name=session,
                    **checkpoints.for_ray,
                    verbose=0,
                    stop=WhenStopped(stream, interrupted.is_set),
                    callbacks=[table, caretaker, room],
                    failure_config=tune.FailureConfig(max_failures=settings.max_retries),
                ),
            )
            where = f"{checkpoints.place.url} cannot be written"
            until_it_works(make, OSError, where, stream.tell).fit()
    except Exception as error:
        if interrupted.is_set():  # Ray makes a SystemError of what is raised while it waits
            raise Interrupted from None
        if not stream.over:  # else only Ray's own last notes are lost
            stream.stop(error)
    if mirror is not None and not mirror.flush() and mirror.taken_over is not None:
        raise mirror.taken_over
    if stream.stopped is not None:
        raise as_one_line(stream.stopped)
    if interrupted.is_set() or not stream.over:
        raise Interrupted


def as_one_line(error: Exception) -> Exception:
    """What a run stopped for, as one line where the machine is to blame and as it is where we are."""
    if isinstance(error, (OSError, EOFError, TuneError, RayError)):
        stopped = Stopped(f"Ray's run ended: {type(error).__name__}: {first_line(error)}")
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
    run: Path, verb: str, address: str | None, storage: str | None = None
) -> Iterator[None]:
    """Whatever ends the block early tells how to go on, also when the cluster is gone."""
    again = f"tune-ssl {verb}{' --resume' if verb == 'search' else ''} {run.name}"
    again += "" if run.parent == RUNS else f" --runs {shlex.quote(str(run.parent))}"
    again += "" if address is None else f" --address {address}"
    again += "" if storage is None else f" --storage {shlex.quote(redact(storage))}"
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
    return str(trial.config["trial"])
