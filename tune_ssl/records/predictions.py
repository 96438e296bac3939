"""What a confirmed network says of single images: a line of predictions.jsonl, written and read here.

A line has `schema`, `trial`, `condition`, `seed`, and

    test   {images, true, correct}: of each test image its class, and whether the network is right
    pool   {images, left_out, parts, part, row_step, validation, given, predicted, confidence, given_probability}:
           images whose labels the network was NOT trained on; null where it could not look at them, and then
           `pool_error` says why

    part               index into `parts`, the names of the data's parts
    row_step           number of the image in its part, less that of the image before it (the first one: less 0)
    validation         whether it is a validation image; else its label was hidden from this network, or it has none
    given              the label that the data have for it, -1 without one
    predicted          the most likely class
    confidence         the probability of that class
    given_probability  the probability of the given label, 0 without one

A column is packed: {"dtype": "<u2", "count": 3, "data": base64 of the zlib-compressed bytes}. Truths have the dtype
"bits", eight in a byte; probabilities are whole numbers of 0..255 in the file, and shares of 1 once read.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_ssl.records import log

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

PARTS = ("train", "val", "unlabeled")  # of the data that a pool may have images of
BITS = "bits"
DTYPES = ("<u1", "<u2", "<u4", "<i2", "<i4")
MOST_CLASSES = 1 << 16
LEVELS = 255  # of a probability
MOST_COUNT = 100_000_000  # values of one column; more are no column of ours


@dataclass(frozen=True)
class Pool:
    """Images that a network was not trained on with their labels, one in each row of all columns (n,)."""

    part: Ints  # index into PARTS
    row: Ints
    validation: Bools
    given: Ints
    predicted: Ints
    confidence: Floats
    given_probability: Floats
    left_out: int = 0  # such images that were not looked at

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class Predictions:
    """What the network of one confirmed trial says of single images; `pool` is None where `error` says why."""

    trial: str
    condition: str
    seed: int
    test_true: Ints
    test_correct: Bools
    pool: Pool | None
    error: str = ""


def pack(values: NDArray[Any]) -> dict[str, Any]:
    """Whole numbers (n,) or truths (n,) as JSON takes them, in the smallest dtype that has room."""
    if values.dtype == np.bool_:
        dtype, content = BITS, np.packbits(values).tobytes()
    else:
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        dtype = next(d for d in DTYPES if np.iinfo(d).min <= low and high <= np.iinfo(d).max)
        content = values.astype(dtype).tobytes()
    data = base64.b64encode(zlib.compress(content, 9)).decode()
    return {"dtype": dtype, "count": len(values), "data": data}


def unpack(packed: Any) -> Ints | Bools:
    """What `pack` was given. ValueError where it is no such thing."""
    if not isinstance(packed, Mapping):
        raise ValueError("a column is no mapping")
    dtype, count, data = (packed.get(key) for key in ("dtype", "count", "data"))
    if type(count) is not int or not 0 <= count <= MOST_COUNT or not isinstance(data, str):
        raise ValueError("a column has no count or no data")
    if dtype not in (*DTYPES, BITS):
        raise ValueError(f"a column has dtype {str(dtype)[:20]}")
    size = math.ceil(count / 8) if dtype == BITS else count * np.dtype(dtype).itemsize
    try:
        content = zlib.decompressobj().decompress(base64.b64decode(data, validate=True), size + 1)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"a column is damaged: {error}") from None
    if len(content) != size:
        raise ValueError(f"a column has {len(content)} bytes for {count} values")
    if dtype == BITS:
        return np.unpackbits(np.frombuffer(content, np.uint8), count=count).astype(np.bool_)
    return np.frombuffer(content, dtype).astype(np.int64)


def record_of_test(true_N: Ints, correct_N: Bools) -> dict[str, Any]:
    """The `test` of a line: the class of each test image, and whether it was predicted."""
    return {"images": len(true_N), "true": pack(true_N), "correct": pack(correct_N)}


def record_of_pool(pool: Pool) -> dict[str, Any]:
    """The `pool` of a line."""
    return {
        "images": len(pool),
        "left_out": pool.left_out,
        "parts": list(PARTS),
        "part": pack(pool.part),
        "row_step": pack(np.diff(pool.row, prepend=0)),
        "validation": pack(pool.validation),
        "given": pack(pool.given),
        "predicted": pack(pool.predicted),
        "confidence": pack(_levels(pool.confidence)),
        "given_probability": pack(_levels(pool.given_probability)),
    }


def from_record(line: Mapping[str, Any]) -> Predictions:
    """A line of predictions.jsonl. ValueError where it is not what a run writes."""
    trial, condition, seed = (line.get(key) for key in ("trial", "condition", "seed"))
    if line.get("schema") != log.SCHEMA or not isinstance(trial, str):
        raise ValueError("a line without a trial, or of another schema")
    if not isinstance(condition, str) or type(seed) is not int:
        raise ValueError("a line without a condition or a seed")
    test, pool = line.get("test"), line.get("pool")
    if not isinstance(test, Mapping):
        raise ValueError("a line without `test`")
    true_N, correct_N = _column(test, "true"), _column(test, "correct", truths=True)
    if len(true_N) != len(correct_N) or (len(true_N) and not _are_classes(true_N, 0)):
        raise ValueError("`test` does not fit together")
    error = str(line.get("pool_error") or "")
    found = None if pool is None else _pool(pool)
    return Predictions(trial, condition, seed, true_N, correct_N.astype(np.bool_), found, error)


def _pool(record: Any) -> Pool:
    if not isinstance(record, Mapping) or record.get("parts") != list(PARTS):
        raise ValueError("`pool` is no mapping, or has other parts")
    left_out = record.get("left_out")
    if type(left_out) is not int or left_out < 0:
        raise ValueError("`pool` does not say what is left out")
    numbers = {k: _column(record, k) for k in ("part", "given", "predicted")}
    numbers["row"] = np.cumsum(_column(record, "row_step"))
    shares = {k: _column(record, k) / LEVELS for k in ("confidence", "given_probability")}
    validation = _column(record, "validation", truths=True).astype(np.bool_)
    pool = Pool(**numbers, **shares, validation=validation, left_out=left_out)
    if len({len(column) for column in (*numbers.values(), *shares.values(), validation)}) != 1:
        raise ValueError("`pool` has columns of different lengths")
    if len(pool) and (
        not (0 <= pool.part.min() <= pool.part.max() < len(PARTS))
        or pool.row.min() < 0
        or not _are_classes(pool.predicted, 0)
        or not _are_classes(pool.given, -1)
        or max(pool.confidence.max(), pool.given_probability.max()) > 1
        or min(pool.confidence.min(), pool.given_probability.min()) < 0
    ):
        raise ValueError("`pool` has a value out of its range")
    return pool


def _are_classes(values: Ints, least: int) -> bool:
    return bool(least <= values.min() and values.max() < MOST_CLASSES)


def _column(record: Mapping[str, Any], key: str, truths: bool = False) -> Any:
    found = unpack(record.get(key))
    if (found.dtype == np.bool_) != truths:
        raise ValueError(f"`{key}` is of another kind")
    return found


def _levels(shares: Floats) -> Ints:
    return np.rint(np.clip(shares, 0, 1) * LEVELS).astype(np.int64)
