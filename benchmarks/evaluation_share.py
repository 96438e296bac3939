"""What evaluations cost beside training, and whether a part of the validation images ranks configs as all do.

    python -m benchmarks.evaluation_share data.dataset=folder data.root=PHOTOS data.image_size=32

On one core, side by side in one process: the share of a trial that `model.encoder=resnet18` spends evaluating with
budget.eval_images=all and auto, at the spec's `eval_every`; then some small_cnn configs, trained for a while, in their
order on the part and on the whole set (Spearman's rank correlation, and the best one of each).
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from scipy.stats import spearmanr

from tune_ssl.data.loading import load_data
from tune_ssl.study.study import load_fixed
from tune_ssl.study.trial import override
from tune_ssl.training.evaluation import predict
from tune_ssl.training.loop import images_evaluated, train
from tune_ssl.training.stepper import Stepper

RATES = (1e-4, 3e-4, 6e-4, 1e-3, 2e-3, 4e-3, 8e-3, 2e-2)
TIMED = 3  # steps, and evaluations of a chunk


def main() -> None:
    torch.set_num_threads(1)
    spec = load_fixed(None, ["data.num_labels=4000", "data.batch_size=64", *sys.argv[1:]]).fixed
    resnet = override(spec, {"model.encoder": "resnet18"})
    data = load_data(spec.data, 0, torch.device("cpu"))
    (stage,) = resnet.stages()
    network = stage.build(data.task, resnet.model, None)
    stepper = Stepper(resnet, stage, network, data, 500, 0)
    stepper.start()
    stepper.advance()
    step = statistics.median(timed(stepper.advance) for _ in range(TIMED))
    on = data.sets.validation
    part = on.some(images_evaluated(resnet, stepper))
    chunk = on.some(256)
    image = statistics.median(
        timed(lambda: predict(stage, stepper.averaged, data, chunk)) for _ in range(TIMED)
    ) / len(chunk)
    every = resnet.budget.eval_every
    print(f"a step {step:.3f} s, an image evaluated {1000 * image:.2f} ms, every {every} steps")
    for name, images in (("all", len(on)), ("auto", len(part))):
        cost = images * image
        print(f"eval_images={name}: {images} images, {cost / (cost + every * step):.1%} of a trial")
    whole, some = [], []
    for rate in RATES:
        config = override(spec, {"optim.lr": rate, "budget.steps": 150, "budget.eval_every": 150})
        *_, last = train(config)
        whole.append(last.result["val/mean_class_accuracy"])
        some.append(last.trained.evaluate(part, "val")["val/mean_class_accuracy"])
        print(f"lr {rate:g}: {some[-1]:.4f} of {len(part)}, {whole[-1]:.4f} of {len(on)}")
    found = spearmanr(some, whole).statistic
    lost = max(whole) - whole[some.index(max(some))]
    print(
        f"rank correlation {found:.3f}; the part's best is {100 * lost:.1f} points below the whole's best"
    )


def timed(call: object) -> float:
    began = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
