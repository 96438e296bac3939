"""Images that a data set has more than once: the same pixels, or nearly the same picture.

An image belongs to the first part of ORDER that has it; every other one is a copy. A test image that is trained on is
no test, and a copy among the unlabeled images is a negative of itself in a contrastive loss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_ssl.data.folder import first_names, shown_name

Ints = NDArray[np.int64]
Uint8s = NDArray[np.uint8]

ORDER = ("test", "val", "train", "unlabeled")
DROPPED = ("train", "unlabeled")  # parts from which copies may be taken
BANDS, BITS = (
    4,
    16,
)  # of a picture's 64 bits: two that differ in fewer than BANDS bits agree in one whole band
CROWD = 200  # pictures that share a band; more are flat, and say nothing
SIDE = 8  # pixels of the small picture whose steps from left to right are the bits


@dataclass
class Fingerprints:
    """What is kept of each image of a part, in order: its name, a digest of its pixels, and 64 bits of its looks."""

    names: list[str] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)

    def add(self, name: str, pixels: Uint8s) -> None:
        self.names.append(name)
        self.digests.append(hashlib.blake2b(pixels.tobytes(), digest_size=16).digest())
        self.looks.append(look_of(pixels))


@dataclass(frozen=True)
class Copies:
    """What was found: `pairs` ("train in test" -> its copies as (copy, original)), and the rows to drop of each part.

    `conflicts` are the copies whose label is another one than the original's, `near` how many test and val images look
    like one to train on, and are not equal to one.
    """

    pairs: dict[str, list[tuple[str, str]]]
    rows: dict[str, Ints]
    conflicts: int = 0
    near: int = 0

    def to_record(self) -> dict[str, Any]:
        return {
            "equal": {name: len(found) for name, found in self.pairs.items()},
            "examples": {
                name: [[shown_name(copy), shown_name(original)] for copy, original in found[:5]]
                for name, found in self.pairs.items()
            },
            "conflicts": self.conflicts,
            "near": self.near,
        }


def find_copies(parts: Mapping[str, Fingerprints], labels: Mapping[str, Ints]) -> Copies:
    """Each image's copies in its own part and in those after it in ORDER; `labels` of each part, -1 where unknown."""
    names: list[tuple[str, int]] = []
    digests: list[bytes] = []
    for part in ORDER:
        if part in parts:
            names += [(part, row) for row in range(len(parts[part].digests))]
            digests += parts[part].digests
    if not digests:
        return Copies({}, {})
    keys = np.frombuffer(b"".join(digests), dtype="V16")
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    pairs: dict[str, list[tuple[str, str]]] = {}
    rows: dict[str, list[int]] = {}
    conflicts = 0
    for at in np.flatnonzero(first[inverse] != np.arange(len(keys))).tolist():
        (part, row), (owner, original) = names[at], names[int(first[inverse[at]])]
        pair = (parts[part].names[row], parts[owner].names[original])
        pairs.setdefault(f"{part} in {owner}", []).append(pair)
        if part in DROPPED:
            rows.setdefault(part, []).append(row)
        both = int(labels[part][row]), int(labels[owner][original])
        conflicts += min(both) >= 0 and both[0] != both[1]
    dropped = {part: np.array(found, np.int64) for part, found in rows.items()}
    return Copies(pairs, dropped, conflicts, _near(parts))


def sentences(record: Mapping[str, Any], dropped: bool) -> list[str]:
    """What a record of copies means for a study."""
    lines = []
    for name, count in record["equal"].items():
        part, owner = name.split(" in ")
        shown = [f"{a} = {b}" for a, b in record["examples"][name]]
        some = first_names([*shown, *[""] * (count - len(shown))], 2)
        where = "there more than once" if part == owner else f"in {owner} too"
        said = f"{count} images of {part} are {where} ({some})"
        said = said if count > 1 else f"1 image of {part} is {where} ({some})"
        if dropped and part in DROPPED:
            said += ": taken out of it"
        elif owner in ("test", "val") and part != owner:
            said += f": what is measured on {owner} is too good; data.duplicates: drop takes them out of {part}"
        elif part in DROPPED:
            said += "; data.duplicates: drop keeps one of each"
        lines.append(said)
    if record["conflicts"]:
        lines.append(f"{record['conflicts']} of the equal images have different labels")
    if record["near"]:
        lines.append(
            f"{record['near']} images of test and val look nearly like one that is trained on (not equal, and kept)"
        )
    return lines


def look_of(pixels: Uint8s) -> int:
    """64 bits: whether each pixel of an 8 x 9 picture is lighter than its neighbour (a difference hash)."""
    grey_HW = pixels.mean(axis=0, dtype=np.float32)
    height, width = grey_HW.shape
    if height < SIDE or width < SIDE + 1:
        return 0  # too small to look like anything
    rows = np.arange(SIDE) * height // SIDE
    columns = np.arange(SIDE + 1) * width // (SIDE + 1)
    small = np.add.reduceat(np.add.reduceat(grey_HW, rows, axis=0), columns, axis=1)
    sizes = np.diff([*rows, height])[:, None] * np.diff([*columns, width])
    small = np.round(small / sizes)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return int(np.packbits(bits).view(">u8")[0])


def _near(parts: Mapping[str, Fingerprints]) -> int:
    """Test and val images of which one to train on differs in fewer than BANDS bits, and is not equal."""
    measured = [part for part in ("test", "val") if part in parts]
    trained = [part for part in DROPPED if part in parts]
    ours, own = _looks(parts, measured)
    theirs, other = _looks(parts, trained)
    equal = set(own) & set(other)
    near = np.zeros(len(ours), bool)
    for band in range(BANDS):
        shift = np.uint64(BITS * band)
        a = (ours >> shift) & np.uint64(2**BITS - 1)
        b = (theirs >> shift) & np.uint64(2**BITS - 1)
        order = np.argsort(b, kind="stable")
        left = np.searchsorted(b[order], a, "left")
        count = np.searchsorted(b[order], a, "right") - left
        count[count > CROWD] = 0
        asked = np.repeat(np.arange(len(a)), count)
        within = np.arange(len(asked)) - np.repeat(np.cumsum(count) - count, count)
        found = order[np.repeat(left, count) + within]
        close = np.bitwise_count(ours[asked] ^ theirs[found]) < BANDS
        near[asked[close]] = True
    return int(sum(near[i] and own[i] not in equal for i in range(len(ours))))


def _looks(
    parts: Mapping[str, Fingerprints], names: Sequence[str]
) -> tuple[NDArray[np.uint64], list[bytes]]:
    """The looks of all images of some parts that look like anything, and their digests."""
    both = [
        (look, digest)
        for name in names
        for look, digest in zip(parts[name].looks, parts[name].digests, strict=True)
        if 0 < look < 2**64 - 1
    ]
    looks = np.array([look for look, _ in both], np.uint64)
    return looks, [digest for _, digest in both]
