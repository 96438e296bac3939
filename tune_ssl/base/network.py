"""The one question to a network address: does anything answer there?"""

from __future__ import annotations

import socket

from tune_ssl.base.errors import first_line


def probe(address: str, seconds: float) -> str | None:
    """None where something takes a connection at HOST:PORT within `seconds`, else why not."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except (OSError, UnicodeError) as error:  # a name that no name can be
        return first_line(error)
    return None
