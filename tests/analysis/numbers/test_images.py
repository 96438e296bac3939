"""Single images: the tables against slow second implementations, and what must not influence them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from analysis.numbers import images
from tune_ssl.records.predictions import PARTS, Pool

CLASSES = 4


def pools(seeds=3, count=60, seed=0, labeled=0.2, classes=CLASSES):
    """What `seeds` networks say of `count` train images and as many unlabeled ones."""
    draw = np.random.default_rng(seed)
    given = draw.integers(0, classes, count)
    found = []
    for _ in range(seeds):
        kept = np.flatnonzero(draw.random(count) >= labeled)
        part = np.concatenate([np.zeros(len(kept), np.int64), np.full(count, 2)])
        row = np.concatenate([kept, np.arange(count)])
        own = np.concatenate([given[kept], np.full(count, -1)])
        shares = draw.dirichlet(np.full(classes, 0.7), len(row))
        predicted = shares.argmax(axis=1)
        label_share = np.where(own >= 0, shares[np.arange(len(row)), np.maximum(own, 0)], 0)
        held = (part == 0) & (draw.random(len(row)) < 0.3)
        found.append(Pool(part, row, held, own, predicted, shares.max(axis=1), label_share))
    return found


def scrambled(pool, seed=0):
    order = np.random.default_rng(seed).permutation(len(pool))
    columns = ("part", "row", "validation", "given", "predicted", "confidence", "given_probability")
    return replace(pool, **{name: getattr(pool, name)[order] for name in columns})


def each(pool):
    for i in range(len(pool)):
        yield (PARTS[pool.part[i]], int(pool.row[i])), i


def slow_confused(found):
    seeds, wrong, pair = Counter(), defaultdict(list), Counter()
    for pool in found:
        for image, i in each(pool):
            if not pool.validation[i]:
                continue
            seeds[image] += 1
            given, predicted = int(pool.given[i]), int(pool.predicted[i])
            if given != predicted:
                wrong[image, given, predicted].append(pool.confidence[i])
                pair[given, predicted] += 1
    rows = [
        (-pair[g, p], g, p, -sum(sure) / seeds[image], image, seeds[image], len(sure))
        for (image, g, p), sure in wrong.items()
    ]
    return sorted(rows, key=lambda row: (*row[:4], PARTS.index(row[4][0]), row[4][1]))


@pytest.mark.parametrize("seed", range(4))
def test_confused_counts_the_wrong_predictions_of_validation_images(seed):
    found = pools(seed=seed)
    table = images.confused(found)
    expected = slow_confused(found)
    assert len(table) == len(expected) > 5
    for row, (pair, given, predicted, score, image, seeds, votes) in zip(
        table.to_dict("records"), expected, strict=True
    ):
        assert (row["part"], row["row"]) == image
        assert (row["pair_count"], row["given"], row["predicted"]) == (-pair, given, predicted)
        assert (row["seeds"], row["votes"]) == (seeds, votes)
        assert row["score"] == pytest.approx(-score)


def slow_suspects(found):
    margins, others, sure, labels = defaultdict(list), defaultdict(Counter), Counter(), {}
    firsts = defaultdict(list)
    for pool in found:
        for image, i in each(pool):
            given, predicted = int(pool.given[i]), int(pool.predicted[i])
            confidence = pool.confidence[i]
            if given < 0:
                continue
            labels[image] = given
            firsts[image].append(confidence if predicted == given else pool.given_probability[i])
            if predicted == given:
                margins[image].append(confidence - min(confidence, 1 - confidence))
            else:
                margins[image].append(pool.given_probability[i] - confidence)
                others[image][predicted] += 1
                sure[image, predicted] += confidence
    rows, by = [], {}
    for image, own in margins.items():
        margin, score = sum(own) / len(own), sum(firsts[image]) / len(own)
        if len(own) >= 2 and margin < 0:
            other = min(others[image], key=lambda k: (-others[image][k], -sure[image, k], k))
            if others[image][other] <= len(own) / 2:  # they do not agree on another class
                continue
            rows.append((score, -others[image][other], image, labels[image], other, len(own)))
            by[image] = (round(score, 9), round(margin, 9), PARTS.index(image[0]), image[1])
    return sorted(rows, key=lambda row: by[row[2]])


@pytest.mark.parametrize("seed", range(4))
def test_suspects_are_ranked_by_the_mean_probability_of_the_given_label(seed):
    found = pools(seeds=4, seed=seed, labeled=0.5)
    table = images.suspects(found)
    expected = slow_suspects(found)
    assert len(table) == len(expected) > 5
    for row, (score, votes, image, given, other, seeds) in zip(
        table.to_dict("records"), expected, strict=True
    ):
        assert row["score"] == pytest.approx(score)
        assert (row["part"], row["row"], row["given"]) == (*image, given)
        assert (row["predicted"], row["votes"], row["seeds"]) == (other, -votes, seeds)
    assert (table["seeds"] >= 2).all() and table["score"].is_monotonic_increasing


def slow_label_next(found, classes):
    said = defaultdict(list)
    for pool in found:
        for image, i in each(pool):
            if not pool.validation[i]:
                said[image].append((int(pool.predicted[i]), float(pool.confidence[i])))
    rows = []
    for image, votes in said.items():
        if len(votes) < len(found):
            continue
        mean = [0.0] * classes
        for predicted, sure in votes:
            for k in range(classes):
                share = sure if k == predicted else (1 - sure) / (classes - 1)
                mean[k] += share / len(votes)
        tally = Counter(predicted for predicted, _ in votes)
        unsure = -sum(p * math.log(p) for p in mean if p > 0) / math.log(classes)
        disagree = 0.0
        if len(votes) > 1:
            shares = [v / len(votes) for v in tally.values()]
            disagree = -sum(s * math.log(s) for s in shares) / math.log(min(len(votes), classes))
        likeliest = max(range(classes), key=lambda k: (round(mean[k], 12), -k))
        rows.append((image, likeliest, tally[likeliest], (unsure + disagree) / 2))
    rows.sort(key=lambda row: (-round(row[3], 12), PARTS.index(row[0][0]), row[0][1]))
    turns = Counter()
    turned = []
    for row in rows:
        turned.append((turns[row[1]], row))
        turns[row[1]] += 1
    turned.sort(key=lambda item: item[0])  # stable: within a turn by score
    return [row for _, row in turned]


@pytest.mark.parametrize("seeds, seed", [(1, 0), (2, 1), (3, 2), (6, 3)])
def test_label_next_is_ranked_by_two_entropies_each_class_in_turn(seeds, seed):
    found = pools(seeds=seeds, seed=seed)
    table = images.label_next(found, CLASSES)
    expected = slow_label_next(found, CLASSES)
    assert len(table) == len(expected) > 60
    assert table["score"].between(0, 1).all()
    by_image = {(row["part"], row["row"]): row for row in table.to_dict("records")}
    for image, likeliest, votes, score in expected:
        row = by_image[image]
        assert (row["predicted"], row["votes"], row["seeds"]) == (likeliest, votes, seeds)
        assert row["score"] == pytest.approx(score)
    assert [(r["part"], r["row"]) for r in table.to_dict("records")] == [r[0] for r in expected]
    first = table.head(CLASSES)["predicted"]
    assert first.nunique() == CLASSES


def test_hidden_labels_play_no_part_in_what_is_to_be_labeled_next():
    found = pools()
    table = images.label_next(found, CLASSES)
    draw = np.random.default_rng(9)
    others = [
        replace(
            pool,
            given=np.where(pool.validation, pool.given, draw.integers(-1, CLASSES, len(pool))),
            given_probability=draw.random(len(pool)),
        )
        for pool in found
    ]
    assert images.label_next(others, CLASSES).equals(table)
    assert "given" not in table


def test_images_with_a_label_for_any_seed_are_not_to_be_labeled_next():
    found = pools(labeled=0.4)
    table = images.label_next(found, CLASSES)
    mine = {row for part, row in zip(table["part"], table["row"], strict=True) if part == "train"}
    for pool in found:
        spoken = set(pool.row[(pool.part == 0) & ~pool.validation].tolist())
        assert mine <= spoken
    assert mine and len(table) < 120


def test_a_planted_label_error_is_the_first_suspect():
    draw = np.random.default_rng(1)
    count, truth = 200, np.arange(200) % CLASSES
    given = truth.copy()
    given[77] = (truth[77] + 1) % CLASSES
    found = []
    for _ in range(3):
        shares = draw.dirichlet(np.ones(CLASSES), count) * 0.1
        shares[np.arange(count), truth] += 0.9
        hard = draw.random(count) < 0.1  # images that a network is unsure of
        shares[hard] = draw.dirichlet(np.ones(CLASSES), hard.sum())
        shares[77] = [0.97 if k == truth[77] else 0.01 for k in range(CLASSES)]
        own = shares[np.arange(count), given]
        none = np.zeros(count, np.int64)
        held = none.astype(bool)
        rows = np.arange(count)
        found.append(Pool(none, rows, held, given, shares.argmax(axis=1), shares.max(axis=1), own))
    first = images.suspects(found).iloc[0]
    assert (first["part"], first["row"]) == ("train", 77)
    assert (first["given"], first["predicted"]) == (given[77], truth[77])
    assert (first["votes"], first["seeds"]) == (3, 3) and first["score"] == pytest.approx(0.01)


def test_the_order_of_the_lines_changes_nothing():
    found = pools()
    other = [scrambled(pool, i) for i, pool in enumerate(found)]
    assert images.confused(other).equals(images.confused(found))
    assert images.suspects(other).equals(images.suspects(found))
    assert images.label_next(other, CLASSES).equals(images.label_next(found, CLASSES))


def test_the_order_of_the_seeds_changes_no_rank():
    found = pools(seeds=4)
    for table in (images.confused, images.suspects, lambda p: images.label_next(p, CLASSES)):
        a, b = table(found), table(found[::-1])
        assert a.drop(columns="score").equals(b.drop(columns="score"))
        assert a["score"].to_numpy() == pytest.approx(b["score"].to_numpy())


def test_a_large_table_is_made_in_parts(monkeypatch):
    found = pools()
    whole = images.label_next(found, CLASSES)
    monkeypatch.setattr(images, "CHUNK", 10)
    assert images.label_next(found, CLASSES).equals(whole)


def test_without_images_the_tables_are_empty():
    empty = pools(count=0)
    assert len(images.confused(empty)) == len(images.suspects(empty)) == 0
    assert len(images.label_next(empty, CLASSES)) == 0
    assert images.confused([]).columns.tolist() == images.CONFUSED
    assert images.suspects([]).columns.tolist() == images.SUSPECTS
    assert images.label_next([], CLASSES).columns.tolist() == images.LABEL_NEXT
