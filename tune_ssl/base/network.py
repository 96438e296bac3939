"""Network addresses: does anything answer there, and which kind is refused?"""

from __future__ import annotations

import socket

from tune_ssl.base.errors import Problem, UserError, first_line


def probe(address: str, seconds: float) -> str | None:
    """None where something takes a connection at HOST:PORT within `seconds`, else why not."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except (OSError, UnicodeError) as error:  # a name that no name can be
        return first_line(error)
    return None


def refuse_ray_client(address: str, key: str) -> None:
    """UserError for ray://HOST:PORT: a search must outlive the connection of whoever started it."""
    if address.startswith("ray://"):
        text = (
            f"is {address!r}, but Ray Client is not supported: start the command as a job of the "
            "cluster, tune-ssl submit --address http://HEAD:8265"
        )
        raise UserError(Problem(text, key))
