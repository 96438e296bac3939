"""The tools of other people that `study.loggers` names: `mlflow`, or `{name: mlflow, experiment: mine}`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tune_ssl.base.errors import Problem, UserError, nearest, shown, unknown
from tune_ssl.base.secrets import has_secret, redact
from tune_ssl.base.spec import Named
from tune_ssl.study.named import given_arguments, name_of

if TYPE_CHECKING:
    from tune_ssl.study.study import Study

ARGUMENTS = {  # what each may be given
    "tensorboard": ("folder",),
    "mlflow": ("tracking_uri", "experiment"),
    "wandb": ("project", "entity", "group", "mode", "folder"),
}
MODES = ("online", "offline", "disabled")  # of wandb
EXTRAS = {"mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}  # extra -> modules
SECRETS = {"mlflow": "MLFLOW_TRACKING_URI", "wandb": "WANDB_API_KEY"}


def problems(loggers: Sequence[Named]) -> Iterator[tuple[tuple[str, ...], Problem]]:
    """What is wrong, each with its place in the file: unknown names and arguments, and passwords."""
    names = [name_of(named) for named in loggers]
    for i, named in enumerate(loggers):
        name, key = names[i], "study.loggers"
        place = ("study", "loggers", str(i))
        if name not in ARGUMENTS:
            yield place, Problem(unknown("logger", name, ARGUMENTS), key)
        elif name in names[:i]:
            yield place, Problem(f"names {name} twice", key)
        else:
            for text in _wrong_arguments(name, given_arguments(named)):
                yield place, Problem(text, f"{key}.{name}")


def _wrong_arguments(name: str, given: dict[str, Any]) -> Iterator[str]:
    known = ARGUMENTS[name]
    for argument, value in given.items():
        if argument not in known:
            takes = f"(it takes: {', '.join(known)})"
            hint = nearest(argument, known)
            yield f"has the argument {argument!r}, which {name} does not take{hint} {takes}"
        elif not isinstance(value, str) or not value:
            yield f"has {argument}: {shown(value)}, but must have a text there"
        elif has_secret(value):
            yield (
                f"has {argument}: {shown(redact(value))}, but must have no password or key: the run folder would "
                f"keep it; the environment gives it ({SECRETS.get(name, 'it')})"
            )
        elif name == "wandb" and argument == "mode" and value not in MODES:
            hint = nearest(value, MODES)
            yield f"has mode: {value}, but must have {', '.join(MODES[:-1])} or {MODES[-1]}{hint}"


def refuse_missing(study: Study) -> None:
    """UserError for a logger whose library is not installed here."""
    found = []
    for i, named in enumerate(study.settings.loggers):
        name = name_of(named)
        missing = [module for module in EXTRAS.get(name, ()) if not _is_there(module)]
        if missing:
            text = (
                f"has {name}, but the package {missing[0]} is not installed; "
                f"pip install 'tune-ssl[{name}]'"
            )
            place = study.file.where(("study", "loggers", str(i)))
            found.append(Problem(text, "study.loggers", place))
    if found:
        raise UserError(found)


def _is_there(module: str) -> bool:
    """Whether it can be imported; a plain folder of that name, as wandb makes one, is none."""
    found = find_spec(module)
    return found is not None and found.origin is not None
