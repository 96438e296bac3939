"""The contract of every YAML in search_spaces/: it is sound, and a method's is named after it."""

from pathlib import Path

import pytest

from tune_ssl.methods import find_method, method_names
from tune_ssl.study.study import load_study
from tune_ssl.study.trial import override

FOLDER = Path(__file__).parents[2] / "search_spaces"
STUDIES = sorted(FOLDER.rglob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_search_space_is_sound_and_says_what_it_compares_and_searches(path):
    study = load_study(path)
    assert study.compares or path.stem.startswith((study.fixed.method.name, "within_budget"))
    assert study.compares or study.axes
    assert len(study.settings.seeds) >= 3
    for entry in study.entries:
        assert entry.search
        terms = [term for term, _ in entry.fixed.losses.items()]
        assert set(terms) == set(find_method(entry.fixed.method.name).losses)
        for variant in entry.ablate.values():
            override(entry.fixed, variant)


@pytest.mark.parametrize("name", method_names())
def test_every_method_has_a_search_space_on_embedded_data(name):
    study = load_study(FOLDER / f"{name}.yaml")
    assert study.fixed.method.name == name
    assert study.fixed.data.dataset == "digits"


@pytest.mark.parametrize("name", method_names())
def test_a_methods_search_space_tunes_the_weight_of_each_term_it_adds_to_another(name):
    """The first term of a stage, or one with an optimizer of its own, needs none: there is lr."""
    method, searched = find_method(name), load_study(FOLDER / f"{name}.yaml").search
    for stage in method.stage_types:
        for term in stage.loss_terms[1:]:
            assert term in method.optim_parts or f"losses.{term}.weight" in searched
