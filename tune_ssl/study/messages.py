"""Pydantic's errors in the program's own words: "optim.lr is -1, but must be greater than 0"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tune_ssl.base.errors import Problem, nearest, shown

# What a value "must be", by pydantic's error type; {} are the error's own numbers.
MUST = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "finite_number": "a finite number",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
    "string_too_long": "at most {max_length} characters long",
    "string_too_short": "at least {min_length} characters long",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}


def validation_problems(
    error: ValidationError, model: type[BaseModel], raw: Any, prefix: str = ""
) -> list[Problem]:
    """One problem for each key that is wrong: its value, what is allowed, the nearest name.

    `raw` is what was validated. Of a union's branches, the one that the value has the shape of is
    reported, else what all of them allow.
    """
    found: dict[tuple[str, ...], list[Any]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(_written(item["loc"], raw, model), []).append(item)
    leaves = [k for k in found if not any(k == o[: len(k)] and k != o for o in found)]
    return [_problem(keys, found[keys], model, prefix) for keys in leaves]


def fields_at(model: type[BaseModel], keys: tuple[str, ...]) -> dict[str, type[BaseModel] | None]:
    """Names of the fields below `keys`, each with its model where it is one."""
    for key in keys:
        inner = fields_at(model, ()).get(key)
        if inner is None:
            return {}
        model = inner
    return {
        field.alias or name: _model_of(field.annotation)
        for name, field in model.model_fields.items()
    }


def _written(loc: tuple[Any, ...], raw: Any, model: type[BaseModel]) -> tuple[str, ...]:
    """The path as the user writes it: pydantic adds the names of union branches."""
    keys: list[str] = []
    for part in loc:
        listed = isinstance(raw, (list, tuple)) and isinstance(part, int) and part < len(raw)
        if listed or (isinstance(raw, Mapping) and part in raw):
            raw = raw[part]
        elif part in fields_at(model, tuple(keys)):  # a field that was left out
            raw = None
        else:
            continue
        keys.append(str(part))
    return tuple(keys)


def _problem(
    keys: tuple[str, ...], items: list[Any], model: type[BaseModel], prefix: str
) -> Problem:
    key, item = (prefix + ".".join(keys)).rstrip("."), items[0]
    kind, value = item["type"], item["input"]
    if kind in ("extra_forbidden", "invalid_key"):
        return Problem(_unknown_key(keys, model), key)
    if kind == "missing":
        return Problem("is missing, but must be given", key)
    if kind in ("value_error", "assertion_error"):
        return Problem(re.sub(r"^(Value|Assertion) error, ", "", item["msg"]), key)
    allowed = list(dict.fromkeys(_must(each) for each in items))
    literals = [e["ctx"]["expected"] for e in items if e["type"] == "literal_error"]
    names = re.findall(r"'([^']*)'", " ".join(literals)) if isinstance(value, str) else []
    return Problem(
        f"is {shown(value)}, but must be {' or '.join(allowed)}{nearest(value, names)}", key
    )


def _must(item: Any) -> str:
    if item["type"] in MUST:
        return MUST[item["type"]].format(**item.get("ctx", {}))
    return str(re.sub(r"^(Input|Value) should (be )?", "", item["msg"]))


def _unknown_key(keys: tuple[str, ...], model: type[BaseModel]) -> str:
    known = fields_at(model, keys[:-1])
    hint = nearest(keys[-1], known)
    if not hint and len(keys) == 1:  # it may have been left out of its section
        inner = {n: f"{s}.{n}" for s, m in known.items() if m for n in fields_at(m, ())}
        hint = f"; did you mean '{inner[keys[0]]}'?" if keys[0] in inner else ""
    return f"is not a known key{hint} (known: {', '.join(sorted(known))})"


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The model in `X`, `X | None` or `Annotated[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_model_of(part) for part in get_args(annotation)]
    return next((model for model in found if model), None)
