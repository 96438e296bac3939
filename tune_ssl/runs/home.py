"""Where a new run will be, and where one that goes on is: the setting, the environment, the copies."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.records import log
from tune_ssl.runs.lock import driver_lock
from tune_ssl.storage.fetch import update_from_copy
from tune_ssl.storage.mirror import Mirror, mirrored, refuse_driven
from tune_ssl.storage.places import Home, Place, home_of, is_url, place_of
from tune_ssl.study.study import Study, check_name

Tell = Callable[[str], None]


def place_new(study: Study, name: str, runs: Path) -> tuple[Study, Home]:
    """The study with the storage that it really has, and where that is. UserError for a name taken there."""
    found = home_of(study.settings.storage, runs, study.file.where(("study", "storage")))
    if found.place and exists(found.place.at(name)):
        text = "exists already; `--resume` goes on with it, another --name starts afresh"
        raise UserError(Problem(text, found.place.at(name).url))
    return _stored(study, found.text), found


def find_home(name: str, runs: Path) -> Home:
    """Where a run that goes on is kept, as far as that is known without it; fetched if it is not here."""
    found = home_of(None, runs)
    run = found.runs / name
    if found.place and not os.path.lexists(run) and not Path(name, log.STUDY).exists():
        check_name(name)
        refuse_driven(found.place.at(name))
        update_from_copy(found.place.at(name), run)
    return found


def rejoin(study: Study, found: Home) -> tuple[Study, Place | None]:
    """The study and the place of its copy, which its own setting names where nothing else does."""
    own = study.settings.storage
    if found.text is None and own and is_url(own):
        found = home_of(own, found.runs)
    return _stored(study, found.text), found.place


@contextlib.contextmanager
def driving(run: Path, place: Place | None, tell: Tell) -> Iterator[Mirror | None]:
    """Be the one driver of a run folder and of its copy; first it gets what the copy has more."""

    def up_to_date(copy: Place) -> None:
        if exists(copy) and update_from_copy(copy, run):
            tell(f"{run.name}: its copy {copy.url} had more, which is taken")

    with driver_lock(run), mirrored(run, place, tell, up_to_date) as mirror:
        yield mirror


def exists(copy: Place) -> bool:
    """Whether a run's copy is there. UserError where the storage does not answer."""
    try:
        copy.read(log.STUDY)
    except FileNotFoundError:
        return False
    except OSError as error:
        line = str(error).partition("; Details:")[0]
        raise UserError(Problem(f"cannot be read: {line}", copy.url)) from None
    return True


def _stored(study: Study, text: str | None) -> Study:
    return replace(study, settings=study.settings.model_copy(update={"storage": text}))


def fetch_run(url: str, runs: Path) -> Path:
    """Copy the run at URL/NAME to `runs`/NAME, or bring that folder up to date; returns it. UserError.

    The run may go on elsewhere meanwhile: what is taken is what it was at one moment.
    """
    from tune_ssl.runs.lock import driver_lock

    place = place_of(url)
    name = place.path.rpartition("/")[2]
    check_name(name)
    run = runs / name
    if os.path.lexists(run):
        with driver_lock(run):
            update_from_copy(place, run, report=True)
    else:
        update_from_copy(place, run, report=True)
    return run
