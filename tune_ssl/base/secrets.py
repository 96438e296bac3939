"""Secrets: refused in a URL, for which the environment serves, and *** in whatever is written or printed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import TextIO

from tune_ssl.base.errors import Problem, UserError

STARS = "***"
STORAGE = "TUNE_SSL_STORAGE"
# Whose values are never shown, wherever they turn up.
VARIABLES = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY", "PGPASSWORD"),
    "RAY_AUTH_TOKEN",
)
SHORTEST = 6  # characters of a secret that is looked for: fewer are in any text

_PATTERNS = (
    re.compile(r"(?<=://)([^\s:/@]*:)\S+(?=@)"),  # a password may have what should be quoted
    re.compile(
        r"(?i)([?&;][\w.-]*(?:pass\w*|pwd|secret|token|key|sig|signature|credentials?)=)[^&\s'\"]+"
    ),
)


def redact(text: str) -> str:
    """`text` with *** for each secret of the environment, and each one in a URL.

    >>> redact("postgresql://me:pw@host/db?sslmode=require&sslpassword=x")
    'postgresql://me:***@host/db?sslmode=require&sslpassword=***'
    """
    for secret in _known():
        text = text.replace(secret, STARS)
    if "://" in text:
        for pattern in _PATTERNS:
            text = pattern.sub(rf"\1{STARS}", text)
    return text


def has_secret(text: str) -> bool:
    """Whether there is something to redact, or something that was."""
    in_url = "://" in text and any(pattern.search(text) for pattern in _PATTERNS)
    return in_url or any(secret in text for secret in _known())


def refuse_secret(url: str, key: str, where: str = "") -> None:
    """UserError for a URL with a password: Ray and the run folder would keep it."""
    if has_secret(url):
        text = (
            f"is '{redact(url)}', but must have no password or key: give it by the environment "
            f"(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3), and the URL without it here or in {STORAGE}"
        )
        raise UserError(Problem(text, key, where))


class Redacting:
    """A text stream that redacts what is written to it; in all else it is the stream beneath."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


def _known() -> list[str]:
    """Longest first, so that no part of one is left."""
    found = {os.environ.get(name, "") for name in VARIABLES}
    return sorted((s for s in found if len(s) >= SHORTEST), key=len, reverse=True)
