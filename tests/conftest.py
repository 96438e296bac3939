"""What every test shares: a data cache of its own, and one thread."""

from __future__ import annotations

import os
import tempfile

import pytest

CACHE = os.environ.setdefault("TUNE_SSL_CACHE", tempfile.mkdtemp(prefix="tune-ssl-test-cache-"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
