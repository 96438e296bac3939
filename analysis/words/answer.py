"""The answer of a comparison in words: which method helps at each label budget, by how much, and what to do next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from analysis.numbers.helps import Contender, Question, questions
from analysis.numbers.stats import Interval
from analysis.numbers.tables import Tables
from analysis.read.load import Runs, load_runs
from analysis.read.values import only_budgets
from analysis.words.display import ends, p_value, share
from analysis.words.next_steps import Step, next_steps

LAST_WORDS = ("In short: ", "To learn ")  # how the sentence about all conditions begins


def answer(run: Path, tables: Callable[[Runs], Tables]) -> list[str]:
    """Sentences for the end of the command: the answer, the winner's export, and what to run next.

    `tables` makes those of the report.
    """
    runs = load_runs([run])
    made = tables(runs)
    found = questions(runs, made["differences"])
    lines = [*answer_lines(runs, found)]
    return [*lines, *_next(run, found, next_steps(runs, made))] if found else lines


def answer_lines(runs: Runs, found: list[Question]) -> Iterator[str]:
    """A sentence for each condition, and one for all."""
    if not found:
        yield "no test value: nothing can be answered yet"
        return
    guess, budgets = _guess(runs), _are_budgets(found)
    for question in found:
        yield _sentence(question, place(question, budgets), guess)
    helped = [place(q, budgets) for q in found if any(c.helps for c in q.contenders)]
    if not any(q.contenders and q.floor for q in found):
        yield "to learn whether unlabeled images help, compare a method that uses them with one that does not"
    elif not helped:
        yield "in short: no method that uses the unlabeled images is seen to help here"
    elif len(helped) == len(found):
        where = "at every label budget tried" if budgets else "in every condition tried"
        yield f"in short: a method that uses the unlabeled images helps {where}"
    else:
        yield f"in short: a method that uses the unlabeled images helps {' and '.join(helped)}, and not elsewhere"


def _are_budgets(found: list[Question]) -> bool:
    """Whether the numbers of labels tell the conditions apart, and nothing else does."""
    names, counts = zip(*(question.condition for question in found), strict=True)
    return len(set(counts)) == len(counts) and only_budgets(names)


def place(question: Question, budgets: bool) -> str:
    name, labels = question.condition
    return f"with {labels:,.0f} labels" if labels and budgets else f"under {name}"


def _guess(runs: Runs) -> Callable[[Interval], str]:
    """What to add to a score that guessing would reach."""
    study = runs.studies[0]

    def said(score: Interval) -> str:
        if not study.is_chance(score.mean, score.low):
            return ""
        return f" (chance level for {study.num_classes} classes)"

    return said


def _sentence(question: Question, where: str, guess: Callable[[Interval], str]) -> str:
    where = where[0].upper() + where[1:]
    reached = _percent(question.floor_score) + guess(question.floor_score)
    floor = f"{question.floor} reaches {reached}" if question.floor else ""
    if not question.contenders:
        return f"{where}: {floor}."
    if not floor:
        best = question.contenders[0]
        return f"{where}: {best.label} reaches {_percent(best.score)}{guess(best.score)}."
    helpful = [one for one in question.contenders if one.helps]
    if helpful:
        each = "; ".join(f"{one.label} helps: {_gain(one)}" for one in helpful)
        return f"{where}: {floor} without unlabeled images; {each}."
    best = question.contenders[0]
    verdict = (
        "which decides nothing" if best.gain.holds(0) or best.gain.mean > 0 else "which is worse"
    )
    return (
        f"{where}: {floor} without unlabeled images; of those that use them {best.label} is best, {_gain(best)}, "
        f"{verdict}."
    )


def _next(run: Path, found: list[Question], steps: list[Step]) -> Iterator[str]:
    """Commands that can be copied."""
    cells = dict.fromkeys(str(name) for name, _ in (q.condition for q in found))
    where = [] if run.parent == Path("runs") else ["--runs", str(run.parent)]
    for cell in cells:
        chosen = [] if len(cells) == 1 else ["--condition", cell]
        out = f"{run.name}-model" + (f"-{cell.rpartition('=')[2]}" if len(cells) > 1 else "")
        words = shlex.join(["tune-ssl", "export", run.name, *where, *chosen, "-o", out])
        yield f"export the winner of {cell} (by its validation images): {words}"
    for step in steps:
        yield f"{step.reason}: {step.command}"


def _gain(one: Contender) -> str:
    gain = one.gain
    if math.isnan(gain.mean):
        return f"{_percent(one.score)}, with no seed in common"
    both = "" if math.isnan(gain.low) else f" {ends(gain.low, gain.high, '+')}"
    of = f", of {one.family} such comparisons" if one.family > 1 else ""
    return f"{100 * gain.mean:+.1f} points{both}, {gain.n} paired seeds (Holm p {p_value(one.p_holm, '= ')}{of})"


def _percent(score: Interval) -> str:
    return share(score.mean, score.low, score.high)
