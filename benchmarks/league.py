"""The table of methods in the README, from one comparison of them all.

tune-ssl compare search_spaces/league.yaml --name league
python -m benchmarks.league runs/league                     # prints the table
python -m benchmarks.league runs/league --write README.md   # puts it between the two marks there
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from analysis.numbers.comparisons import difference_table
from analysis.numbers.tables import results_table
from analysis.read.load import load_runs
from analysis.read.values import NONE
from analysis.words.display import p_value
from tune_ssl.methods import find_method
from tune_ssl.records.decisions import ALPHA

BEGIN, END = "<!-- league: made by python -m benchmarks.league -->", "<!-- end of league -->"
ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")


def table(results: pd.DataFrame, differences: pd.DataFrame) -> str:
    """Markdown: a row for each method, the best mean over the label budgets first; a gain that is decided is bold."""
    budgets = sorted(results["labels"].unique())
    heads = [f"{labels} labels | gain over `supervised`" for labels in budgets]
    lines = [f"| method | loss terms | source | {' | '.join(heads)} |"]
    lines.append(f"|{'---|' * (3 + 2 * len(budgets))}")
    ranked = results.groupby("method")["mean"].mean().sort_values(ascending=False)
    for method in ranked.index:
        cells = [f"[`{method}`](search_spaces/{method}.yaml)", terms(method), source(method)]
        for labels in budgets:
            cells += cells_of(results, differences, method, labels)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cells_of(
    results: pd.DataFrame, differences: pd.DataFrame, method: str, labels: int
) -> Iterator[str]:
    """The accuracy in %, and the gain in points; one that is decided is bold."""
    own = results[(results["method"] == method) & (results["labels"] == labels)]
    if own.empty:  # no trial of its search finished
        yield from (NONE, NONE)
        return
    mean, low, high = (100 * own.iloc[0][["mean", "low", "high"]]).tolist()
    seeds = f" ({own.iloc[0]['n']} seeds)" if own.iloc[0]["missing"] else ""
    yield f"{mean:.1f} [{low:.1f}, {high:.1f}]{seeds}"
    found = differences[(differences["method"] == method) & (differences["labels"] == labels)]
    if found.empty:  # the reference itself
        yield ""
        return
    gain = found.iloc[0]
    points = f"{100 * gain['mean']:+.1f}"
    points = f"**{points}**" if gain["p_holm"] < ALPHA else points
    ends = f"[{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
    yield f"{points} {ends}, p {p_value(gain['p_holm'], '= ')}"


def terms(method: str) -> str:
    losses = find_method(method).losses
    return ", ".join(f"`{term}`" for term in losses) if losses else "fitted at once"


def source(method: str) -> str:
    """The paper that the method's file names first, else its paragraph in the docs."""
    text = importlib.import_module(find_method(method).__module__).__doc__ or ""
    paper = ARXIV.search(text)
    if paper:
        return f"[{paper[1]}](https://arxiv.org/abs/{paper[1]})"
    return f"[docs](docs/methods.md#{method})"


def main(run: str, *rest: str) -> None:
    runs = load_runs([run])
    text = table(results_table(runs), difference_table(runs))
    if rest[:1] != ("--write",):
        print(text)
        return
    page = Path(rest[1])
    before, _, others = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = others.partition(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
