"""One Ray for all commands that a module runs in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def ray_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ray, whose workers see the folder $FAULTS; that folder."""
    from tune_ssl.cluster.connect import cluster

    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAULTS", str(folder))
        with cluster(verbose=False):
            yield folder
