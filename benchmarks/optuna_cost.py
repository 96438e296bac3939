"""What our calls to the Optuna storage cost beside the same calls to bare Optuna: ms each, medians.

A study with so many finished trials is made once per storage and copied: one copy is asked through a
`Cell` (tune_ssl.searcher), as a search does, the other through optuna's own study with the same sampler and
pruner, in turn within one run. The copies are equal and grow alike, so that the ratio is ours alone.

    python -m benchmarks.optuna_cost 100 1000 10000 --storage journal sqlite postgresql --sampler tpe
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from tests.postgres import Server, programs
from tests.runs import run_here
from tune_ssl import records, studies
from tune_ssl.rebuilding import Book, distribution
from tune_ssl.runfolder import reopen
from tune_ssl.searcher import Cell
from tune_ssl.secrets import OPTUNA_STORAGE

EVALUATIONS = 5
RUNG = 2  # the evaluation at which successive halving compares a trial with all others
STUDY = """
fixed:
  data: {{dataset: digits, num_labels: 50}}
  method: {{name: supervised}}
  budget: {{steps: 50, eval_every: 10}}
search:
  optim.lr: {{log_uniform: [1e-4, 1e-1]}}
  optim.weight_decay: {{log_uniform: [1e-5, 1e-2]}}
  optim.ema_decay: {{uniform: [0, 0.9]}}
  method.labeled_view: {{choice: [weak, strong, none]}}
study: {{num_trials: {trials}, sampler: {sampler}, optuna_storage: "{storage}", finalists: 1, seeds: [0]}}
"""


def filled(cell: Cell, trials: int, storage: BaseStorage) -> None:
    """Give the cell's study so many finished trials, each with five reports and its rung."""
    draw = random.Random(0)
    kinds = {key: distribution(d) for key, d in cell.domains.items()}
    finished = []
    for _ in range(trials):
        params = {
            "optim.lr": 10 ** draw.uniform(-4, -1),
            "optim.weight_decay": 10 ** draw.uniform(-5, -2),
            "optim.ema_decay": draw.uniform(0, 0.9),
            "method.labeled_view": draw.choice(["weak", "strong", "none"]),
        }
        final = quality(params)
        values = {i: final - 0.01 * (EVALUATIONS - i) for i in range(1, EVALUATIONS)}
        attrs = {"completed_rung_0": values[RUNG]}
        finished.append(
            create_trial(
                params=params,
                distributions=kinds,
                value=final,
                intermediate_values=values,
                system_attrs=attrs,
            )
        )
    study_id = storage.get_study_id_from_name(cell.name)
    if isinstance(storage, RDBStorage):
        fill_tables(storage, study_id, finished)
    else:
        for trial in finished:
            storage.create_new_trial(study_id, trial)


def fill_tables(storage: RDBStorage, study_id: int, trials: list[Any]) -> None:
    """All rows in one transaction: one trial at a time would take minutes."""
    from optuna.distributions import distribution_to_json

    with storage.scoped_session() as session:
        for number, trial in enumerate(trials):
            row = models.TrialModel(
                number=number,
                study_id=study_id,
                state=TrialState.COMPLETE,
                datetime_start=datetime.now(),
                datetime_complete=datetime.now(),
            )
            row.params = [
                models.TrialParamModel(
                    param_name=key,
                    param_value=kind.to_internal_repr(trial.params[key]),
                    distribution_json=distribution_to_json(kind),
                )
                for key, kind in trial.distributions.items()
            ]
            finite = models.TrialValueModel.TrialValueType.FINITE
            row.values = [models.TrialValueModel(objective=0, value=trial.value, value_type=finite)]
            finite = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
            row.intermediate_values = [
                models.TrialIntermediateValueModel(
                    step=step, intermediate_value=value, intermediate_value_type=finite
                )
                for step, value in trial.intermediate_values.items()
            ]
            row.system_attributes = [
                models.TrialSystemAttributeModel(key=key, value_json=str(value))
                for key, value in trial.system_attrs.items()
            ]
            session.add(row)
        session.commit()


def quality(params: dict[str, Any]) -> float:
    return 0.9 - 0.05 * abs(math.log10(params["optim.lr"]) + 2.5) - 0.1 * params["optim.ema_decay"]


class Times:
    """Milliseconds of each call, wall-clock and CPU of this thread, by (who, what)."""

    def __init__(self) -> None:
        self.of: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)

    @contextlib.contextmanager
    def timed(self, who: str, what: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.thread_time()
        yield
        spent = (1000 * (time.perf_counter() - wall), 1000 * (time.thread_time() - cpu))
        self.of[who, what].append(spent)

    def shown(self, what: str) -> str:
        """Medians: wall-clock of ours / bare; CPU of ours / bare."""
        pairs = []
        for kind in (0, 1):
            own, plain = (
                statistics.median(t[kind] for t in self.of[w, what]) for w in ("ours", "bare")
            )
            pairs.append(f"{own:.2f} / {plain:.2f}")
        return "; ".join(pairs)


def ours(cell: Cell, times: Times) -> None:
    with times.timed("ours", "ask"):
        trial, params = cell.ask()
    for evaluation in range(1, EVALUATIONS):
        with times.timed("ours", "rung" if evaluation == RUNG else "report"):
            cell.report(
                trial.number, quality(params) - 0.01 * (EVALUATIONS - evaluation), evaluation
            )
    with times.timed("ours", "tell"):
        cell.tell(trial.number, records.FINISHED, quality(params))


def bare(study: optuna.Study, cell: Cell, times: Times) -> None:
    with times.timed("bare", "ask"):
        trial = study.ask()
        params = {key: d.suggest(trial, key) for key, d in cell.domains.items()}
    for evaluation in range(1, EVALUATIONS):
        with times.timed("bare", "rung" if evaluation == RUNG else "report"):
            trial.report(quality(params) - 0.01 * (EVALUATIONS - evaluation), evaluation)
            trial.should_prune()
    with times.timed("bare", "tell"):
        study.tell(trial, quality(params))


def measure(folder: Path, kind: str, count: int, sampler: str, rounds: int, server: Any) -> Times:
    """Times of `rounds` trials each way, on a storage of that kind with `count` finished trials."""
    url = {"journal": "journal", "sqlite": "sqlite:///o.db"}.get(kind) or server.url(f"a{count}")
    os.environ[OPTUNA_STORAGE] = url  # study.yaml keeps no password
    body = STUDY.format(trials=count + rounds + 3, sampler=sampler, storage=url)
    run = run_here(folder, body, f"{kind}{count}", dry=True)
    run, study = reopen(run.parent, run.name)

    def cell_of(storage: BaseStorage) -> Cell:
        return Cell(storage, studies.study_prefix(run), study, 0, study.conditions[0])

    storage: Any = studies.open_storage(run, study.settings)
    backend = getattr(storage.inner, "_backend", None)
    filled(cell_of(storage), count, backend if isinstance(backend, RDBStorage) else storage.inner)
    other: BaseStorage
    if kind == "journal":
        shutil.copy(run / "optuna.log", run / "bare.log")
        other = JournalStorage(JournalFileBackend(str(run / "bare.log")))
    elif kind == "sqlite":
        shutil.copy(run / "o.db", run / "bare.db")
        other = optuna.storages.get_storage(f"sqlite:///{run}/bare.db")
    else:
        backend.engine.dispose()
        server.query(f'CREATE DATABASE "b{count}" TEMPLATE "a{count}"')
        url = server.dsn(f"b{count}").replace("postgresql:", "postgresql+psycopg:")
        other = optuna.storages.get_storage(url.replace("{", "{{").replace("}", "}}"))
    cell = cell_of(studies.open_storage(run, study.settings))
    cell.load(run, Book(run, records.SEARCH))
    study_name, pruner = cell.name, cell.optuna.pruner
    mine = type(cell.optuna.sampler)
    options = {"n_startup_trials": 10} if sampler == "tpe" else {}
    plain = optuna.load_study(
        study_name=study_name, storage=other, sampler=mine(seed=1, **options), pruner=pruner
    )
    times = Times()
    for number in range(rounds + 3):
        if number == 3:  # the first ones fill caches
            times.of.clear()
        calls: list[Callable[[], None]] = [
            lambda: ours(cell, times),
            lambda: bare(plain, cell, times),
        ]
        for call in calls if number % 2 else reversed(calls):
            call()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trials", nargs="*", type=int, default=[100, 1_000, 10_000])
    parser.add_argument("--storage", nargs="+", default=["journal", "sqlite", "postgresql"])
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--rounds", type=int, default=11)
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(
        f"ms, medians of {asked.rounds} trials with {EVALUATIONS - 1} reports each, {asked.sampler}"
    )
    print(
        "| storage | finished trials | ask: ours / bare | report + prune: ours / bare | tell: ours / bare |"
    )
    print("|---|---|---|---|---|")
    with (
        tempfile.TemporaryDirectory(prefix="tune-ssl-optuna-") as name,
        contextlib.ExitStack() as held,
    ):
        folder, server = Path(name), None
        if "postgresql" in asked.storage:
            binaries = programs()
            if binaries is None:
                parser.error("PostgreSQL is not installed")
            (folder / "pg").mkdir()
            folder.chmod(0o755)
            server = Server(folder / "pg", binaries)
            server.start()
            held.callback(server.stop)
        for kind in asked.storage:
            for count in asked.trials:
                times = measure(folder, kind, count, asked.sampler, asked.rounds, server)
                cells = map(times.shown, ("ask", "report", "rung", "tell"))
                print(f"| {kind} | {count:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
