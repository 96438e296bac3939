"""How many trials a cluster takes at once, and what `auto` chooses; the nodes are what Ray would list."""

from __future__ import annotations

import pytest

from tests.support.runs import write_study
from tune_ssl.base.errors import UserError
from tune_ssl.cluster import resources
from tune_ssl.study.study import load_study

STUDY = """
fixed:
  data: {dataset: digits, num_labels: 40}
  method: {name: supervised}
  budget: {steps: 10}
study: {name: s, cpus_per_trial: 2, seeds: [0]}
"""


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """`fit([node, ...], override, ...)`: what fit_resources says of nodes with those resources."""

    def asked(nodes, *overrides):
        monkeypatch.setattr(
            resources.ray, "nodes", lambda: [{"Alive": True, "Resources": n} for n in nodes]
        )
        study = load_study(write_study(tmp_path, STUDY), overrides)
        return resources.fit_resources(study.settings, resources.gpu_share(study))

    return asked


@pytest.mark.parametrize(
    "share, at_once",
    [(1, 4), (0.5, 8), (0.6, 4), (0.4, 8), (0.3, 12), (0.25, 16), (0.1, 40)],
)
def test_a_trial_never_lies_on_two_gpus(fit, share, at_once):
    found = fit([{"CPU": 96.0, "GPU": 4.0}], f"study.gpus_per_trial={share}")
    assert found.concurrent == at_once and found.wanted["gpu"] == share


def test_trials_are_counted_node_by_node(fit):
    nodes = [{"CPU": 3.0}, {"CPU": 5.0}, {"CPU": 1.0}]
    found = fit(nodes)
    assert found.concurrent == 1 + 2 and found.wanted == {"cpu": 2.0}
    assert found.reason == "2 CPU per trial, 3 at once (9 CPU in 3 nodes, no GPU)"
    limited = fit(nodes, "study.max_concurrent=2")
    assert limited.concurrent == 2 and "2 at once by study.max_concurrent" in limited.reason
    gib = float(1 << 30)
    memory = fit([{"CPU": 8.0, "memory": 5 * gib}], "study.memory_per_trial=2.5")
    assert memory.concurrent == 2 and memory.wanted["memory"] == 2.5 * gib


@pytest.mark.parametrize(
    "overrides, gpus, reason",
    [
        ((), 0.25, "small_cnn shares a GPU with others"),
        (("model.encoder=resnet18",), 1.0, "0.25 GPU"),
        (("compute.device=cpu",), 0.0, "compute.device is cpu"),
        (("study.gpus_per_trial=0.5",), 0.5, "0.5 GPU per trial"),
    ],
)
def test_auto_packs_small_networks_and_says_why(fit, overrides, gpus, reason):
    found = fit([{"CPU": 16.0, "GPU": 1.0}], *overrides)
    assert found.wanted.get("gpu", 0.0) == gpus
    assert (reason in found.reason) == (reason != "0.25 GPU")


@pytest.mark.parametrize(
    "nodes, overrides, expected",
    [
        (
            [{"CPU": 1.0}],
            (),
            "study.cpus_per_trial is 2, but the largest of 1 nodes has 1 CPU",
        ),
        (
            [{"CPU": 8.0}],
            ("study.gpus_per_trial=1",),
            "study.gpus_per_trial is 1, but the largest of 1 nodes has 0 GPU",
        ),
        (
            [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 8.0}],
            ("study.gpus_per_trial=1",),
            "no node has all that a trial asks for (2 CPU and 1 GPU): 1 CPU, 1 GPU; 8 CPU, 0 GPU",
        ),
    ],
)
def test_what_no_node_has_is_refused(fit, nodes, overrides, expected):
    with pytest.raises(UserError) as caught:
        fit(nodes, *overrides)
    assert expected in str(caught.value)
