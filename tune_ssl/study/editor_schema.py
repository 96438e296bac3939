"""A JSON schema of the study file, for editors that complete and check YAML."""

from __future__ import annotations

import functools
import operator
from typing import Any

from pydantic import create_model

from tune_ssl.base.spec import Spec, StudySpec
from tune_ssl.methods import method_names
from tune_ssl.study.domains import DomainSpec
from tune_ssl.study.trial import trial_model


def study_schema() -> dict[str, Any]:
    """JSON schema (2020-12) in which `fixed` is one of the methods' trial specs."""
    trials = functools.reduce(operator.or_, map(trial_model, method_names()))
    fields: dict[str, Any] = {
        "fixed": (trials, ...),
        "conditions": (dict[str, list[Any]], {}),
        "search": (dict[str, DomainSpec], {}),
        "ablate": (dict[str, dict[str, Any]], {}),
        "study": (StudySpec, StudySpec()),
    }
    model = create_model("StudyFile", __base__=Spec, **fields)
    schema = model.model_json_schema(by_alias=True)
    for definition in schema["$defs"].values():
        if "const" in definition.get("properties", {}).get("name", {}):
            definition["required"] = ["name"]  # it tells the methods apart
    return schema
