"""Reading a file of records on, as it grows: each whole line once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.records.log import Record

CHUNK = 1 << 24
GUARD = 256  # bytes before the place of reading by which a replaced file is told


class Tail:
    """A file that grows: its whole lines, each given once. What comes after the last newline is left for later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.restart()

    def restart(self) -> None:
        self.offset, self.before = 0, b""
        self.seen: tuple[int, ...] = ()

    def grown(self) -> bool:
        """Whether there is something to read; and no more than that, so that it costs one call."""
        try:
            now = self.path.stat()
        except OSError:
            return self.offset > 0
        return (now.st_ino, now.st_size, now.st_mtime_ns) != self.seen

    def replaced(self) -> bool:
        """Whether what was read is not in the file any more: it shrank, or is another one."""
        if not self.offset:
            return False
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset - len(self.before))
                return file.read(len(self.before)) != self.before
        except OSError:
            return True

    def lines(self) -> Iterator[bytes]:
        """The whole lines that are new."""
        try:
            with self.path.open("rb") as file:
                now = self.path.stat()
                self.seen = (now.st_ino, now.st_size, now.st_mtime_ns)
                file.seek(self.offset)
                rest = b""
                while chunk := file.read(CHUNK):
                    whole, newline, rest = (rest + chunk).rpartition(b"\n")
                    self.offset += len(whole + newline)
                    self.before = (self.before + whole[-GUARD:] + newline)[-GUARD:]
                    yield from whole.split(b"\n") if newline else ()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(Problem(f"cannot be read: {error.strerror}", str(self.path))) from None


def parsed(line: bytes) -> Record | None:
    """The record of a whole line; None where a crash made it none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
