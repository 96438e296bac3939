"""What a user did wrong, said in one line each. Every bad input of the program ends here, and nowhere as a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


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
        return f"{self.where}: {sentence}" if self.where else sentence


class UserError(ValueError):
    """Bad input: all its problems at once. The command line prints them and exits with 2."""

    def __init__(self, problems: str | Problem | Iterable[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def nearest(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` when a known name is near, else an empty string."""
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"; did you mean '{found[0]}'?" if found else ""


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The sentence for a name that is not in a list: the nearest one first, then all of them."""
    known = sorted(known)
    return f"is {name!r}, but must be a known {kind}{nearest(name, known)} (known: {', '.join(known)})"


class Interrupted(BaseException):
    """Ctrl-C. Not an Exception, so that no library takes it for a failure; exit code 130."""
