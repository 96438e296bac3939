"""What a user did wrong, one line each: bad input ends here, and nowhere as a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

EXIT_STOPPED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
LONGEST = 80  # characters of a value in a message
JOINER = "\u200d"  # within composed emoji


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    `where` is `file:line` or the override's own text, `key` the dotted path; both may be empty.
    `text` completes the sentence that starts with the key: "is -1, but must be greater than 0".
    """

    text: str
    key: str = ""
    where: str = ""

    def __str__(self) -> str:
        sentence = f"{self.key} {self.text}" if self.key else self.text
        return printable(f"{self.where}: {sentence}" if self.where else sentence)


class UserError(ValueError):
    """Bad input: all its problems at once. The command line prints them and exits with 2."""

    def __init__(self, problems: str | Problem | Iterable[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def printable(text: str) -> str:
    """One line that moves no cursor and turns no direction: control and format characters as escapes."""
    if text.isprintable():
        return text
    kept = (
        c if c.isprintable() or c == JOINER else c.encode("unicode_escape").decode() for c in text
    )
    return "".join(kept)


def first_line(error: BaseException | str) -> str:
    """What an error says, in one line: the system's own words if it has some, else its type at least.

    >>> first_line(FileNotFoundError(2, "No such file or directory", "a.yaml"))
    'No such file or directory'
    """
    text = str(getattr(error, "strerror", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def nearest(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` when a known name is near, else an empty string."""
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"; did you mean '{found[0]}'?" if found else ""


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The sentence for a name that is not in a list: the nearest one first, then all of them."""
    known = sorted(known)
    hint = nearest(name, known)
    return f"is {shown(name)}, but must be a known {kind}{hint} (known: {', '.join(known)})"


def shown(value: object) -> str:
    """A value as one would write it in YAML, cut at 80 characters."""
    text = _flow(value).replace("\n", " ")
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _flow(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return repr(value) if isinstance(value, (str, int, float)) else str(value)


class Interrupted(BaseException):
    """Ctrl-C. Not an Exception, so that no library takes it for a failure; exit code 130."""


class Stopped(Exception):
    """A run cannot go on now: what is finished is kept. One line on stderr and exit code 1."""
