"""Files that are there whole or not at all, and the one question to a network address."""

import socket

import pytest

from tune_ssl.base.errors import first_line
from tune_ssl.base.files import write_atomically
from tune_ssl.base.network import probe


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, lambda file: file.write(b"first"))

    def fails(file):
        file.write(b"sec")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, fails)
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]
    write_atomically(path, lambda file: file.write(b"second"))
    assert path.read_bytes() == b"second" and list(tmp_path.iterdir()) == [path]


def test_an_error_is_told_in_its_first_line():
    assert first_line(FileNotFoundError(2, "No such file", "a")) == "No such file"
    assert first_line("\nthe first\nthe second") == "the first"
    assert first_line(ValueError("of one\nand more")) == "of one"
    assert first_line(TimeoutError()) == "TimeoutError"


def test_an_address_answers_or_says_why_not():
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        assert probe(where, 1.0) is None
    assert probe(where, 1.0) == "Connection refused"
    assert probe(f"{'a' * 70}.example:80", 1.0)  # longer than a part of a name can be
