"""The README's table of methods is what its command makes of a run."""

from __future__ import annotations

import pandas as pd

from benchmarks import league


def test_the_readmes_table_has_each_methods_means_gains_and_corrected_p(tmp_path):
    row = {"condition": "c", "labels": 20, "low": 0.7, "high": 0.9, "n": 10, "missing": 0}
    results = pd.DataFrame(
        [
            row | {"method": "supervised", "mean": 0.75},
            row | {"method": "fixmatch", "mean": 0.8123},
            row | {"method": "label_spreading", "mean": 0.7, "n": 8, "missing": 2},
        ]
    )
    gain = {"labels": 20, "low": 0.01, "high": 0.1}
    differences = pd.DataFrame(
        [
            gain | {"method": "fixmatch", "mean": 0.0623, "p_holm": 0.0312},
            gain | {"method": "label_spreading", "mean": -0.05, "p_holm": 0.2},
        ]
    )
    _, _, *rows = league.table(results, differences).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]
    assert [row[0].split("`")[1] for row in cells] == ["fixmatch", "supervised", "label_spreading"]
    paper = "[2001.07685](https://arxiv.org/abs/2001.07685)"
    assert cells[0][1:] == [
        *("`supervised`, `consistency`", paper, "81.2 [70.0, 90.0]"),
        "**+6.2** [+1.0, +10.0], p = 0.031",
    ]
    assert cells[1][4] == "" and cells[2][1] == "fitted at once"
    assert cells[2][3] == "70.0 [70.0, 90.0] (8 seeds)"
    assert cells[2][4] == "-5.0 [+1.0, +10.0], p = 0.2"
