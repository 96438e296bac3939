"""The docs keep up: each logged key has its sentence, each YAML its measured header."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.helpers import small_spec
from tune_ssl.methods import method_names
from tune_ssl.training.loop import train

ROOT = Path(__file__).parents[1]
STUDIES = sorted((ROOT / "search_spaces").glob("**/*.yaml"))


@pytest.mark.parametrize("name", method_names())
def test_every_logged_key_has_a_sentence_in_the_docs(name):
    documented = set(re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/metrics.md").read_text(), re.M))
    for key in list(train(small_spec(name)))[-1].metrics:
        prefix, _, rest = key.rpartition("/")
        known = {key, rest if prefix == "val" else key, f"{prefix}/<term>"}
        assert known & documented, f"{key} is not in docs/metrics.md"


@pytest.mark.parametrize("name", method_names())
def test_every_method_is_described_and_has_a_study(name):
    assert f"## `{name}`" in (ROOT / "docs/methods.md").read_text()
    assert (ROOT / "search_spaces" / f"{name}.yaml").exists()


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_a_study_opens_with_its_command_its_time_and_its_number(path):
    header = "".join(line for line in path.read_text().splitlines(True) if line.startswith("#"))
    assert f"tune-ssl search {path.relative_to(ROOT)}" in header
    assert re.search(r"Expect: .*(min|s) on .*;", header), "measured time and machine"
    assert re.search(r"\d\d\.\d %|not measured", header), "measured result"


def test_the_example_of_the_analysis_docs_runs_on_two_runs(tmp_path, monkeypatch, capsys):
    from tests.analysis.conftest import write_run

    for name in ("fixmatch", "supervised"):
        write_run(tmp_path / "runs" / name, method=name, labels=(50,), shift=0.1 * (name[0] == "f"))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/analysis.md").read_text(), re.S)
    exec(code, {})
    out = capsys.readouterr().out
    assert "fixmatch - supervised: +10.0 [+10.0, +10.0]" in out
    assert "supervised: 83.0 [" in out and ", 5 seeds" in out
