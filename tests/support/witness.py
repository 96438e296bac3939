"""A plugin that keeps books of its own: each worker writes down what it reports before it reports it.

Ray, the driver and the run folder have no part in it. $WITNESS names the file.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Literal

from tune_ssl.methods.supervised import Supervised, SupervisedSpec


class WitnessedSpec(SupervisedSpec):
    name: Literal["witnessed"] = "witnessed"


class Witnessed(Supervised):  # a plugin brings a method
    name = "witnessed"
    Spec = WitnessedSpec


def write_down(trainable: Any) -> None:
    send = trainable._send

    def sending(report: dict[str, Any], checkpoint: Any = None) -> None:
        line = {
            "trial": trainable.tune.get_context().get_trial_name(),
            "pid": os.getpid(),
            **{key: report.get(key) for key in ("status", "stage", "step", "metrics", "result")},
        }
        with open(os.environ["WITNESS"], "a") as file:
            file.write(json.dumps(line) + "\n")
        send(report, checkpoint)

    trainable._send = sending


if "tune_ssl.tuning.worker" in sys.modules and "WITNESS" in os.environ:  # in a worker
    write_down(sys.modules["tune_ssl.tuning.worker"])
