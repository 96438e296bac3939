"""A tool for `viewers.follow` that does what $BAD_LOGGER says: it raises, hangs, dies, or is slow."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from tune_ssl.viewers.follow import NOTHING, Followed


class Tool:
    def __init__(self, followed: Followed) -> None:
        self.how = os.environ["BAD_LOGGER"]
        self.path = Path(followed.folder) / "bad.txt"

    def has(self, trial: str, ending: Any) -> bool:
        return False

    def open(self, trial: str, start: Any) -> float:
        return NOTHING

    def report(self, trial: str, report: Any) -> None:
        print("a tool may print what it likes")
        if self.how == "raises":
            raise RuntimeError("no room at postgresql://me:secret1@host/db\nand more")
        if self.how == "hangs":
            time.sleep(3600)
        if self.how == "dies":
            os._exit(3)
        time.sleep(0.002)
        with open(self.path, "a") as file:
            file.write(f"{trial} {report['step']}\n")

    def close(self, trial: str, ending: Any) -> None:
        pass

    def finish(self) -> None:
        pass
