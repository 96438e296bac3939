"""A line of predictions.jsonl: what is packed comes back, and what is damaged is refused."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from tune_ssl.records import log
from tune_ssl.records.predictions import (
    Pool,
    from_record,
    pack,
    record_of_pool,
    record_of_test,
    unpack,
)


def a_pool(count=40, classes=5, seed=0):
    draw = np.random.default_rng(seed)
    numbers = {
        "part": draw.integers(0, 3, count),
        "row": draw.permutation(count),
        "given": draw.integers(-1, classes, count),
        "predicted": draw.integers(0, classes, count),
    }
    shares = {"confidence": draw.random(count), "given_probability": draw.random(count)}
    return Pool(**numbers, **shares, validation=draw.random(count) < 0.5, left_out=7)


def a_line(**more):
    true = np.arange(30) % 5
    line = {
        "schema": log.SCHEMA,
        "trial": "c0-confirm-s3",
        "condition": "c",
        "seed": 3,
        "test": record_of_test(true, true < 3),
        "pool": record_of_pool(a_pool()),
    }
    return json.loads(json.dumps({**line, **more}))


@pytest.mark.parametrize(
    "values, dtype",
    [
        ([], "<u1"),
        ([0, 255], "<u1"),
        ([0, 256], "<u2"),
        ([70_000], "<u4"),
        ([-1, 9], "<i2"),
        ([-1, 40_000], "<i4"),
    ],
)
def test_whole_numbers_are_packed_in_the_smallest_dtype_with_room(values, dtype):
    packed = pack(np.array(values, np.int64))
    assert (packed["dtype"], packed["count"]) == (dtype, len(values))
    assert unpack(packed).tolist() == values


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_truths_are_bits(count):
    truths = np.random.default_rng(count).random(count) < 0.3
    assert pack(truths)["dtype"] == "bits"
    assert unpack(pack(truths)).tolist() == truths.tolist()


def test_a_line_comes_back_with_probabilities_to_half_of_a_255th():
    pool, found = a_pool(), from_record(a_line())
    assert (found.trial, found.condition, found.seed, found.error) == ("c0-confirm-s3", "c", 3, "")
    assert found.test_true.tolist() == [*range(5)] * 6
    assert found.test_correct.dtype == np.bool_ and found.test_correct.sum() == 18
    for name in ("part", "row", "validation", "given", "predicted", "left_out"):
        assert np.array_equal(getattr(found.pool, name), getattr(pool, name)), name
    for name in ("confidence", "given_probability"):
        assert np.abs(getattr(found.pool, name) - getattr(pool, name)).max() <= 0.5 / 255 + 1e-12


def test_a_line_without_a_pool_says_why():
    found = from_record(a_line(pool=None, pool_error="RuntimeError: no memory"))
    assert found.pool is None and found.error == "RuntimeError: no memory"


def changed(path, value):
    line = a_line()
    at = line
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return line


SHORT = pack(np.zeros(3, np.int64))


@pytest.mark.parametrize(
    "path, value",
    [
        (("schema",), 9),
        (("trial",), None),
        (("seed",), "3"),
        (("condition",), 1),
        (("test",), []),
        (("test", "true"), SHORT),
        (("test", "true"), None),
        (("test", "true"), pack(np.full(30, -1))),
        (("test", "true"), pack(np.full(30, 1 << 16))),
        (("test", "correct"), pack(np.zeros(30, np.int64))),
        (("test", "true", "data"), "!!!"),
        (("test", "true", "data"), "AAAA"),
        (("test", "true", "dtype"), "<f8"),
        (("test", "true", "dtype"), ["<u1"]),
        (("test", "true", "count"), 10**12),
        (("test", "true", "count"), -1),
        (("pool",), "x"),
        (("pool", "parts"), ["train", "test", "unlabeled"]),
        (("pool", "left_out"), -1),
        (("pool", "row_step"), SHORT),
        (("pool", "row_step"), pack(np.full(40, -1))),
        (("pool", "part"), pack(np.full(40, 3))),
        (("pool", "given"), pack(np.full(40, -2))),
        (("pool", "confidence"), pack(np.full(40, 256))),
        (("pool", "validation"), pack(np.zeros(40, np.int64))),
    ],
)
def test_what_no_run_writes_is_refused(path, value):
    with pytest.raises(ValueError):
        from_record(changed(path, value))


def test_a_column_that_would_fill_the_memory_is_read_no_further_than_it_says():
    import base64
    import zlib

    bomb = copy.deepcopy(a_line())
    bomb["pool"]["row_step"]["data"] = base64.b64encode(zlib.compress(bytes(50_000_000))).decode()
    with pytest.raises(ValueError, match="81 bytes for 40 values"):
        from_record(bomb)
