"""Which trials share a pretraining: a first stage that sees no label does not depend on the label budget.

What a spec says of it is here, without torch, for the driver and for `training.encoder_cache`, which adds
what only the machine knows: the data themselves, the device and the code.
"""

from __future__ import annotations

from typing import Any

from tune_ssl.base.spec import digest
from tune_ssl.methods import find_method
from tune_ssl.methods.base import Stage
from tune_ssl.study.trial import TrialSpec


def sees_no_label(stage: Stage[Any]) -> bool:
    """Whether what the stage trains can serve trials of other label budgets."""
    return not stage.labeled_views


def shaping(spec: TrialSpec, stage: Stage[Any]) -> dict[str, Any]:
    """All of the spec that shapes what `stage` trains, but for its images and its device."""
    without = set(stage.shaped_without)
    stages = {each.name for each in find_method(spec.method.name).stage_types}
    return {
        "stage": [type(stage).__qualname__, stage.name],
        "batch": [spec.data.batch_size, spec.data.mu, spec.compute.accumulate],
        "model": spec.model.model_dump(
            exclude={key.removeprefix("model.") for key in without if key.startswith("model.")}
        ),
        "method": spec.method.model_dump(exclude=without),
        "losses": {
            term: loss.model_dump()
            for term, loss in spec.losses.items()
            if term in stage.loss_terms
        },
        "optim": spec.optim.of(stage.name).model_dump(exclude=stages),
        "budget": [spec.stage_steps()[stage.name], spec.budget.eval_every],
        "compute": spec.compute.model_dump(
            include={"channels_last", "tf32", "cudnn_benchmark", "compile"}
        ),
        "seed": spec.seed,
    }


def shared_pretraining_key(spec: TrialSpec) -> str | None:
    """Equal for two trials of which one takes the first stage that the other trains; None if it cannot be taken.

    It can be where the stage sees no label and the cache is on. Trials whose keys differ may still share,
    where two values come to the same on this machine (`compute.device: auto` and `cpu`).
    """
    stage, data = spec.stages()[0], spec.data
    if not spec.compute.cache or not sees_no_label(stage):
        return None
    budget = {"num_labels", "labeled_ratio"} if data.validation == "split" else set()
    others = {"batch_size", "mu", "split_seed", "download", "balanced"}
    images = data.model_dump(exclude=budget | others)
    device = [spec.compute.device, spec.compute.precision]
    return digest(
        {
            **shaping(spec, stage),
            "views": spec.views.model_dump(include={*stage.unlabeled_views}),
            "data": images,
            "split_seed": spec.split_seed,
            "device": device,
        }
    )
