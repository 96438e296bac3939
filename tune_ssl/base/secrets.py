"""Secrets in URLs: hidden in whatever is written or printed, and given back by the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from tune_ssl.base.errors import Problem, UserError

STARS = "***"
STORAGE, OPTUNA_STORAGE = "TUNE_SSL_STORAGE", "TUNE_SSL_OPTUNA_STORAGE"
# Whose values are never shown, wherever they turn up.
VARIABLES = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY", "PGPASSWORD"),
    "RAY_AUTH_TOKEN",
)
SHORTEST = (
    6  # characters of a known secret that is looked for outside of URLs: fewer are in any text
)

# A password may have any character that its user forgot to quote; digits before a slash are a port.
_PASSWORD = re.compile(r"(?<=://)([^\s:/@?#]*):(?!\d{1,5}(?:[/?#\s]|$))([^\s]*)@")
# That of a database or a bucket needs none: there the digits are the password's.
_DATABASE = r"(?<![\w+.-])((?:postgres|mysql|mariadb|s3)[\w+.-]*://[^\s:/@?#]*):"
_DATABASE_PASSWORD = re.compile(rf"{_DATABASE}([^\s]*)@")
_WHOLE_DATABASE_PASSWORD = re.compile(rf"{_DATABASE}(.*)@", re.DOTALL)
_WHOLE_PASSWORD = re.compile(r"(?<=://)([^:/@?#]*):(?!\d{1,5}(?:[/?#]|$))(.*)@", re.DOTALL)
_SECRET = r"(?:password|passwd|passphrase|pwd|secret|token|credentials?|api_?key|access_?key|account_?key)"
_VALUE = r"('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^&\s;,'\"]+)"
_DSN = re.compile(rf"(?i)([\w.-]{{0,60}}{_SECRET}(?:[-_]?id)?\s*=\s*){_VALUE}")
_QUERY = re.compile(
    r"(?i)([?&;](?:[\w.-]{0,60}[-_.])?(?:key|sig|signature|sas|pass|auth|code)=)([^&\s'\"]+)"
)
_remembered: set[str] = set()


def redact(text: str) -> str:
    """`text` with *** for each password in a URL, each value of a key that names a secret, and each
    secret that is known.

    >>> redact("postgresql://me:pw@host/db?sslmode=require&sslpassword=x")
    'postgresql://me:***@host/db?sslmode=require&sslpassword=***'
    """
    for secret in _known():
        text = text.replace(secret, STARS)
    if "://" in text:
        for pattern in (_PASSWORD, _DATABASE_PASSWORD):
            text = pattern.sub(rf"\1:{STARS}@", text)
        text = _QUERY.sub(rf"\1{STARS}", text)
    return _DSN.sub(rf"\1{STARS}", text) if "=" in text else text


def redact_value(value: str) -> str:
    """`redact` of one argument or setting, whose password may have spaces too."""
    for pattern in (_WHOLE_PASSWORD, _WHOLE_DATABASE_PASSWORD):
        value = pattern.sub(rf"\1:{STARS}@", value)
    return redact(value)


def redacted(value: Any) -> Any:
    """Nested plain values with every URL in them redacted."""
    if isinstance(value, str):
        return redact_value(value) if "://" in value else value
    if isinstance(value, Mapping):
        return {key: redacted(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(item) for item in value]
    return value


def remember(url: str) -> None:
    """Hide this URL's password from now on also where it stands alone, as in a server's message."""
    found = [*_WHOLE_PASSWORD.findall(url), *_WHOLE_DATABASE_PASSWORD.findall(url)]
    for _, password in found:
        _remembered.update({password, unquote(password), quote(unquote(password), safe="")})


def effective(value: str, variable: str, key: str = "", where: str = "") -> str:
    """The URL that a setting means: the environment's `variable` wins over what study.yaml kept.

    UserError where the setting has *** for a secret and the variable is not set.
    """
    url = os.environ.get(variable) or value
    remember(url)
    if STARS in url:
        text = (
            f"is {redact_value(url)}, and study.yaml keeps no secrets: give the whole URL in the"
            f" environment variable {variable}"
        )
        raise UserError(Problem(text, key, where))
    return url


def credentials(url: str) -> tuple[str, str | None, str | None]:
    """(the URL without them, user, password); both unquoted, None where there is no password."""
    parts = urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    user, colon, password = userinfo.partition(":")
    if not (at and colon):
        return url, None, None
    return parts._replace(netloc=host).geturl(), unquote(user), unquote(password)


class Redacting:
    """A text stream that redacts what is written to it; in all else it is the stream beneath."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _known() -> list[str]:
    """Longest first, so that no part of one is left."""
    found = {*_remembered, *(os.environ.get(name, "") for name in VARIABLES)}
    return sorted((s for s in found if len(s) >= SHORTEST), key=len, reverse=True)
