"""A run's Optuna studies to look at: the storage refuses every change, and the database once more."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial
from sqlalchemy.engine import URL

from tune_ssl.search.journal import Journal

NO_STUDY = "the run has no such study"
REFUSAL = "tune-ssl shows a run's studies and lets nobody change them"


def _read(name: str) -> Any:
    """A method that asks the inner storage about a study: one of the run's, or there is none of that id."""

    def method(self: ReadingStorage, study_id: int, *arguments: Any, **named: Any) -> Any:
        if study_id not in {study._study_id for study in self.get_all_studies()}:
            raise KeyError(NO_STUDY)
        return getattr(self.inner, name)(study_id, *arguments, **named)

    return method


def _refuse(self: ReadingStorage, *arguments: Any, **named: Any) -> Any:
    raise PermissionError(REFUSAL)


class ReadingStorage(BaseStorage):
    """The studies of `inner` whose names begin with `prefix`; PermissionError on every change."""

    def __init__(self, inner: BaseStorage, prefix: str = "") -> None:
        self.inner, self.prefix = inner, prefix

    def get_all_studies(self) -> list[FrozenStudy]:
        studies = self.inner.get_all_studies()
        return [study for study in studies if study.study_name.startswith(self.prefix)]

    create_new_study = create_new_trial = delete_study = _refuse
    set_study_user_attr = set_study_system_attr = _refuse
    set_trial_param = set_trial_state_values = set_trial_intermediate_value = _refuse
    set_trial_user_attr = set_trial_system_attr = _refuse
    get_study_name_from_id = _read("get_study_name_from_id")
    get_study_directions = _read("get_study_directions")
    get_study_user_attrs = _read("get_study_user_attrs")
    get_study_system_attrs = _read("get_study_system_attrs")
    get_all_trials = _read("get_all_trials")

    def get_study_id_from_name(self, study_name: str) -> int:
        if not study_name.startswith(self.prefix):
            raise KeyError(NO_STUDY)
        return self.inner.get_study_id_from_name(study_name)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        for study in self.get_all_studies():
            for trial in self.inner.get_all_trials(study._study_id, deepcopy=False):
                if trial._trial_id == trial_id:
                    return trial
        raise KeyError(f"the run has no trial of the id {trial_id}")

    def remove_session(self) -> None:
        self.inner.remove_session()


def reading_journal(path: Path) -> BaseStorage:
    """A journal that is read without a lock. FileNotFoundError if there is none: none is begun."""

    class Reading(Journal):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            raise PermissionError(REFUSAL)

    path.stat()
    return JournalStorage(Reading(path))


def reading_database(url: URL) -> BaseStorage:
    """A database that is opened for reading alone, with the tables that are there."""
    arguments: dict[str, Any] = {"options": "-c default_transaction_read_only=on"}
    if url.get_backend_name() == "sqlite":
        arguments = {}
        path = Path(url.database or "")
        path.stat()
        url = url.set(database=f"file:{quote(str(path))}").update_query_dict(
            {"mode": "ro", "uri": "true"}
        )
    storage = RDBStorage(
        as_text(url),
        engine_kwargs={"connect_args": arguments, "pool_pre_ping": True},
        skip_table_creation=True,
    )
    return optuna.storages.get_storage(storage)


def as_text(url: URL) -> str:
    """The whole URL with its password, as Optuna takes it: it fills {} in."""
    text = url.render_as_string(hide_password=False)
    return text.replace("{", "{{").replace("}", "}}")
