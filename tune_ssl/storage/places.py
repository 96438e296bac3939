"""Where runs are kept: a local folder, or a place that a URL names.

All of it goes through pyarrow.fs: its own file systems (s3, gs, abfs, hdfs, file) and those of fsspec.
A URL with a password is refused: Ray keeps what it gets.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlsplit

from tune_ssl.base.errors import Problem, Stopped, UserError, first_line, nearest, shown
from tune_ssl.base.retry import until_it_works
from tune_ssl.base.secrets import STORAGE, redact, refuse_secret

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

KEY = "study.storage"
ARROW = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")
NOT_SHARED = ("memory", "mock")  # every process has its own
OBJECT_STORES = ("s3", "gcs", "abfs")  # a file appears there whole, when it is closed
ANSWER = 45.0  # seconds in which a storage must answer before a run is started
WAIT = 60.0  # seconds that a worker waits for a checkpoint of a storage that is away
CONNECT, REQUEST, TRIES = 5.0, 30.0, 3  # seconds, seconds, attempts of one call to S3
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """A folder of a file system. `url` has no password; of a local folder it is the path."""

    url: str
    filesystem: FileSystem
    path: str

    def at(self, *names: str) -> Place:
        """The place of that name below this one."""
        below = "/".join([self.path.rstrip("/"), *names])
        if not is_url(self.url):
            return Place(below, self.filesystem, below)
        parts = urlsplit(self.url)
        path = "/".join([parts.path.rstrip("/"), *names])
        return Place(parts._replace(path=path).geturl(), self.filesystem, below)

    def read(self, name: str) -> bytes:
        """A file's content; FileNotFoundError, or OSError where the storage does not answer."""
        with as_oserror():
            return read_file(self.filesystem, f"{self.path}/{name}")

    def write(self, name: str, chunks: Iterator[bytes]) -> None:
        """Write a file, which is there whole or not at all. OSError."""
        target = f"{self.path}/{name}"
        whole = self.filesystem.type_name in OBJECT_STORES
        path = target if whole else f"{target}.{uuid.uuid4().hex[:8]}.part"
        if not whole:
            with as_oserror():
                self.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        with as_oserror():
            try:
                with self.filesystem.open_output_stream(path) as stream:
                    for chunk in chunks:
                        stream.write(chunk)
            except Exception:  # to leave the block has made a file of what came so far
                with contextlib.suppress(Exception):
                    self.filesystem.delete_file(path)
                raise
            if not whole:
                self.filesystem.move(path, target)

    def delete(self, name: str) -> None:
        """OSError."""
        with as_oserror():
            self.filesystem.delete_file(f"{self.path}/{name}")

    def files(self, *below: str, recursive: bool = False) -> list[tuple[str, FileInfo]]:
        """(name relative to this place, its FileInfo) of each file and folder there. OSError."""
        from pyarrow.fs import FileSelector

        folder = "/".join([self.path.rstrip("/"), *below])
        selector = FileSelector(folder, allow_not_found=True, recursive=recursive)
        start = len(self.path.strip("/")) + 1
        with as_oserror():
            found = self.filesystem.get_file_info(selector)
        return [(info.path.lstrip("/")[start:], info) for info in found]


@contextlib.contextmanager
def as_oserror() -> Iterator[None]:
    """What clients of fsspec raise of their own becomes an OSError, as every caller expects."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """One line of an error, without a client's trace of how it came about."""
    return redact(first_line(error)).partition("; Details:")[0]


class Home(NamedTuple):
    """Where runs are: their folders in `runs`, their copies at `place` if it is not None; `text` is the setting."""

    runs: Path
    place: Place | None
    text: str | None


def is_url(text: str) -> bool:
    return bool(_URL.match(text))


def home_of(setting: str | None, runs: Path, where: str = "") -> Home:
    """The home of runs by `study.storage`, or by TUNE_SSL_STORAGE, which wins; None: the folder `runs`.

    UserError where a URL cannot be read, or the storage takes or gives back no file.
    """
    text = os.environ.get(STORAGE) or setting
    if not text:
        return Home(runs, None, None)
    if not is_url(text):
        return Home(Path(text).expanduser(), None, text)
    place = place_of(text, where)
    check_usable(place, where)
    return Home(runs, place, text)


def folder_of(text: str) -> Place:
    """The place of a path or a URL. UserError as `place_of`."""
    if is_url(text):
        return place_of(text)
    from pyarrow.fs import LocalFileSystem

    path = str(Path(text).absolute())
    return Place(path, LocalFileSystem(), path)


def place_of(url: str, where: str = "") -> Place:
    """The place that a URL names. UserError, in a bounded time; that it can be used is not sure yet."""
    refuse_secret(url, KEY, where)
    scheme = urlsplit(url).scheme
    if ".." in urlsplit(url).path.split("/"):
        raise _problem(url, "but must have no '..' in its path", where)
    try:
        filesystem, path = _in_time(lambda: _resolved(scheme, url))
    except ImportError as error:
        raise _problem(url, f"which needs a package: {reason(error)}", where) from None
    except NotImplementedError as error:
        raise _problem(url, reason(error), where) from None
    except ValueError as error:  # pyarrow's ArrowInvalid is one
        raise _problem(url, f"which cannot be read: {reason(error)}", where) from None
    except Exception as error:
        raise _problem(url, f"which cannot be used: {reason(error)}", where) from None
    if not path.strip("/"):
        raise _problem(url, "but must have a path", where)
    return Place(url.rstrip("/"), filesystem, path.rstrip("/"))


def check_usable(place: Place, where: str = "") -> None:
    """Write, read and delete a small file. UserError where that fails or takes too long."""
    name = f".tune-ssl-{uuid.uuid4().hex}"

    def ask() -> None:
        place.write(name, iter([b"tune-ssl"]))
        if place.read(name) != b"tune-ssl":
            raise OSError("it gives back another file than was written")
        place.delete(name)

    try:
        _in_time(ask)
    except Exception as error:
        raise _problem(place.url, f"which cannot be used: {reason(error)}", where) from None


def read_checkpoint(path: str) -> bytes:
    """A checkpoint's file by its path or URL. FileNotFoundError; a storage that is away is waited for."""
    if not is_url(path):
        return Path(path).read_bytes()

    def once() -> bytes:
        folder, _, name = urlsplit(path).path.rpartition("/")
        place = place_of(urlsplit(path)._replace(path=folder).geturl())
        return place.read(name)

    return _with_retries(once)


def read_file(filesystem: FileSystem, path: str) -> bytes:
    """FileNotFoundError, OSError."""
    with filesystem.open_input_file(path) as file:
        return bytes(file.read())


def read_with_retries(filesystem: FileSystem, path: str) -> bytes:
    """`read_file`; a storage that is away is waited for."""
    if filesystem.type_name == "local":
        return read_file(filesystem, path)
    return _with_retries(lambda: read_file(filesystem, path))


def _with_retries(once: Callable[[], bytes]) -> bytes:
    def there() -> bytes | None:
        try:
            return once()
        except FileNotFoundError:
            return None

    try:
        found = until_it_works(there, (OSError, UserError), "a checkpoint", lambda _: None, WAIT)
    except Stopped as error:
        raise OSError(str(error)) from error
    if found is None:
        raise FileNotFoundError("the checkpoint is gone")
    return found


@cache
def _resolved(scheme: str, url: str) -> tuple[FileSystem, str]:
    if scheme in ARROW:
        return _of_arrow(scheme, url)
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    known = sorted({*ARROW, *fsspec.available_protocols()} - {*NOT_SHARED})
    if scheme not in known:
        shared = ", ".join(ARROW)
        text = f"whose scheme is unknown{nearest(scheme, known)} (known: {shared}, and those of fsspec)"
        raise NotImplementedError(text)
    filesystem, path = fsspec.core.url_to_fs(url)
    return PyFileSystem(FSSpecHandler(filesystem)), path


def _of_arrow(scheme: str, url: str) -> tuple[FileSystem, str]:
    """S3 with timeouts of ours: its client's own ones are not part of a URL."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, FileSystem, S3FileSystem

    asked = dict(parse_qsl(urlsplit(url).query))
    if (
        scheme in ("gs", "gcs") and "retry_limit_seconds" not in asked
    ):  # else it tries for a quarter of an hour
        url += f"{'&' if asked else '?'}retry_limit_seconds={REQUEST:.0f}"
    filesystem, path = FileSystem.from_uri(url)
    if scheme == "s3" and asked.keys() <= {"region", "scheme", "endpoint_override"}:
        asked["region"] = filesystem.region
        strategy = AwsStandardS3RetryStrategy(max_attempts=TRIES)
        limits = {"connect_timeout": CONNECT, "request_timeout": REQUEST}
        filesystem = S3FileSystem(**asked, **limits, retry_strategy=strategy)
    return filesystem, path


def _in_time(do: Callable[[], T]) -> T:
    """What `do()` returns; TimeoutError after ANSWER seconds, in which its thread is left behind."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(do())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(ANSWER)
    if failed:
        raise failed[0]
    if not done:
        raise TimeoutError(f"no answer within {ANSWER:.0f} s")
    return done[0]


def _problem(url: str, text: str, where: str) -> UserError:
    return UserError(Problem(f"is {shown(url)}, {text}", KEY, where))
