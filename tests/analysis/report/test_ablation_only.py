"""The report of a run that only ablates: nothing was searched, nothing was confirmed."""

import pytest
from ruamel.yaml import YAML

from analysis.numbers import ablations, tables
from analysis.read.load import load_runs
from analysis.words.sections import CAPTIONS
from analysis.words.summary import caveats, summary, what_ran
from tune_ssl.records import log

CONDITION = "data.num_labels=50"


@pytest.fixture
def ablated(tmp_path, write_run, event):
    """Three seeds of a reference and of `no_x`."""
    path = write_run(tmp_path / "a", labels=(50,), search=(), confirm={}, diag=False)
    yaml = YAML(typ="safe", pure=True)
    study = yaml.load(path / log.STUDY)
    study["study"] |= {"search": {}, "ablate": {"no_x": {"losses.x.weight": 0.0}}}
    yaml.dump(study, path / log.STUDY)
    for variant, weight in (("reference", 1.0), ("no_x", 0.0)):
        own = {"phase": log.ABLATE, "variant": variant}
        config = {"losses.x.weight": weight, "optim.lr": 0.1}
        plan = {"changes": {}, "retune": [], "switches": None, "config": config}
        event(path, log.PLANNED, variant, CONDITION, **own, **plan)
        for seed in range(3):
            trial = f"{variant}-s{seed}"
            event(path, log.STARTED, trial, CONDITION, seed=seed, config=config, **own)
            ending = {"value": 0.8 + seed / 9, "images_seen": 640}
            event(path, log.FINISHED, trial, CONDITION, **ending, **own)
    return load_runs([path])


def test_the_summary_says_what_ran_and_on_what_it_is_scored(ablated):
    ablation, chosen = ablations.ablation_table(ablated), tables.chosen_table(ablated)
    results = tables.results_table(ablated)
    lines = summary(ablated, results, chosen, ablation=ablation)
    assert lines[0].endswith(
        "are of ablations, scored on validation images, and say nothing about test accuracy."
    )
    assert what_ran(ablated, chosen) == [
        "soft_kmeans: 6 ablation trials of 1 variant on digits (6 finished)."
    ]
    assert not any("best of many" in line or "search trials" in line for line in lines)
    said = caveats(ablated, results, tables.budget_table(ablated), chosen, ablation)
    assert said == [
        "Ablation of soft_kmeans: 3 seeds give no 95 % interval: that takes 4 seeds, 1 more per "
        "condition."
    ]
    assert "The reference was chosen on validation images" in CAPTIONS["ablation"]


def test_the_configuration_column_shows_what_varies(ablated):
    assert ablated.studies[0].searched == []
    assert set(tables.trial_table(ablated)["config"]) == {"losses.x.weight=1", "losses.x.weight=0"}
