"""What configurations were chosen among, in sentences: how many finished, and which were known beforehand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pandas as pd

from analysis.read.load import Runs
from analysis.read.study import Study
from tune_ssl.records import log

FEW = 3  # finished candidates from which a choice is one


def given_sentences(runs: Runs, chosen: pd.DataFrame) -> Iterator[str]:
    """Of each run with given configs or draws that were left out: how many, and which of them won."""
    for study in runs.studies:
        trials = runs.trials[runs.trials["run"] == study.run]
        search = trials[trials["phase"] == log.SEARCH]
        sources = Counter(str(source) for source in search["given"].dropna())
        redrawn = int(search["redrawn"].sum())
        parts = [_given(sources, len(search))] if sources else []
        if redrawn:
            parts.append(
                f"{redrawn} draw{' was' if redrawn == 1 else 's were'} left out, as the values do not fit "
                "together or were tried already"
            )
        if sources:
            parts += _winners(study, search, chosen)
        if parts:
            yield f"{study.label}: {'; '.join(parts)}."


def few_candidates(runs: Runs, budget: pd.DataFrame) -> Iterator[str]:
    """The conditions of a search in which fewer than FEW trials could be chosen."""
    searched = {study.label for study in runs.studies if study.searched}
    few = budget[(budget["trials"] > 0) & (budget["candidates"] < FEW)]
    for row in few[few["method"].isin(searched)].to_dict("records"):
        yield (
            f"{row['method']}, {row['condition']}: {among(row['candidates'], row['trials'])}: a choice among so few "
            "says little about the method."
        )


def among(candidates: Any, begun: Any) -> str:
    """'3 finished search trials of 6 begun'"""
    return f"{candidates} finished search trial{'' if candidates == 1 else 's'} of {begun} begun"


def _given(sources: Counter[str], of: int) -> str:
    each = ", ".join(f"{count} {source}" for source, count in sources.most_common())
    total = sources.total()
    return (
        f"{total} of {of} search trials {'was' if total == 1 else 'were'} given beforehand ({each})"
    )


def _winners(study: Study, search: pd.DataFrame, chosen: pd.DataFrame) -> Iterator[str]:
    """Which configs won, by source: 'the defaults won in A', or none of the given ones."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in chosen[chosen["run"] == study.run].to_dict("records"):
        trial = search[(search["trial"] == row["trial"])]
        source = trial["given"].dropna()
        name = _named(str(source.iloc[0])) if len(source) else "a drawn config"
        verb = (
            "won" if row["locked"] else "leads" if name.startswith(("a ", "the config")) else "lead"
        )
        found.setdefault((name, verb), []).append(str(row["condition"]))
    for (name, verb), conditions in found.items():
        yield f"{name} {verb} {'' if verb == 'won' else 'so far '}in {', '.join(conditions)}"


def _named(source: str) -> str:
    return {"defaults": "the defaults", "start_from": "a config of start_from"}.get(
        source, source if source.startswith("the ") else f"the config of {source}"
    )
