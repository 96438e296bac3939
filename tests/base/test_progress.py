"""Bars on a terminal, and what stands in their place where there is none."""

from __future__ import annotations

import io
import sys

from rich.console import Console

from tune_ssl.base import progress as module
from tune_ssl.base.progress import StepBar, progress


def terminal():
    return Console(force_terminal=True, width=120, file=io.StringIO())


def test_a_step_bar_shows_stage_steps_and_what_was_said_on_a_terminal():
    console = terminal()
    with StepBar(console, 40) as bar:
        assert StepBar.shown is None  # nothing has happened yet
        for step in range(1, 31):
            bar.step("finetune", step)
        bar.say("loss/total 0.5")
        bar.bar.refresh()
        assert StepBar.shown is bar
    assert StepBar.shown is None
    shown = console.file.getvalue()
    assert "finetune" in shown and "30/40" in shown and "loss/total 0.5" in shown


def test_a_step_bar_is_silent_where_there_is_no_terminal():
    console = Console(file=io.StringIO())
    with StepBar(console, 40) as bar:
        bar.step("finetune", 3)
        bar.say("loss/total 0.5")
    assert console.file.getvalue() == ""


def test_work_within_a_training_is_said_beside_its_bar(monkeypatch, capsys):
    monkeypatch.setattr(module, "AFTER", 0.0)
    console, said = terminal(), []
    with StepBar(console, 40) as bar:
        bar.step("train", 1)
        monkeypatch.setattr(bar, "say", said.append)
        assert list(progress([1, 2], "features of train", 2)) == [1, 2]
    assert said == ["features of train: 1 of 2", "features of train: 2 of 2", ""]
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(module, "AFTER", 0.0)
    monkeypatch.setattr(module, "EVERY", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert list(progress([1, 2], "reading train", 2)) == [1, 2]
    assert capsys.readouterr().err.splitlines()[-1] == "reading train: 2 of 2, about 0 s left"
