"""Where a trial runs, and the settings of torch that it asks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.helpers import small_spec
from tune_ssl.base.errors import UserError
from tune_ssl.training.device import pick_device
from tune_ssl.training.loop import train


def settings() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark


def test_a_kind_of_device_on_which_nothing_trains_is_refused_in_one_line() -> None:
    says = "compute.device is 'mps', but must be auto, cpu, cuda or cuda:0"
    for ask in (pick_device, lambda name: small_spec(**{"compute.device": name})):
        with pytest.raises(UserError) as caught:
            ask("mps")
        assert str(caught.value) == says


@pytest.mark.parametrize("tf32, benchmark", [(False, False), (True, False), (False, True)])
def test_torchs_settings_are_the_trials_own_while_it_trains_and_as_before_after_it(
    tf32: bool, benchmark: bool
) -> None:
    before = settings()
    asked = {"compute.tf32": tf32, "compute.cudnn_benchmark": benchmark}
    reports = train(small_spec(**asked, **{"budget.steps": 2, "budget.eval_every": 1}))
    next(reports)
    assert settings() == (tf32, tf32, benchmark)
    reports.close()
    assert settings() == before


@pytest.mark.slow
def test_a_compiled_network_trains_alike_under_the_same_names() -> None:
    plain, compiled = (
        list(train(small_spec(**{"compute.compile": compile, "budget.steps": 3})))[-1]
        for compile in (False, True)
    )
    ours, theirs = (r.trained.network.state_dict() for r in (plain, compiled))
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4)
    assert compiled.snapshot is not None
    assert list(compiled.snapshot()["stepper"]["network"]) == list(ours)


STUDY = """
fixed:
  data: {dataset: digits, num_labels: 20}
  method: {name: supervised}
  compute: {compile: true, device: cpu}
search: {optim.lr: {log_uniform: [1e-3, 1e-2]}}
"""


@pytest.mark.slow
def test_without_a_compiler_check_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    away = {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "tune_ssl.cli.main", "check", "study.yaml"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **away}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if "compute.compile" in line]
    assert (
        "compute.compile is true, but torch.compile fails on this machine: No working C++" in line
    )
