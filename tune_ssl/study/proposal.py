"""What `tune-ssl compare` proposes where nobody says otherwise: methods, image size, encoder, budget, and why.

It fills in what the command line leaves open, from the data and the machine, and says each choice with its reason and
the key that changes it. What it proposes is a study file's content like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tune_ssl.base.errors import Problem, UserError, unknown
from tune_ssl.base.spec import ModelSpec
from tune_ssl.base.yaml_file import YamlFile, read_yaml
from tune_ssl.methods import find_method, method_names
from tune_ssl.methods.plugins import load_plugins
from tune_ssl.study.comparison import SECTION
from tune_ssl.study.overrides import apply_overrides
from tune_ssl.study.study import Study, checked

METHODS = (
    *("supervised", "logistic_regression", "label_spreading"),
    *("fixmatch", "soft_kmeans", "simclr"),
)
SMALL = ("digits", "mnist")  # images that a small network learns from nothing
ENCODER = (
    "timm:tf_efficientnet_lite0"  # the cheapest pretrained one that is worth its time on a CPU
)
ENCODER_GPU = "timm:resnet50"
SIDE, SIDE_GPU = 96, 224  # pixels with a pretrained encoder, at least and at most
SIDE_SCRATCH = 32

Filled = Callable[[str, Any, str], None]


def load_comparison(
    path: Path | None,
    methods: Sequence[str],
    overrides: Sequence[str],
    plugins: Sequence[Path] = (),
    *,
    gpu: bool = False,
    reachable: Callable[[ModelSpec], str] = lambda model: "",
    side: Callable[[dict[str, Any]], int] = lambda fixed: SIDE,
) -> tuple[Study, list[str]]:
    """A comparison's study, and what was chosen for it, in sentences.

    Of a file with a section `compare` those of its entries that `methods` name, all of them without any name; without a
    file the named methods, or METHODS, with what is proposed. `gpu` says whether trials have one, `reachable` why
    pretrained weights cannot be had ("" if they can), `side` how many pixels a CPU carries with a frozen encoder.

    Raises:
        UserError: an unknown method, one that is named twice, fewer than two, or whatever a study file can have wrong.
    """
    loaded = load_plugins(plugins)
    twice = [name for name in dict.fromkeys(methods) if list(methods).count(name) > 1]
    if twice:
        raise UserError(Problem(f"is named {list(methods).count(twice[0])} times", twice[0]))
    lines: list[str] = []
    if path is not None:
        file = read_yaml(path)
        section = file.data.get(SECTION)
        if not isinstance(section, dict):
            text = f"is missing, but must name the methods to compare; `tune-ssl search {path}` tunes one"
            raise UserError(Problem(text, SECTION, str(path)))
        _refuse_unknown(methods, list(section))
        problems = list(apply_overrides(file, overrides))
        if methods:
            file.data[SECTION] = {name: section[name] for name in methods}
    else:
        _refuse_unknown(methods, method_names())
        file = YamlFile(None, {SECTION: dict.fromkeys(methods or METHODS)})
        problems = list(apply_overrides(file, overrides))
        if not problems:
            lines = _fill(file.data, bool(methods), gpu, reachable, side)
    study = checked(file, problems)
    name = study.name or f"compare-{study.fixed.data.dataset}"
    return replace(study, name=name, plugins=loaded), lines


def _refuse_unknown(methods: Sequence[str], known: Sequence[str]) -> None:
    wrong = [name for name in methods if name not in known]
    if wrong:
        raise UserError(Problem(unknown("method", name, known), "METHODS") for name in wrong)


def _fill(
    data: dict[str, Any],
    named: bool,
    gpu: bool,
    reachable: Callable[[ModelSpec], str],
    side: Callable[[dict[str, Any]], int] = lambda fixed: SIDE,
) -> list[str]:
    """Write what is left open into the study's `data`; the sentences that say so."""
    lines: list[str] = []

    def fill(key: str, value: Any, why: str) -> None:
        section, *inner, last = key.split(".")
        at = data.setdefault(section, {})
        for part in inner:
            at = at.setdefault(part, {})
        if isinstance(at, dict) and last not in at:
            at[last] = value
            if why:
                lines.append(f"{key.removeprefix('fixed.')}={value}: {why}")

    fill("fixed.data.dataset", "digits", "scikit-learn's, which need no download")
    fixed = data["fixed"]
    dataset = fixed["data"]["dataset"]
    if dataset in SMALL:
        _fill_small(data, fill)
    else:
        _fill_photos(data, fill, named, gpu, reachable, side, lines)
    cheap = dataset in SMALL or fixed.get("model", {}).get("freeze") == "all"
    seeds = list(range(10 if cheap else 5))
    fill(
        "study.seeds",
        seeds,
        f"{len(seeds)} fresh seeds give a paired test something to decide with",
    )
    fill("study.num_trials", 6, "of each method in each condition, the same for all")
    fill("study.finalists", 2, "")
    left = [name for name, entry in data[SECTION].items() if entry is not None]
    lines.append(f"methods: {', '.join(data[SECTION])}{' (as given)' if named or left else ''}")
    return lines


def _fill_small(data: dict[str, Any], fill: Filled) -> None:
    """Digits: a small network learns them from nothing, in seconds."""
    if "conditions" not in data and not {"num_labels", "labeled_ratio"} & {*data["fixed"]["data"]}:
        data["conditions"] = {"data.num_labels": [20, 50]}
    fill("fixed.data.batch_size", 32, "")
    fill("fixed.data.mu", 4, "four unlabeled images in a step for each labeled one")
    fill(
        "fixed.budget.steps",
        300,
        "optimizer steps of a trial, the same for all that are trained in steps",
    )
    fill("fixed.budget.eval_every", 50, "")


def _fill_photos(
    data: dict[str, Any],
    fill: Filled,
    named: bool,
    gpu: bool,
    reachable: Callable[[ModelSpec], str],
    side: Callable[[dict[str, Any]], int],
    lines: list[str],
) -> None:
    """Photographs: a pretrained encoder where there is one, frozen without a GPU; else a small network."""
    model = data["fixed"].setdefault("model", {})
    if not (isinstance(model, dict) and {"encoder", "weights"} & {*model}):
        encoder = ENCODER_GPU if gpu else ENCODER
        why_not = reachable(ModelSpec(encoder=encoder, weights="pretrained"))
        if not why_not:
            fill(
                "fixed.model.encoder",
                encoder,
                "pretrained on ImageNet: the best start with few labels",
            )
            fill("fixed.model.weights", "pretrained", "")
        else:
            lines.append(
                f"model.weights=none: {why_not}; give model.encoder={ENCODER} model.weights=FILE for a pretrained start"
            )
    weights = isinstance(model, dict) and model.get("weights", "none") != "none"
    if weights:
        if "image_size" not in data["fixed"]["data"]:
            chosen = SIDE_GPU if gpu else side(data["fixed"])
            carried = "a GPU" if gpu else "this CPU"
            why = f"pixels a side, what {carried} carries of these images; more see more"
            fill("fixed.data.image_size", chosen, why)
        if not gpu:
            fill(
                "fixed.model.freeze",
                "all",
                "without a GPU: its features are computed once and kept",
            )
            fill("fixed.model.frozen_views", 2, "augmented versions of each image")
        fill("fixed.data.batch_size", 64, "")
        fill("fixed.data.mu", 4, "")
        fill("fixed.budget.steps", 300, "optimizer steps of a trial")
        frozen = model.get("freeze") == "all"
        for name in [n for n in data[SECTION] if frozen and not named and _pretrains(n)]:
            del data[SECTION][name]
            lines.append(f"{name} is left out: its pretraining would train the whole encoder")
    else:
        if data["fixed"]["data"]["dataset"] in ("folder", "imagenette", "stl10"):
            fill("fixed.data.image_size", SIDE if gpu else SIDE_SCRATCH, "pixels a side")
        fill("fixed.model.encoder", "resnet18" if gpu else "small_cnn", "from random weights")
        fill("fixed.data.mu", 4, "")
        fill("fixed.budget.steps", 2000 if gpu else 400, "optimizer steps of a trial")
    fill("fixed.budget.eval_every", 50, "")


def _pretrains(name: str) -> bool:
    """Whether a stage of the method trains an encoder without labels."""
    return any(kind.name == "pretrain" for kind in find_method(name).stage_types)
