"""The command line in this process, without Ray, for tests of what a stranger's files can do."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

from tune_ssl.cli import main as cli


class Outcome(NamedTuple):
    """What a command did. `code` is a text where it raised what no user should see."""

    code: Any
    out: str
    err: str


class AtRay(BaseException):
    """A search has come so far that it would start Ray."""


def call(*arguments: object) -> Outcome:
    """The command line, in this process, without Ray."""
    out, err = io.StringIO(), io.StringIO()

    @contextlib.contextmanager
    def no_ray(*_: Any) -> Iterator[None]:
        raise AtRay
        yield

    patches = [mock.patch.object(sys, "argv", ["tune-ssl", *map(str, arguments)])]
    if arguments[0] in ("search", "ablate"):
        patches.append(mock.patch("tune_ssl.tuning.run.cluster", no_ray))
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(contextlib.redirect_stdout(_Text(out)))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("default")
        try:
            cli.main()
            code: Any = 0
        except SystemExit as stop:
            code = 0 if stop.code is None else stop.code
        except AtRay:
            code = 0
        except Exception as error:
            import traceback

            code = f"{type(error).__name__}: {error}"
            err.write(traceback.format_exc())
    return Outcome(code, out.getvalue(), err.getvalue())


class _Text(io.TextIOWrapper):
    """A stdout as strict as a real one: what UTF-8 cannot hold is an error."""

    def __init__(self, kept: io.StringIO) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)
        self.kept = kept

    def write(self, text: str) -> int:
        text.encode(self.encoding, self.errors or "strict")
        return self.kept.write(text)


def sound(outcome: Outcome) -> bool:
    """Whether a command ended as it may: well, or with one clear line per problem."""
    if outcome.code == 0:
        return True
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    return outcome.code in (1, 2) and bool(lines) and "Traceback" not in outcome.err
