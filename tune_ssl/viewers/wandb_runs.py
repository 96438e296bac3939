"""`study.loggers: [wandb]`: each trial is a run of W&B's, with an id that is the same after a resume."""

from __future__ import annotations

import netrc
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tune_ssl.records import log
from tune_ssl.records.log import Record
from tune_ssl.viewers.follow import NOTHING, Followed
from tune_ssl.viewers.tensorboard import final_value, hyperparameters, scalars

HOST = "https://api.wandb.ai"
ENDED = "ended.txt"  # a line for each trial that W&B has to its end, with the time of that
QUIET = {  # W&B looks at neither the machine, the code nor the terminal
    **{"console": "off", "silent": True, "disable_git": True, "disable_code": True},
    **{"x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True},
    "x_save_requirements": False,
}


class Tool:
    """One group for the run, and in it one W&B run for each trial.

    Offline, a trial that goes on is written anew from the records, and what it had before is deleted: two folders of
    one trial would be two curves over each other.
    """

    def __init__(
        self,
        followed: Followed,
        project: str = "tune-ssl",
        entity: str | None = None,
        group: str | None = None,
        mode: str | None = None,
        folder: str | None = None,
    ) -> None:
        import wandb

        self.wandb: Any = wandb
        self.followed = followed
        self.mode = (
            mode or os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
        )
        self.home = Path(folder) if folder else followed.folder
        self.about = {"project": project, "entity": entity, "group": group or followed.folder.name}
        self.runs: dict[str, Any] = {}
        self.home.mkdir(parents=True, exist_ok=True)
        self.notes = self.home / "wandb" / f"{followed.id}-{ENDED}"
        self.ended = set(self.notes.read_text().splitlines()) if self.notes.exists() else set()

    def has(self, trial: str, ending: Record) -> bool:
        return f"{trial} {ending['time']!r}" in self.ended

    def open(self, trial: str, start: Record) -> float:
        name = f"{self.followed.id}-{trial}"
        offline = self.mode == "offline"
        before = list((self.home / "wandb").glob(f"offline-run-*-{name}")) if offline else []
        run = self.wandb.init(
            **self.about,
            id=name,
            name=trial,
            job_type=start["phase"],
            tags=[start["phase"], start["digest"]] if start["digest"] else [start["phase"]],
            config={
                **hyperparameters(start),
                **{"run": self.followed.folder.name, "digest": start["digest"]},
            },
            dir=str(self.home),
            mode=self.mode,
            resume="allow",
            reinit="create_new",
            settings=self.wandb.Settings(**_known(self.wandb.Settings, QUIET)),
        )
        self.runs[trial] = run
        for old in before:
            if Path(run.dir).parent != old.absolute():
                shutil.rmtree(old, ignore_errors=True)
        return NOTHING if offline else run.starting_step - 1.0

    def report(self, trial: str, report: Record) -> None:
        self.runs[trial].log(scalars(report["metrics"]), step=int(report["step"]))

    def close(self, trial: str, ending: Record | None) -> None:
        run = self.runs.pop(trial)
        if ending is None:
            run.finish(exit_code=1)
            return
        run.summary["status"] = ending["event"]
        if ending.get("reason"):
            run.summary["reason"] = str(ending["reason"])
        for key, value in final_value(ending, self.followed.metric).items():
            run.summary[key] = value
        run.finish(exit_code=0 if ending["event"] in (log.FINISHED, log.STOPPED) else 1)
        self.notes.parent.mkdir(exist_ok=True)
        with open(self.notes, "a", encoding="utf-8") as notes:
            notes.write(f"{trial} {ending['time']!r}\n")

    def finish(self) -> None:
        self.wandb.teardown()


def _logged_in() -> bool:
    """Whether W&B knows a key: from the environment, or from `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or HOST).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _known(settings: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """Those that this version of W&B has."""
    return {key: value for key, value in wanted.items() if key in settings.model_fields}
