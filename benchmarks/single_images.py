"""Single images: how many planted label errors the report finds, and what the images it says to label next are worth.

    python -m benchmarks.single_images FOLDER WEIGHTS WORK           # FOLDER has train/<class>/ and test/<class>/
    python -m benchmarks.single_images FOLDER WEIGHTS WORK errors    # or next: one half of it
    python -m benchmarks.single_images FOLDER WEIGHTS WORK errors 1  # another draw of the swapped labels

The encoder is EfficientNet-Lite0 with the weights of a file, frozen. WORK is a folder for what is written.

Label errors: SWAPPED of the training labels become another class, in a table of labels; `tune-ssl compare` runs on
it, and its label_suspects.csv is read. Precision: the share of the first N that were swapped; recall: the share of the
swapped ones that are among them.

To label next: FIRST images have a label, the others none. Five seeds are trained, each on four fifths of the labels
(the others validate), and MORE images get their true label: the first of `label_next`, or as many drawn by chance. Then
five seeds are trained again. The split is set by hand: a new table of labels would be another store, whose features
were computed anew. No config is searched; those of the methods' defaults are used.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

SIDE = 64  # pixels that the encoder sees
SWAPPED, FIRST, MORE = 0.03, 100, 20
SEEDS, REPEATS, DRAWS = 5, 6, 2  # networks; first sets of labels; random choices for each of these
METHODS = ("logistic_regression", "label_spreading")
BUDGETS = (500, 2500)  # labels a seed is trained on where errors are looked for
ENCODER = "timm:tf_efficientnet_lite0"

Ints = NDArray[np.int64]


def table_with_errors(folder: Path, out: Path, seed: int) -> set[str]:
    """Write a table of labels of which some are wrong; returns the paths of those."""
    draw = np.random.default_rng(seed)
    classes = sorted(path.name for path in (folder / "train").iterdir())
    rows = [
        (str(path.relative_to(folder)), name, part)
        for part in ("train", "test")
        for name in classes
        for path in sorted((folder / part / name).iterdir())
    ]
    train = [i for i, row in enumerate(rows) if row[2] == "train"]
    swapped = set(draw.permutation(train)[: round(SWAPPED * len(train))].tolist())
    with open(out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "part"])
        for i, (path, name, part) in enumerate(rows):
            others = [other for other in classes if other != name]
            writer.writerow([path, str(draw.choice(others)) if i in swapped else name, part])
    return {rows[i][0] for i in swapped}


def label_errors(folder: Path, weights: Path, work: Path, seed: int) -> None:
    wrong = table_with_errors(folder, work / "labels.csv", seed)
    began = time.monotonic()
    subprocess.run(
        [
            *(sys.executable, "-m", "tune_ssl.cli.main", "compare", *METHODS),
            *("data.dataset=folder", f"data.root={folder}", f"data.labels={work / 'labels.csv'}"),
            *(f"model.encoder={ENCODER}", f"model.weights={weights}", "model.freeze=all"),
            *(f"data.image_size={SIDE}", f"conditions={{data.num_labels: {list(BUDGETS)}}}"),
            *(f"study.seeds={list(range(SEEDS))}", "study.num_trials=6"),
            *("--name", "errors", "--runs", str(work / "runs")),
        ],
        check=True,
    )
    print(
        f"compared in {time.monotonic() - began:.0f} s; {len(wrong)} labels are wrong", flush=True
    )
    suspects = work / "runs" / "errors" / "report" / "tables" / "label_suspects.csv"
    with open(suspects, newline="") as file:
        rows = list(csv.DictReader(file))
    for condition in dict.fromkeys(row["condition"] for row in rows):
        for method in METHODS:
            own = [r for r in rows if (r["condition"], r["method"]) == (condition, method)]
            found = np.array([row["file"] in wrong for row in own])
            for most in (25, 50, 100, 150, len(wrong)):
                right = int(found[:most].sum())
                print(
                    f"{condition:22} {method:20} first {most:4}: precision {right / most:6.1%}, "
                    f"recall {right / len(wrong):6.1%}",
                    flush=True,
                )


# ---- to label next --------------------------------------------------------------------------------


class ByHand:
    """Trains a method on labels of chosen rows of one store."""

    def __init__(self, folder: Path, weights: Path) -> None:
        from tune_ssl.base.spec import DataSpec
        from tune_ssl.data.store import prepare

        self.data = {"dataset": "folder", "root": str(folder), "image_size": SIDE}
        self.model = {"encoder": ENCODER, "weights": str(weights), "freeze": "all"}
        self.store = prepare(DataSpec(**self.data))

    def split(self, labels: Ints, seed: int) -> Any:
        """A fifth of the labels of each class validates."""
        from tune_ssl.data.splits import Split

        draw = np.random.default_rng(seed)
        order = draw.permutation(labels)
        of = self.store.train.labels[order]
        turn = np.array([int((of[:i] == of[i]).sum()) for i in range(len(of))])
        held = order[turn % 5 == 4]
        size = len(self.store.train.labels)
        others = np.setdiff1d(np.arange(size), held)
        return Split(np.setdiff1d(labels, held), others, np.sort(held), "train", size)

    def train(self, method: str, labels: Ints, look: bool = False) -> tuple[float, list[Any]]:
        """The mean test accuracy over the seeds, and if asked what each network says of single images."""
        from tune_ssl.study.trial import build_trial
        from tune_ssl.training import loop
        from tune_ssl.tuning.single_images import pool_of
        from tune_ssl.tuning.test_data import measure_test

        values, pools = [], list[Any]()

        def kept(trained: Any) -> Any:
            if look:
                pools.append(pool_of(trained))
                return pools[-1]
            raise RuntimeError("not asked for")  # noted, and costs the result nothing

        for seed in range(SEEDS):
            spec = build_trial(
                {"data": self.data, "model": self.model, "method": {"name": method}, "seed": seed}
            )
            split = self.split(labels, seed)
            with (
                mock.patch("tune_ssl.data.loading.split_of", lambda *_, own=split, **__: own),
                mock.patch("tune_ssl.tuning.test_data.pool_of", kept),
            ):
                trained = [*loop.train(spec, store=self.store)][-1].trained
                measured = measure_test(trained)
            values.append(measured["result"]["test/mean_class_accuracy"])
        return float(np.mean(values)), pools


def label_next(folder: Path, weights: Path) -> None:
    from analysis.numbers import images

    hand = ByHand(folder, weights)
    labels_N = hand.store.train.labels
    classes = len(hand.store.class_names)
    gains: dict[str, list[Sequence[float]]] = {method: [] for method in METHODS}
    for repeat in range(REPEATS):
        draw = np.random.default_rng(repeat)
        first = np.sort(
            np.concatenate(
                [
                    draw.permutation(np.flatnonzero(labels_N == k))[: FIRST // classes]
                    for k in range(classes)
                ]
            )
        )
        others = np.setdiff1d(np.arange(len(labels_N)), first)
        chance = [draw.permutation(others)[:MORE] for _ in range(DRAWS)]
        for method in METHODS:
            before, pools = hand.train(method, first, look=True)
            table = images.label_next(pools, classes)
            assert not np.isin(table["row"], first).any()
            picked = table["row"].to_numpy()[:MORE]
            chosen, _ = hand.train(method, np.union1d(first, picked))
            random = np.mean([hand.train(method, np.union1d(first, rows))[0] for rows in chance])
            gains[method].append((before, chosen, float(random)))
            print(
                f"repeat {repeat}, {method}: {before:.1%}; with {MORE} of label_next {chosen:.1%}, "
                f"by chance {random:.1%}",
                flush=True,
            )
    for method, found in gains.items():
        before, chosen, random = np.mean(found, axis=0)
        paired = np.array([c - r for _, c, r in found])
        error = paired.std(ddof=1) / np.sqrt(len(paired))
        print(
            f"{method}: {FIRST} labels {before:.1%}; {MORE} of label_next {chosen - before:+.2%}, by chance "
            f"{random - before:+.2%}; difference {paired.mean():+.2%} (standard error {error:.2%}, "
            f"{(paired > 0).sum()} of {len(paired)} better)"
        )


def main(folder: str, weights: str, work: str, only: str | None = None, seed: str = "0") -> None:
    place = Path(work).absolute()
    place.mkdir(parents=True, exist_ok=True)
    os.environ["TUNE_SSL_CACHE"] = str(place / "cache")
    if only in (None, "errors"):
        label_errors(Path(folder).absolute(), Path(weights).absolute(), place, int(seed))
    if only in (None, "next"):
        label_next(Path(folder).absolute(), Path(weights).absolute())


if __name__ == "__main__":
    main(*sys.argv[1:])
