"""One S3 server for all of these tests; each gets it empty but for the bucket `runs`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.s3 import S3
from tune_ssl.storage import places


@pytest.fixture(scope="session")
def one_server() -> Iterator[S3]:
    server = S3()
    yield server
    server.close()


@pytest.fixture
def server(one_server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """Its clients try once only, so that no test waits for a server that is away."""
    monkeypatch.setattr(places, "TRIES", 1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-real-secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    places._resolved.cache_clear()
    one_server.empty()
    yield one_server
    one_server.start()
    places._resolved.cache_clear()
