"""How long a study will take on this machine, and what the machine has: measured in a few seconds before a comparison.

A guess to plan by: half of a search's trials are taken to be stopped early, and other work on the machine is not known.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import lru_cache
from math import ceil, prod
from typing import TYPE_CHECKING, Any

from tune_ssl.base.errors import UserError
from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import DataSpec, ModelSpec
from tune_ssl.data.batch import Task
from tune_ssl.data.folder import list_images
from tune_ssl.data.store import Store
from tune_ssl.methods import find_method
from tune_ssl.study.domains import repeats_of, trials_of
from tune_ssl.study.study import Condition, Study

if TYPE_CHECKING:
    import torch

    from tune_ssl.models import heads
else:
    torch = LazyModule("torch")
    heads = LazyModule("tune_ssl.models.heads")

FITTED, HEAD_STEP = 1.0, 0.003  # seconds of a fit, and of a step on kept features
STARTED = 10.0  # seconds until the first trial, and after the last one
WHOLE_TRIALS = 0.6  # of a search's trials, what early stopping leaves of their cost
SIDES = (96, 128, 160, 192, 224)  # pixels; what a frozen encoder sees more in, and pays for by area
LONGEST = 600.0  # seconds that a proposal gives to features
VIEWS = 3  # of a comparison's methods together: weak, strong, randaugment
TIMED_PIXELS = 1 << 18  # of the images that an encoder is timed on: of small ones a few say nothing
PASSES = 3.0  # passes of an image that a step costs: forward once, backward twice


def has_gpu() -> bool:
    """Whether torch sees a GPU here."""
    return bool(torch.cuda.is_available())


def why_no_weights(model: ModelSpec) -> str:
    """Why the encoder's pretrained weights cannot be had here; empty if they can. They are fetched by asking."""
    from tune_ssl.models.weights import pinned

    try:
        heads.encoder_for(Task(2, 3, 224), pinned(model))
    except UserError as error:
        return error.problems[0].text
    return ""


def side_carried(fixed: dict[str, Any]) -> int:
    """The largest side of SIDES at which the features of a folder's images take at most LONGEST seconds here."""
    data, model = fixed.get("data", {}), fixed.get("model", {})
    if data.get("dataset") != "folder" or not isinstance(data.get("root"), str):
        return SIDES[0]
    listed = list_images(DataSpec.model_validate({"dataset": "folder", "root": data["root"]}))
    images = sum(map(len, listed.files.values()))
    spec = ModelSpec(encoder=model.get("encoder", "small_cnn"), freeze="all")
    rate = images_per_second(spec, Task(2, 3, SIDES[0]))
    passes = images * (1 + VIEWS * model.get("frozen_views", 2))
    seconds = passes / rate / (os.cpu_count() or 1)
    return max(
        side for side in SIDES if side == SIDES[0] or seconds * (side / SIDES[0]) ** 2 <= LONGEST
    )


def minutes(study: Study, stores: Mapping[str, Store]) -> list[str]:
    """One sentence: how many trials of how many seconds, and how long they take together here."""
    settings = study.settings
    slots = max(1, int((os.cpu_count() or 1) // settings.cpus_per_trial))
    total, trials, kept = 0.0, 0, {}
    for condition in study.conditions:
        one, features = seconds_of(condition, stores[condition.id])
        kept.update(features)
        searched = trials_of(settings.searcher, condition.search, settings.num_trials)
        again = repeats_of(settings, condition.search)
        trials += searched + again + len(settings.seeds)
        total += one * (WHOLE_TRIALS * searched + again + len(settings.seeds))
    spent = STARTED + (total + sum(kept.values())) / slots
    once = (
        f", {sum(kept.values()) / slots / 60:.0f} of them for features that are kept"
        if kept
        else ""
    )
    return [f"{trials} trials on {slots} CPU slots: about {max(1, ceil(spent / 60))} min{once}"]


def seconds_of(condition: Condition, store: Store) -> tuple[float, dict[str, float]]:
    """Seconds of one whole trial, and those of the features that all trials share, by what they are of."""
    spec = condition.spec
    rate = images_per_second(spec.model, store.task(spec.data))
    counts = store.counts
    pool = sum(counts.get(part, 0) for part in ("train", "unlabeled"))
    total, kept = 0.0, {}
    for stage in find_method(spec.method.name).stages(spec.method):
        frozen = spec.model.freeze == "all" and stage.on_features
        if frozen or stage.fits:
            total += FITTED if stage.fits else spec.stage_steps()[stage.name] * HEAD_STEP
            if spec.model.encoder != "pixels":
                kept["none"] = sum(counts.values()) / rate
                for view in {*stage.unlabeled_views} - {"none"}:
                    kept[view] = spec.model.frozen_views * pool / rate
            continue
        seen = spec.data.batch_size * len(stage.labeled_views)
        seen += spec.data.batch_size * spec.data.mu * len(stage.unlabeled_views)
        total += spec.stage_steps()[stage.name] * seen * PASSES / rate
    return total, kept


def images_per_second(model: ModelSpec, task: Task) -> float:
    """Forward passes of the encoder in a second on one core."""
    if model.encoder == "pixels":
        return 1e6
    return _measured(model.encoder, model.stem, task)


@lru_cache  # conditions and methods share their encoder
def _measured(encoder_name: str, kind: str, task: Task) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = ModelSpec.model_validate({"encoder": encoder_name, "stem": kind})
        encoder = heads.encoder_for(task, model).eval()
        count = max(16, min(256, TIMED_PIXELS // prod(task.size)))
        images = torch.zeros(count, task.channels, *task.size)
        with torch.no_grad():
            encoder(images)
            began = time.perf_counter()
            encoder(images)
        return len(images) / max(time.perf_counter() - began, 1e-6)
    finally:
        torch.set_num_threads(before)
