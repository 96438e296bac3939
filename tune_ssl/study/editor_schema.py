"""A JSON schema of the study file, for editors that complete and check YAML."""

from __future__ import annotations

import functools
import operator
from typing import Any

from pydantic import TypeAdapter, create_model

from tune_ssl.base.spec import Spec, StudySpec
from tune_ssl.methods import method_names
from tune_ssl.study.domains import DomainSpec
from tune_ssl.study.trial import TrialSpec, trial_model

OF_METHODS = ("method", "losses")  # sections of a trial that no comparison shares


def study_schema() -> dict[str, Any]:
    """JSON schema (2020-12): of one method, whose trial spec `fixed` is, or of a comparison of several."""
    trials = functools.reduce(operator.or_, map(trial_model, method_names()))
    parts: dict[str, Any] = {
        "search": (dict[str, DomainSpec], {}),
        "ablate": (dict[str, dict[str, Any]], {}),
    }
    fields: dict[str, Any] = {
        "conditions": (dict[str, list[Any]], {}),
        "study": (StudySpec, StudySpec()),
        **parts,
    }
    one = create_model("StudyFile", __base__=Spec, fixed=(trials, ...), **fields)
    shared: dict[str, Any] = {
        name: (field.annotation, field.default)
        for name, field in TrialSpec.model_fields.items()
        if name not in OF_METHODS
    }
    entry = create_model("Entry", __base__=Spec, fixed=(dict[str, Any], {}), **parts)
    several = create_model(
        "ComparisonFile",
        __base__=Spec,
        fixed=(create_model("Shared", __base__=Spec, **shared), {}),
        compare=(dict[str, entry | None], ...),  # type: ignore[valid-type]
        **fields,
    )
    either: Any = TypeAdapter(one | several)
    schema: dict[str, Any] = {"title": "Study", **either.json_schema(by_alias=True)}
    for definition in schema["$defs"].values():
        if "const" in definition.get("properties", {}).get("name", {}):
            definition["required"] = ["name"]  # it tells the methods apart
    return schema
