"""The Ray that runs the trials: a local one for the time of a command, or a cluster that is there."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

import ray


@contextlib.contextmanager
def cluster(verbose: bool) -> Iterator[None]:
    """A local Ray for the time of the block, unless this process is connected to one already."""
    quiet_environment()
    ours = not ray.is_initialized()
    if ours:
        level = logging.INFO if verbose else logging.ERROR
        ray.init(include_dashboard=False, log_to_driver=verbose, logging_level=level)
    if not verbose:
        for noisy in ("ray", "ray.tune", "optuna"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        yield
    finally:
        if ours:
            with undisturbed():
                ray.shutdown()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A second Ctrl-C while Ray shuts down would only hide what the first one said."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def quiet_environment() -> None:
    """Settings that Ray and its workers read from the environment; the user's own ones stay.

    Its own progress output and result files are off (the run folder has them), trials keep their
    working directory, and waiting threads sleep: several trials share the cores.
    """
    for name, value in {
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }.items():
        os.environ.setdefault(name, value)
