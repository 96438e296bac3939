"""The contract of every YAML in search_spaces/: it is sound, and a method's is named after it."""

from pathlib import Path

import pytest

from tune_ssl.methods import find_method, method_names
from tune_ssl.study import load_study

FOLDER = Path(__file__).parent.parent / "search_spaces"
STUDIES = sorted(FOLDER.rglob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_search_space_is_sound_and_says_what_it_compares_and_searches(path):
    study = load_study(path)
    assert study.fixed.method.name in path.stem
    assert study.axes and study.search
    assert len(study.settings.seeds) >= 3
    terms = [term for term, _ in study.fixed.losses.items()]
    assert set(terms) == set(find_method(study.fixed.method.name).losses)


@pytest.mark.parametrize("name", method_names())
def test_every_method_has_a_search_space_on_embedded_data(name):
    study = load_study(FOLDER / f"{name}.yaml")
    assert study.fixed.method.name == name
    assert study.fixed.data.dataset == "digits"


@pytest.mark.parametrize("name", method_names())
def test_a_methods_search_space_tunes_each_of_its_own_loss_weights(name):
    searched = load_study(FOLDER / f"{name}.yaml").search
    for term in find_method(name).losses:
        assert term == "supervised" or f"losses.{term}.weight" in searched
