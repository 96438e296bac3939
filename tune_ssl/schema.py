"""A JSON schema of the study file, for editors that complete and check YAML."""

from __future__ import annotations

from typing import Any, Union

from pydantic import create_model

from tune_ssl.methods import method_names
from tune_ssl.space import Domain
from tune_ssl.spec import Spec, StudySpec
from tune_ssl.trial import trial_model


def study_schema() -> dict[str, Any]:
    """JSON schema (2020-12) in which `fixed` is one of the methods' trial specs."""
    trials = Union[tuple(trial_model(name) for name in method_names())]  # type: ignore[misc]  # noqa: UP007
    fields: dict[str, Any] = {
        "fixed": (trials, ...),
        "conditions": (dict[str, list[Any]], {}),
        "search": (dict[str, Domain], {}),
        "ablate": (dict[str, dict[str, Any]], {}),
        "study": (StudySpec, StudySpec()),
    }
    model = create_model("StudyFile", __base__=Spec, **fields)
    return model.model_json_schema(by_alias=True)
