"""How well a search finds the best of recorded configs, and what that costs: replays of whole learning curves.

    python -m benchmarks.search_quality record METHOD...    # trains, for an hour on 2 cores; goes on where it was
    python -m benchmarks.search_quality                     # 200 replays of each strategy: about 20 minutes

`record` trains CONFIGS configs of a method's own search space, and its defaults, to their end with each of SEEDS on
digits with 20 labels, and keeps the validation value of each evaluation in benchmarks/curves.jsonl.gz.
"""

from __future__ import annotations

import gzip
import heapq
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import optuna
import torch

from analysis.read.search_space import Key
from tune_ssl.base.spec import StudySpec
from tune_ssl.base.yaml_file import YamlFile
from tune_ssl.methods import find_method
from tune_ssl.records import log
from tune_ssl.search.condition import ConditionSearch
from tune_ssl.search.rebuild import distribution
from tune_ssl.study.domains import domain
from tune_ssl.study.given import defaults_of
from tune_ssl.study.study import checked, load_fixed
from tune_ssl.study.trial import TrialSpec, override
from tune_ssl.training.loop import Collapsed, Diverged, train

CURVES = Path(__file__).with_name("curves.jsonl.gz")
METHODS = ("supervised", "fixmatch", "soft_kmeans")
CONFIGS, SEEDS = 160, (0, 1, 2)
TRIALS, WORKERS, CHANCE = 16, 2, 0.1
SHARES = (0.25, 0.5, 1.0)
DRAWN = {  # strategy -> its colour in the figure
    "random": "#888888",
    "TPE + ASHA as it was": "#d55e00",
    "stock Ray Tune": "#0072b2",
    "now": "#009e73",
}
METRIC = "val/mean_class_accuracy"
FIXED = (
    *("data.dataset=digits", "data.num_labels=20", "data.batch_size=16", "data.mu=4"),
    *("budget.steps=200", "budget.eval_every=10", "budget.eval_images=all"),
)


def fixed_spec(method: str) -> TrialSpec:
    """What all recorded trials of a method have in common."""
    return load_fixed(None, [f"method.name={method}", *FIXED]).fixed


def space(method: str) -> dict[str, Any]:
    """key -> its domain, of what a comparison searches of the method"""
    return {key: domain(leaf) for key, leaf in find_method(method).searched.items()}


def configs(method: str) -> list[dict[str, Any]]:
    """The recorded configs: the method's defaults, and CONFIGS random ones."""
    kinds = {key: distribution(one) for key, one in space(method).items()}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    defaults = defaults_of(fixed_spec(method), space(method))
    return [defaults, *(study.ask(kinds).params for _ in range(CONFIGS))]


def curve(spec: TrialSpec) -> tuple[str, list[float]]:
    """How a training ends, and the validation value of each of its evaluations."""
    values: list[float] = []
    try:
        for report in train(spec, metric=METRIC):
            values.append(round(report.metrics[METRIC], 5))
    except Diverged:
        return "diverged", values
    except Collapsed:
        return "collapsed", values
    return "finished", values


def read_curves() -> list[dict[str, Any]]:
    with gzip.open(CURVES, "rt") as file:
        return [json.loads(line) for line in file]


def record(methods: list[str]) -> None:
    """Train what is not recorded yet of these methods; each trial is kept as soon as it has ended."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    have = read_curves() if CURVES.exists() else []
    known = {(one["method"], one["number"], one["seed"]) for one in have}
    for method, number, seed, config in _wanted(methods):
        if (method, number, seed) in known:
            continue
        began = time.perf_counter()
        ending, values = curve(override(fixed_spec(method), {**config, "seed": seed}))
        line = {
            "method": method,
            "number": number,
            "seed": seed,
            "config": config,
            "ending": ending,
            "values": values,
            "seconds": round(time.perf_counter() - began, 2),
        }
        with gzip.open(CURVES, "at") as file:
            file.write(json.dumps(line) + "\n")


def _wanted(methods: list[str]) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    for method in methods:
        for number, config in enumerate(configs(method)):
            for seed in SEEDS:
                yield method, number, seed, config


class Curve(NamedTuple):
    """One recorded training."""

    ending: str
    values: list[float]


class Pool:
    """The recorded configs of a method, as points of the unit cube, and their curves by seed."""

    def __init__(self, method: str) -> None:
        own = [one for one in read_curves() if one["method"] == method]
        self.configs = {one["number"]: one["config"] for one in own}
        self.curves = {
            (one["number"], one["seed"]): Curve(one["ending"], one["values"]) for one in own
        }
        whole = [n for n in self.configs if all((n, seed) in self.curves for seed in SEEDS)]
        self.numbers = np.array(sorted(whole))
        self.keys = {
            name: Key(d.kind, d.values, d.step, d.when, name) for name, d in space(method).items()
        }
        self.points = np.stack([self.point(self.configs[n]) for n in self.numbers])
        self.evaluations = max(len(curve.values) for curve in self.curves.values())
        search = {key: one.leaf() for key, one in space(method).items()}
        parts = {"fixed": fixed_spec(method).model_dump(mode="json"), "search": search}
        self.study = checked(YamlFile(None, parts), [])

    def point(self, config: Mapping[str, Any]) -> np.ndarray:
        """A config in the unit cube; a choice has an axis for each value, so that all are equally far."""
        parts: list[float] = []
        for name, key in self.keys.items():
            if key.choices:
                parts += [0.5 * (config[name] == choice) for choice in key.choices]
            else:
                parts.append(float(key.unit(config[name])))
        return np.array(parts)

    def nearest(self, config: Mapping[str, Any], taken: set[int]) -> int:
        """The recorded config nearest to this one that is not taken."""
        distances = ((self.points - self.point(config)) ** 2).sum(axis=1)
        order = self.numbers[np.argsort(distances, kind="stable")]
        return int(next(number for number in order if number not in taken))

    def fresh(self, number: int, tuning: int) -> float:
        """The mean at the end over the seeds that were not tuned on; of a trial that did not finish, CHANCE."""
        ends = [self.curves[number, seed] for seed in SEEDS if seed != tuning]
        return float(np.mean([c.values[-1] if c.ending == "finished" else CHANCE for c in ends]))


class FromPool(ConditionSearch):
    """The product's own search, in which each config that is drawn is the nearest recorded one that is left."""

    def __init__(self, pool: Pool, settings: StudySpec) -> None:
        self.pool, self.taken = pool, set[int]()
        study = replace(pool.study, settings=settings)
        super().__init__(Path(), study, 0, study.conditions[0], {})
        self.budget = len(pool.numbers)

    def _draw(self, number: int, draw: int, fixed: Mapping[str, Any]) -> dict[str, Any]:
        return self.pool.configs[self.pool.nearest(super()._draw(number, draw, fixed), self.taken)]

    def identity(self, config: Mapping[str, Any]) -> str:
        return str(self.pool.nearest(config, set()))

    def next(self) -> tuple[int, int]:
        """(number of the trial, number of the recorded config)"""
        asked = self.ask()
        assert asked is not None
        number = int(self.identity(asked.config))
        self.taken.add(number)
        return asked.number, number


class StockRay:
    """Ray Tune's OptunaSearch and ASHAScheduler as they come: Optuna's TPE, and a bracket of rungs at 1, 4, 16.

    What the scheduler stops is told to Optuna as finished, with its last value: so does OptunaSearch.
    """

    def __init__(self, pool: Pool, seed: int) -> None:
        from ray.tune.schedulers.async_hyperband import _Bracket

        self.pool, self.taken = pool, set[int]()
        self.kinds = {key: distribution(one) for key, one in pool.study.search.items()}
        self.study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed)
        )
        self.bracket = _Bracket(min_t=1, max_t=pool.evaluations, reduction_factor=4, s=0)
        self.live: dict[int, optuna.Trial] = {}
        self.last: dict[int, float] = {}

    def next(self) -> tuple[int, int]:
        drawn = self.study.ask(self.kinds)
        number = self.pool.nearest(drawn.params, self.taken)
        self.taken.add(number)
        kinds, config = self.kinds, self.pool.configs[number]
        for key, value in config.items():
            internal = kinds[key].to_internal_repr(value)
            self.study._storage.set_trial_param(drawn._trial_id, key, internal, kinds[key])
        self.live[drawn.number] = optuna.Trial(self.study, drawn._trial_id)
        return drawn.number, number

    def report(self, number: int, value: float, evaluation: int) -> bool:
        self.last[number] = value
        kind = SimpleNamespace(trial_id=str(number))
        return str(self.bracket.on_result(kind, evaluation, value)) == "STOP"

    def tell(self, number: int, status: str, value: float | None) -> None:
        trial = self.live.pop(number)
        if status in (log.FINISHED, log.STOPPED):
            self.study.tell(trial, self.last.get(number, CHANCE))
        else:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)


class Replay(NamedTuple):
    """What a replay found: (compute, regret) after each better trial that finished, on fresh seeds and on the tuning
    seed (`seen`), how many of the first TRIALS finished, and the evaluations that those took.
    """

    course: list[tuple[int, float]]
    seen: list[tuple[int, float]]
    finished: int
    cost: int


def replay(pool: Pool, search: Any, tuning: int) -> Replay:
    """Run a search on the recorded curves, with WORKERS trials at once, until TRIALS whole trainings are spent."""
    best = max(pool.fresh(number, tuning) for number in pool.numbers)
    limit, spent, finished = TRIALS * pool.evaluations, 0, 0
    ends = [pool.curves[n, tuning] for n in pool.numbers]
    highest = max(c.values[-1] for c in ends if c.ending == "finished")
    incumbent, course, seen, cost = -1.0, [], [], 0
    queue: list[tuple[int, int, int, int, int]] = []  # when, order, trial, config, evaluation
    order = itertools.count()

    def begin(now: int) -> None:
        if len(search.taken) < len(pool.numbers):
            trial, config = search.next()
            heapq.heappush(queue, (now + 1, next(order), trial, config, 1))

    for _ in range(WORKERS):
        begin(0)
    while queue and spent < limit:
        now, _, trial, config, evaluation = heapq.heappop(queue)
        ending, values = pool.curves[config, tuning]
        spent += 1
        cost += trial < TRIALS
        if evaluation > len(values):  # it diverged before this evaluation
            search.tell(trial, ending, None)
            begin(now)
            continue
        value = values[evaluation - 1]
        over = evaluation == pool.evaluations
        if over:
            search.report(trial, value, evaluation) if isinstance(search, StockRay) else None
            search.tell(trial, log.FINISHED, value)
            finished += trial < TRIALS
            if value > incumbent:
                incumbent = value
                course.append((spent, best - pool.fresh(config, tuning)))
                seen.append((spent, highest - value))
        elif search.report(trial, value, evaluation):
            search.tell(trial, log.STOPPED, value)
        else:
            heapq.heappush(queue, (now + 1, next(order), trial, config, evaluation + 1))
            continue
        begin(now)
    start = (0, highest - CHANCE)
    return Replay([(0, best - CHANCE), *course], [start, *seen], finished, cost)


def strategies(evaluations: int) -> dict[str, dict[str, Any] | None]:
    """name -> the study's settings; None: stock Ray Tune"""
    before = {
        "name": "optuna.pruners.SuccessiveHalvingPruner",
        "min_resource": math.ceil(0.25 * evaluations),
        "reduction_factor": 3,
    }
    cold: dict[str, Any] = {"start_from": []}
    found: dict[str, dict[str, Any] | None] = {
        "random": {**cold, "searcher": "random", "scheduler": "none"},
        "TPE": {**cold, "scheduler": "none"},
        "TPE + ASHA as it was": {**cold, "scheduler": before},
        "TPE + hyperband": {**cold, "scheduler": "hyperband"},
        "TPE + median": {**cold, "scheduler": "median"},
        "stock Ray Tune": None,
        "now, without given trials": cold,
        "now": {},
    }
    for factor in (2, 4):
        found[f"now, factor {factor}"] = {"reduction_factor": factor}
    found["now, no early stopping"] = {"scheduler": "none"}
    return found


def at(course: list[tuple[int, float]], spent: float) -> float:
    """The regret once so much was spent."""
    return next(regret for when, regret in reversed(course) if when <= spent)


def figures(method: str, replays: int, only: list[str]) -> list[dict[str, Any]]:
    """A row for each strategy: both regrets at shares of the compute with 95 % intervals, and when they equal random's.

    `chosen` is the regret on the seeds that were not tuned on, `searched` that on the tuning seed itself.
    """
    pool = Pool(method)
    limit = TRIALS * pool.evaluations
    grid = np.arange(1, limit + 1)
    rows: list[dict[str, Any]] = []
    levels: dict[str, float] = {}  # what random search reaches with all of the compute
    for name, settings in strategies(pool.evaluations).items():
        if only and name not in only:
            continue
        began = time.perf_counter()
        found = [replay(pool, *_search(pool, settings, number)) for number in range(replays)]
        row: dict[str, Any] = {"method": method, "strategy": name, "replays": replays}
        for kind, of in (("chosen", "course"), ("searched", "seen")):
            values = np.array([[at(getattr(one, of), spent) for spent in grid] for one in found])
            mean = values.mean(axis=0)
            levels.setdefault(kind, mean[-1])
            for share in SHARES:
                own = values[:, int(share * limit) - 1]
                half = 1.96 * own.std(ddof=1) / math.sqrt(replays)
                row[f"{kind} {share:.0%}"] = f"{100 * own.mean():.2f} +-{100 * half:.2f}"
            reached = np.flatnonzero(mean <= levels[kind])
            row[f"{kind} as random"] = (
                f"{(reached[0] + 1) / limit:.2f}" if len(reached) else "never"
            )
            row[f"{kind} curve"] = [round(100 * float(v), 3) for v in mean]
        row["finished of 16"] = f"{np.mean([one.finished for one in found]):.1f}"
        row["compute of 16"] = f"{np.mean([one.cost for one in found]) / limit:.2f}"
        shown = [f"{k}: {v}" for k, v in row.items() if "curve" not in k]
        print("; ".join(shown), f"({time.perf_counter() - began:.0f} s)", flush=True)
        rows.append(row)
    return rows


def _search(pool: Pool, settings: dict[str, Any] | None, number: int) -> tuple[Any, int]:
    """The search of one replay, and the seed that it tunes on."""
    tuning = SEEDS[number % len(SEEDS)]
    if settings is None:
        return StockRay(pool, number), tuning
    fixed = {"num_trials": TRIALS, "tuning_seed": 2000 + number, "seeds": [0]}
    return FromPool(pool, StudySpec.model_validate({**fixed, **settings})), tuning


def draw(rows: list[dict[str, Any]]) -> Any:
    """Mean regret on fresh seeds against the compute, a panel for each method."""
    from plotly.subplots import make_subplots

    methods = list(dict.fromkeys(row["method"] for row in rows))
    fig = make_subplots(rows=1, cols=len(methods), subplot_titles=methods, shared_yaxes=True)
    for row in rows:
        if row["strategy"] not in DRAWN:
            continue
        curve = row["chosen curve"]
        fig.add_scatter(
            x=np.arange(1, len(curve) + 1) / len(curve),
            y=curve,
            name=row["strategy"],
            line={"color": DRAWN[row["strategy"]], "width": 2},
            showlegend=row["method"] == methods[0],
            row=1,
            col=methods.index(row["method"]) + 1,
        )
    fig.update_xaxes(title_text="share of 16 whole trials")
    fig.update_yaxes(range=[0, 12])
    fig.update_yaxes(title_text="regret, points", col=1)
    fig.update_layout(
        width=960, height=340, template="plotly_white", legend={"orientation": "h", "y": -0.3}
    )
    return fig


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if sys.argv[1:2] == ["record"]:
        record(sys.argv[2:] or list(METHODS))
    else:
        replays = int(sys.argv[1]) if sys.argv[1:] else 200
        chosen = [m for m in METHODS if m in sys.argv[2:]] or list(METHODS)
        only = [name for name in sys.argv[2:] if name not in METHODS]
        every = [row for method in chosen for row in figures(method, replays, only)]
        Path("search_quality.json").write_text(json.dumps(every))
        draw(every).write_image("search_quality.svg")
        print("mean regret by evaluations spent: search_quality.json, search_quality.svg")
