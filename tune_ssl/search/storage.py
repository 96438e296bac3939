"""Where a run's Optuna studies are: the journal in its folder, an sqlite file, or a PostgreSQL server.

`study.optuna_storage` says which; the environment's TUNE_SSL_OPTUNA_STORAGE wins over it. A relative sqlite
path is relative to the run folder. In a database the studies' names begin with the run's name and id.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, make_url

from tune_ssl.base.errors import Problem, UserError, nearest
from tune_ssl.base.secrets import OPTUNA_STORAGE, effective
from tune_ssl.base.spec import StudySpec
from tune_ssl.base.yaml_file import read_yaml
from tune_ssl.records import log
from tune_ssl.search.journal import open_journal, set_aside
from tune_ssl.search.readonly import ReadingStorage, as_text, reading_database, reading_journal
from tune_ssl.search.retrying import PatientStorage, reason

KEY = "study.optuna_storage"
JOURNAL = "journal"
FORMS = "journal, sqlite:///FILE or postgresql://USER@HOST/DATABASE"
DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "postgresql+psycopg2": "postgresql+psycopg2",
}
UNSAFE = re.compile(r"[^ -~]")
LONGEST_NAME = 400  # characters; Optuna's column has 512
# Seconds. A server that is gone is noticed, and a lock of another's is not waited for in one call.
POSTGRES = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
BUSY = 2.0  # seconds that sqlite itself waits for another process's lock

Tell = Callable[[str], None]


def location(settings: StudySpec, run: Path, where: str = "") -> URL | None:
    """The database's URL, with its driver and an absolute path; None: the journal. UserError."""
    return _location(settings.optuna_storage, run, where)


def check_storage(settings: StudySpec, run: Path, where: str = "") -> None:
    """UserError unless the storage can be used by a run in that folder, which may not exist yet.

    Writes nothing, and is over after seconds: a server is asked with a timeout.
    """
    url = location(settings, run, where)
    if url is None:
        return
    sqlite = url.get_backend_name() == "sqlite"
    problem = _check_file(Path(url.database or ""), run) if sqlite else _check_server(url)
    if problem:
        raise _unusable(problem, where)


def open_storage(run: Path, settings: StudySpec | None = None, tell: Tell = print) -> BaseStorage:
    """The storage of a run's studies, whose every call waits a while for what is away (PatientStorage).

    Only for the driver that holds the run's lock. UserError if it cannot be used; Stopped if it does
    not answer.
    """
    url = _location(settings.optuna_storage if settings else recorded_storage(run), run, "")
    if url is None:
        return PatientStorage(lambda: open_journal(run / log.JOURNAL, tell), tell)
    if url.get_backend_name() == "sqlite":
        _mend(Path(url.database or ""), run, tell)
    try:
        return PatientStorage(lambda: _database(url), tell, url.password)
    except RuntimeError as error:  # tables of another Optuna version
        raise _unusable(str(error).strip().split("\n")[0], "") from None


def open_reading(run: Path) -> BaseStorage:
    """The run's studies alone, in a storage that raises PermissionError on every change. UserError."""
    url = _location(recorded_storage(run), run, "")
    journal = run / log.JOURNAL
    if url is None and not journal.exists():
        raise UserError(Problem(f"has no Optuna studies: there is no {log.JOURNAL}", str(run)))
    try:
        inner = reading_journal(journal) if url is None else reading_database(url)
        return ReadingStorage(inner, study_prefix(run))
    except (OSError, exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        text = f"has no Optuna studies: {reason(error, url.password if url else None)}"
    except Exception as error:
        text = f"has Optuna studies that cannot be read: {type(error).__name__}"
    raise UserError(Problem(text, str(run)))


def recorded_storage(run: Path) -> str:
    """What study.yaml says of `study.optuna_storage`."""
    described = read_yaml(run / log.STUDY).data.get("study")
    settings = described.get("study") if isinstance(described, dict) else None
    return str((settings or {}).get("optuna_storage", JOURNAL))


def study_prefix(run: Path, settings: StudySpec | None = None) -> str:
    """What the names of the run's studies begin with: nothing in a journal, which is the run's alone.

    Many runs share a database: there it is the run's name and the id that study.yaml keeps.
    """
    url = _location(settings.optuna_storage if settings else recorded_storage(run), run, "")
    if url is None:
        return ""
    described = read_yaml(run / log.STUDY).data
    name, created = (str(described.get(key)) for key in ("name", "created"))
    identity = described.get("id") or hashlib.sha256(f"{name} {created}".encode()).hexdigest()[:12]
    return f"{UNSAFE.sub('?', name)[:80]}-{identity} "


def study_name(prefix: str, name: str) -> str:
    """The name of a condition's study. In a database, one that is too long or has a character that it
    may not take is cut and ends in a digest."""
    if not prefix:
        return name
    plain = UNSAFE.sub("?", name)
    if len(plain) > LONGEST_NAME or plain != name:
        plain = f"{plain[:LONGEST_NAME]} {hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return prefix + plain


def _location(setting: str, run: Path, where: str) -> URL | None:
    text = effective(setting, OPTUNA_STORAGE, KEY, where)
    if text == JOURNAL:
        return None
    scheme = text.partition(":")[0]
    if "://" not in text or scheme not in DRIVERS:
        hint = nearest(scheme, (JOURNAL, *DRIVERS))
        shown = f"'{scheme}://...'" if "://" in text else "neither a URL nor 'journal'"
        raise _unusable(f"is {shown}, but must be {FORMS}{hint}", where)
    try:
        url = make_url(text).set(drivername=DRIVERS[scheme])
        url.get_dialect().import_dbapi()
    except ImportError:
        package = DRIVERS[scheme].partition("+")[2]
        extra = "tune-ssl[postgres]" if package == "psycopg" else package
        text = f"needs the package {package}, which is not installed; pip install '{extra}'"
        raise _unusable(text, where) from None
    except (exc.ArgumentError, ValueError):
        raise _unusable(f"is a URL that cannot be read; it must be {FORMS}", where) from None
    if url.get_backend_name() != "sqlite":
        return url
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        text = "is sqlite without a file, which keeps nothing: give sqlite:///FILE"
        raise _unusable(text, where)
    return url.set(database=os.path.abspath(run / url.database))


def _unusable(text: str, where: str) -> UserError:
    key, where = (OPTUNA_STORAGE, "") if os.environ.get(OPTUNA_STORAGE) else (KEY, where)
    return UserError(Problem(text, key, where))


def _check_file(path: Path, run: Path) -> str:
    """What is wrong with an sqlite file, or nothing."""
    if path.parent == Path(os.path.abspath(run)):
        return ""  # made with the run folder, and made anew where it is damaged
    if not path.parent.is_dir():
        return f"is {path}, but there is no folder {path.parent}"
    if not path.exists():
        return "" if os.access(path.parent, os.W_OK) else f"is {path}, which cannot be written"
    if not os.access(path, os.W_OK):
        return f"is {path}, which cannot be written"
    return _malformed(path)


def _malformed(path: Path) -> str:
    """Why an existing file is no sqlite database, or nothing."""
    import sqlite3

    try:
        with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError:  # locked: that is waited for
        return ""
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found == "ok":
        return ""
    return f"is {path}, which is no sound sqlite database: {' '.join(found.split())}"


def _mend(path: Path, run: Path, tell: Tell) -> None:
    """A damaged sqlite file in the run folder is moved aside; the records know what was in it."""
    if path.parent == Path(os.path.abspath(run)) and path.exists() and (why := _malformed(path)):
        kept = set_aside(path)
        for left in ("-journal", "-wal", "-shm"):
            path.with_name(path.name + left).unlink(missing_ok=True)
        tell(f"the Optuna storage {why}; it is kept as {kept.name}")


def _check_server(url: URL) -> str:
    """What is wrong with a PostgreSQL server, or nothing."""
    engine = sqlalchemy.create_engine(
        url, connect_args=_timeouts(url), poolclass=sqlalchemy.NullPool
    )
    question = (
        "SELECT to_regclass('studies') IS NOT NULL OR "
        "has_schema_privilege(current_schema(), 'CREATE'), pg_is_in_recovery(), current_user"
    )
    try:
        with engine.connect() as connection:
            may, standby, user = connection.execute(sqlalchemy.text(question)).one()
    except exc.SQLAlchemyError as error:
        return f"cannot be used: {reason(error, url.password)}"
    if standby:
        return "cannot be used: the server is a standby, which takes no changes"
    if not may:
        return f"cannot be used: {user} may not create tables there (GRANT CREATE ON SCHEMA)"
    return ""


def _timeouts(url: URL) -> dict[str, Any]:
    return {key: value for key, value in POSTGRES.items() if key not in url.query}


def _database(url: URL) -> BaseStorage:
    sqlite = url.get_backend_name() == "sqlite"
    arguments = {"timeout": BUSY} if sqlite else _timeouts(url)
    storage = RDBStorage(
        as_text(url), engine_kwargs={"connect_args": arguments, "pool_pre_ping": not sqlite}
    )
    if not sqlite:

        @event.listens_for(storage.engine, "connect")
        def bounded(connection: Any, record: Any) -> None:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '5s'")
            connection.commit()

        storage.engine.dispose()  # the connection that made the tables
    return optuna.storages.get_storage(storage)  # with Optuna's cache
