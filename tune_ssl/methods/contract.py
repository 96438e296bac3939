"""What a Method must have, and a step must return.

`breaches` finds all problems of a class at once, each with its FILE:LINE: it is asked for methods from
outside of the package, and a test asks it for those within.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from tune_ssl.base.errors import Problem, nearest, shown, unknown
from tune_ssl.base.spec import (
    LossesSpec,
    LossSpec,
    MethodSpec,
    ModelSpec,
    OptimPart,
    OptimSpec,
    Spec,
)
from tune_ssl.data.batch import VIEWS
from tune_ssl.methods.base import Method, Ratio, Stage, StepOutput
from tune_ssl.methods.measures import MEASURED

LONGEST = 200  # characters of another program's error message
TAKEN = {"losses": (LossesSpec, {"total"}), "optim_parts": (OptimSpec, set(OptimSpec.model_fields))}
LISTS = ("loss_terms", "evaluators", "labeled_views", "unlabeled_views", "shaped_without")

Breach = tuple[type, str, str]
"""The class, what of it ("" is all of it), and how the sentence goes on."""


def breaches(method: type[Method[Any]], file: str) -> list[Problem]:
    """Every problem of a method whose module the user knows as `file`."""
    problems = []
    for about, part, text in _breaches(method):
        near = about if about.__module__ == method.__module__ else method
        key = f"{about.__name__}.{part}".rstrip(".")
        problems.append(Problem(text, key, f"{file}:{line_of(near)}"))
    return problems


def check_output(stage: Stage[Any], out: Any) -> None:
    """TypeError that names the stage, what in a step's output is wrong, and what was expected."""
    wrong = next(_wrong_output(stage, out), None)
    if wrong:
        raise TypeError(f"stage {stage.name!r}: step() returned {wrong}")


def _wrong_output(stage: Stage[Any], out: Any) -> Iterator[str]:
    if not isinstance(out, StepOutput) or not all(isinstance(part, Mapping) for part in out):
        yield f"{type(out).__name__}, but must return StepOutput(losses, diagnostics) of two mappings"
        return
    terms = ", ".join(stage.loss_terms)
    for term in stage.loss_terms:
        if term not in out.losses:
            yield f"no loss {term!r}, but must return one for each of its loss_terms ({terms})"
    for term, loss in out.losses.items():
        if term not in stage.loss_terms:
            yield f"the loss {term!r}, which is not one of its loss_terms ({terms})"
        if not _is_scalar(loss):
            yield f"the loss {term!r} as {_kind(loss)}, but must return a tensor of shape ()"
    if not any(loss.requires_grad for loss in out.losses.values()):
        yield "losses that depend on no weight of the network, so that nothing would be trained"
    for name, value in out.diagnostics.items():
        for part in value if isinstance(value, Ratio) else (value,):
            if not _is_scalar(part):
                yield f"the diagnostic {name!r} as {_kind(part)}, but must return a tensor of shape ()"
    for name in stage.floors:
        if name not in out.diagnostics:
            yield f"no diagnostic {name!r}, but the stage has a floor for it"
    for name in stage.idle:
        if name not in out.diagnostics:
            yield f"no diagnostic {name!r}, but the stage's `idle` has a sentence for it"


def _is_scalar(value: Any) -> bool:
    return hasattr(value, "requires_grad") and value.ndim == 0


def _kind(value: Any) -> str:
    tensor = hasattr(value, "requires_grad")
    return f"a tensor of shape {tuple(value.shape)}" if tensor else type(value).__name__


def file_of(kind: type) -> str:
    """The file that a class stands in; empty if there is none."""
    return getattr(sys.modules.get(kind.__module__), "__file__", None) or ""


def line_of(kind: type) -> int:
    """Where in its file a class begins."""
    try:
        return inspect.getsourcelines(kind)[1]
    except (OSError, TypeError):  # made by a call, or from a file that is no source
        return 1


def raised(error: BaseException, within: str | None = None) -> tuple[str, str, int]:
    """("raises TypeError: its text", file, line): the innermost line in the file `within`, or in any.

    The line of ours that caught it does not count.
    """
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    says = f"raises {type(error).__name__}" + (f": {text}" if text else "")
    places = [
        (frame.filename, frame.lineno or 1)
        for frame in traceback.extract_tb(error.__traceback__)[1:]
    ]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno or 1))
    fitting = [p for p in places if p[0] == within or (within is None and "importlib" not in p[0])]
    return (says, *(fitting[-1] if fitting else ("", 1)))


def _breaches(method: type[Method[Any]]) -> Iterator[Breach]:
    yield from _name(method)
    yield from _mapping(method, "losses", LossSpec)
    yield from _mapping(method, "optim_parts", OptimPart)
    kinds = getattr(method, "stage_types", None)
    fitted = isinstance(kinds, tuple) and all(getattr(kind, "fits", False) for kind in kinds)
    if getattr(method, "losses", None) == {} and not fitted:
        yield method, "losses", "is empty, but must map each loss term to its LossSpec"
    if not kinds or not _every(kinds, lambda k: isinstance(k, type) and issubclass(k, Stage)):
        yield method, "stage_types", _must(kinds, "a tuple of Stage classes")
        kinds = ()
    spec: MethodSpec | None = None
    for found in _spec(method):
        if isinstance(found, MethodSpec):
            spec = found
        else:
            yield found
    if spec is not None and kinds:
        yield from _stages(method, kinds, spec)


def _name(method: type[Method[Any]]) -> Iterator[Breach]:
    name = vars(method).get("name")
    if name is None:
        inherited = getattr(method, "name", None)
        by = f" (it inherits {inherited!r})" if inherited else ""
        yield method, "name", f"is missing{by}, but must be what a study calls the method"
    elif not isinstance(name, str) or not name.isidentifier():
        yield method, "name", _must(name, "a Python identifier such as 'my_method'")


def _spec(method: type[Method[Any]]) -> Iterator[Breach | MethodSpec]:
    """What is wrong with the options, and the default spec if one can be built."""
    kind, name = getattr(method, "Spec", None), getattr(method, "name", None)
    if not isinstance(kind, type) or not issubclass(kind, MethodSpec):
        yield method, "Spec", _must(kind, "a class that derives from tune_ssl.MethodSpec")
        return
    annotation = kind.model_fields["name"].annotation
    names = get_args(annotation) if get_origin(annotation) is Literal else ()
    if isinstance(name, str) and name.isidentifier() and names != (name,):
        text = str(annotation).removeprefix("typing.")
        yield kind, "name", f"is {text}, but must be Literal[{name!r}]"
    required = [f for f, field in kind.model_fields.items() if f != "name" and field.is_required()]
    for option in required:
        yield kind, option, "has no default, but each option needs one"
    if required or not names:
        return
    try:
        yield kind(name=names[0])
    except ValidationError as error:
        for item in error.errors():
            option = ".".join(map(str, item["loc"]))
            yield kind, option, f"is {shown(item['input'])} by default, but: {item['msg']}"
    except Exception as error:
        yield kind, "", f"{raised(error)[0]} when it is built with its defaults"


def _mapping(method: type[Method[Any]], part: str, kind: type[Spec]) -> Iterator[Breach]:
    """`losses` and `optim_parts`: what becomes keys of a study beside those that are there already."""
    values = getattr(method, part, None)
    if not isinstance(values, Mapping):
        yield method, part, _must(values, f"a mapping of names to {kind.__name__}")
        return
    base, taken = TAKEN[part]
    for name, value in values.items():
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
            yield (
                method,
                part,
                f"has {shown(name)}, but a name must be an identifier without '_' first",
            )
        elif name in taken or hasattr(base, name):
            yield method, part, f"has {shown(name)}, but that name is taken; choose another one"
        if not isinstance(value, kind):
            yield (
                method,
                part,
                f"has {shown(name)}: {_shown(value)}, but must have a {kind.__name__}",
            )


def _stages(
    method: type[Method[Any]], kinds: tuple[type[Stage[Any]], ...], spec: MethodSpec
) -> Iterator[Breach]:
    losses = method.losses if isinstance(getattr(method, "losses", None), Mapping) else {}
    terms: list[str] = []
    sound = True
    for kind in kinds:
        try:
            stage = kind(spec)
        except Exception as error:
            yield (
                kind,
                "",
                f"{raised(error)[0]} when it is built with the default {type(spec).__name__}",
            )
            sound = False
            continue
        lists = {}
        for part in LISTS:
            value, problem = _read(stage, part)
            if not problem and not _every(value, lambda item: isinstance(item, str)):
                problem = _must(value, "a tuple of names")
            if problem:
                yield kind, part, problem
                sound = sound and part != "loss_terms"
            lists[part] = () if problem else value
        terms += lists["loss_terms"]
        yield from _stage(kind, stage, lists)
        for term in dict.fromkeys(lists["loss_terms"]):
            if losses and term not in losses:
                has = f"has {term!r}, but {method.__name__}.losses has no default for it"
                yield kind, "loss_terms", has + nearest(term, losses)
    for term in losses:
        if sound and term not in terms:
            has = f"has {term!r}, but no stage has it in its loss_terms"
            yield method, "losses", has + nearest(term, terms)
    if sound:
        yield from _order(method, spec)


def _stage(kind: type[Stage[Any]], stage: Stage[Any], lists: dict[str, Any]) -> Iterator[Breach]:
    """One stage: its methods, and the names in it that stand for something of ours."""
    work = "fit" if stage.fits else "step"
    for needed in ("build", work, *(["predict"] if lists["evaluators"] else [])):
        if getattr(kind, needed) is getattr(Stage, needed):
            yield kind, needed, "is missing, but must be written"
    known = {
        "evaluators": ("evaluator", MEASURED),
        "shaped_without": (
            "option",
            [*type(stage.spec).model_fields, *(f"model.{key}" for key in ModelSpec.model_fields)],
        ),
    }
    for part in ("labeled_views", "unlabeled_views"):
        known[part] = ("view", VIEWS)
    for part, (what, names) in known.items():
        for name in lists[part]:
            if name not in names:
                yield kind, part, unknown(what, name, names)
    if not lists["labeled_views"] and not lists["unlabeled_views"]:
        yield kind, "", "has neither labeled_views nor unlabeled_views, but must see images"
    measured = [key for name in lists["evaluators"] for key in MEASURED.get(name, ())]
    if stage.stand_in is not None and stage.stand_in not in measured:
        yield kind, "stand_in", unknown("metric of its evaluators", stage.stand_in, measured)


def _order(method: type[Method[Any]], spec: MethodSpec) -> Iterator[Breach]:
    try:
        names = [stage.name for stage in method.stages(spec)]
    except Exception as error:
        yield method, "stages", f"{raised(error)[0]} for the default {type(spec).__name__}"
        return
    if not names:
        yield method, "stages", "is empty for the default options, but must have at least one stage"
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield method, "stages", f"has two stages called {name!r}; give each a `name` of its own"


def _read(stage: Stage[Any], part: str) -> tuple[Any, str]:
    """The value, or what to say instead."""
    if not hasattr(type(stage), part) and not hasattr(stage, part):
        return None, _must(None, "a tuple of names")
    try:
        return getattr(stage, part), ""
    except Exception as error:
        return None, f"{raised(error)[0]} for the default {type(stage.spec).__name__}"


def _every(values: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(values, (tuple, list)) and all(map(holds, values))


def _must(value: Any, words: str) -> str:
    return f"is {'missing' if value is None else _shown(value)}, but must be {words}"


def _shown(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else shown(value)
