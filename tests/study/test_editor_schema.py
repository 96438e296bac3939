"""The JSON schema for editors takes what the program takes, and refuses a misspelt key."""

import jsonschema
import pytest
from ruamel.yaml import YAML

from tests.study.test_search_spaces import STUDIES
from tune_ssl.methods import method_names
from tune_ssl.study.editor_schema import study_schema


@pytest.fixture(scope="module")
def validator():
    schema = study_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_search_space_is_valid(validator, path):
    assert not list(validator.iter_errors(YAML(typ="safe", pure=True).load(path)))


@pytest.mark.parametrize(
    "study",
    [
        {"fixed": {"method": {"name": "kmeans"}}, "serach": {}},
        {"fixed": {"method": {"name": "kmeens"}}},
        {"fixed": {"method": {}}},
        {"fixed": {"method": {"name": "kmeans", "temperature": 1}}},
        {"fixed": {"method": {"name": "kmeans"}, "optim": {"lr": 0}}},
        {"fixed": {"method": {"name": "kmeans"}, "losses": {"clustr": {}}}},
        {"fixed": {"method": {"name": "simclr"}, "optim": {"finetun": {}}}},
        {"fixed": {"method": {"name": "simclr"}, "optim": {"finetune": {"lr": 0}}}},
        {"fixed": {"method": {"name": "kmeans"}, "optim": {"finetune": {"lr": 1}}}},
        {"fixed": {"method": {"name": "simclr"}, "budget": {"steps": {"pretrain": 0}}}},
        {"fixed": {"method": {"name": "simclr"}, "compute": {"cache": 1}}},
        {"fixed": {"method": {"name": "kmeans"}}, "search": {"optim.lr": {"log": [1, 2]}}},
        {"fixed": {"method": {"name": "kmeans"}}, "search": {"optim.lr": {}}},
        {"fixed": {"method": {"name": "kmeans"}}, "study": {"searcher": "optuma"}},
    ],
)
def test_what_the_program_refuses_an_editor_underlines(validator, study):
    assert list(validator.iter_errors(study))


def test_an_editor_takes_each_stages_own_settings(validator):
    fixed = {
        "method": {"name": "simsiam"},
        "model": {"freeze": 2},
        "optim": {"lr": 0.1, "finetune": {"lr": 1, "name": "sgd"}, "predictor": {"momentum": 0}},
        "budget": {"steps": {"pretrain": 10, "finetune": 5}},
    }
    assert not list(validator.iter_errors({"fixed": fixed}))


def test_an_editor_can_complete_each_methods_options_and_loss_terms():
    definitions = study_schema()["$defs"].values()
    names = {d["properties"]["name"].get("const") for d in definitions if "name" in d["properties"]}
    assert set(method_names()) <= names
    assert any("cluster_consistency" in d["properties"] for d in definitions)
