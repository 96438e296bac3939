"""An Optuna storage that waits: each call is tried again for a while, and has its effect once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import exc

from tune_ssl.base.errors import Stopped
from tune_ssl.base.retry import until_it_works
from tune_ssl.base.secrets import STARS, redact
from tune_ssl.search.journal import Damaged, first_line

SILENT = "the Optuna storage does not answer"
# Of drivers that make the tables of one database at the same time, all but one come too late.
MAKING = (exc.ProgrammingError, exc.IntegrityError)
# What a call gets that goes on after the error that counts, as Optuna does where it reads trials.
# PostgreSQL: "current transaction is aborted"; SQLAlchemy: "Can't reconnect until ..."
FOLLOWING = (exc.InternalError, exc.PendingRollbackError)
PASSING = (exc.OperationalError, exc.InterfaceError, exc.TimeoutError, *FOLLOWING)


class Away(Exception):
    """An error that may pass."""


def _again(name: str) -> Any:
    """A method that may simply be called again: it reads, or it sets what it set before."""

    def method(self: PatientStorage, *arguments: Any, **named: Any) -> Any:
        return self._call(name, *arguments, **named)

    return method


class PatientStorage(BaseStorage):
    """`opened()` behind calls that wait for patience.LONGEST seconds, then raise Stopped for good.

    An error may have come after the change was made, and only its answer be lost. So before a call that
    may not have its effect twice is tried again, the storage is asked whether it is done: there is one
    driver, and nobody else makes or ends trials in its studies. `secret` never shows in a message.
    """

    def __init__(
        self,
        opened: Callable[[], BaseStorage],
        tell: Callable[[str], None],
        secret: str | None = None,
    ) -> None:
        self.tell, self.secret = tell, secret
        self.stopped: Stopped | None = None
        self.trials: dict[int, int] = {}  # study id -> how many there are
        self.inner = self._retry(opened, passing_too=MAKING)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        if study_id not in self.trials:
            self.trials[study_id] = len(self.get_all_trials(study_id, deepcopy=False))
        before = self.trials[study_id]

        def lost() -> int | None:
            trials = self.inner.get_all_trials(study_id, deepcopy=False)
            return int(trials[before]._trial_id) if len(trials) > before else None

        trial_id = int(self._call("create_new_trial", study_id, template_trial, done=lost))
        self.trials[study_id] = before + 1
        return trial_id

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        def done() -> bool | None:
            return True if self.inner.get_trial(trial_id).state == state else None

        name = "set_trial_state_values"
        return bool(self._call(name, trial_id, state, values, done=done))

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        def done() -> int | None:
            try:
                return int(self.inner.get_study_id_from_name(study_name or ""))
            except KeyError:
                return None

        return int(self._call("create_new_study", directions, study_name, done=done))

    def delete_study(self, study_id: int) -> None:
        def done() -> bool | None:
            known = [study._study_id for study in self.inner.get_all_studies()]
            return None if study_id in known else True

        self._call("delete_study", study_id, done=done)
        self.trials.pop(study_id, None)

    set_study_user_attr = _again("set_study_user_attr")
    set_study_system_attr = _again("set_study_system_attr")
    set_trial_param = _again("set_trial_param")
    set_trial_intermediate_value = _again("set_trial_intermediate_value")
    set_trial_user_attr = _again("set_trial_user_attr")
    set_trial_system_attr = _again("set_trial_system_attr")
    get_study_id_from_name = _again("get_study_id_from_name")
    get_study_name_from_id = _again("get_study_name_from_id")
    get_study_directions = _again("get_study_directions")
    get_study_user_attrs = _again("get_study_user_attrs")
    get_study_system_attrs = _again("get_study_system_attrs")
    get_all_studies = _again("get_all_studies")
    get_trial = _again("get_trial")
    get_all_trials = _again("get_all_trials")
    get_trial_id_from_study_id_trial_number = _again("get_trial_id_from_study_id_trial_number")
    remove_session = _again("remove_session")

    def _call(
        self, name: str, *arguments: Any, done: Callable[[], Any] | None = None, **named: Any
    ) -> Any:
        tried = False

        def once() -> Any:
            nonlocal tried
            if tried and done and (answer := done()) is not None:
                return answer
            tried = True
            return getattr(self.inner, name)(*arguments, **named)

        asks = name == "get_study_id_from_name"
        return self._retry(once, unknown=() if asks else KeyError)

    def _retry(self, do: Callable[[], Any], unknown: Any = (), passing_too: Any = ()) -> Any:
        if self.stopped:
            raise self.stopped

        def sorted_out() -> Any:
            try:
                return do()
            except DuplicatedStudyError:
                raise
            except Exception as error:
                if passing(error) or isinstance(_cause(error), passing_too):
                    raise Away(reason(error, self.secret)) from error
                if isinstance(error, unknown):  # a study or a trial that somebody deleted
                    raise Stopped("the Optuna storage has lost a study of this run") from error
                if isinstance(error, (Damaged, StorageInternalError, exc.SQLAlchemyError)):
                    text = f"the Optuna storage is not as it was: {reason(error, self.secret)}"
                    raise Stopped(text) from error
                raise

        try:
            return until_it_works(sorted_out, Away, SILENT, self.tell)
        except Stopped as error:
            self.stopped = error
            raise


def passing(error: Exception) -> bool:
    """Whether the same call may go well a little later."""
    error = _cause(error)
    lost = isinstance(error, exc.DBAPIError) and error.connection_invalidated
    return lost or isinstance(error, (OSError, *PASSING))


def reason(error: Exception, secret: str | None = None) -> str:
    """One line of what went wrong, without any SQL, URL or password."""
    error = _cause(error)
    if isinstance(error, exc.DBAPIError) and error.orig is not None:
        text = str(error.orig)
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = first_line(error)
    text = redact(text)
    for hidden in {secret, quote(secret, safe="")} if secret else ():
        text = text.replace(hidden, STARS)
    return (text.strip() or type(error).__name__).split("\n")[0]


def _cause(error: Exception) -> Exception:
    """What the database said first, under the words of Optuna and the errors that follow from it."""
    inner: BaseException | None = error
    if isinstance(error, StorageInternalError):
        inner = error.__cause__
    while isinstance(inner, FOLLOWING) and isinstance(inner.__context__, Exception):
        inner = next(_before(inner), None)
    return inner if isinstance(inner, Exception) else error


def _before(error: BaseException) -> Iterator[exc.DBAPIError]:
    """The database errors that were being handled when this one came."""
    while error.__context__ is not None:
        error = error.__context__
        if isinstance(error, exc.DBAPIError):
            yield error
