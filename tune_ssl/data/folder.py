"""Which image files there are, by part and class: in folders, or by a table of paths and labels.

What is an image is not decided here but by its content (`image_reader`): a listing has every file that may be one.
"""

from __future__ import annotations

import csv
import hashlib
import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tune_ssl.base.errors import Problem, UserError, first_line, nearest, printable, shown
from tune_ssl.base.spec import DataSpec

Ints = NDArray[np.int64]

PARTS = ("train", "val", "test", "unlabeled")
LABELED = PARTS[:3]
LISTED = 5  # names in one message
MOST_PROBLEMS = 20  # lines of one table
COLUMNS = ("path", "label", "part")
SYNONYMS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset"), "val"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
    **dict.fromkeys(("unlabeled", "unlabelled", "unlabeled_images"), "unlabeled"),
}
"""What folders of parts are called elsewhere."""
SYSTEM = "thumbnails and system files"
SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "#recycle", "#snapshot", "@tmp", "@recycle", "@recently-snapshot"),  # NAS boxes
        *("@sharebin", "@__thumb", "network trash folder", "temporary items"),
        *("__macosx", "$recycle.bin", "system volume information", "recycler", "lost+found"),
        *("ipod photo cache", "thumbs.db", "desktop.ini", "ehthumbs.db", "ehthumbs_vista.db"),
    }
)


class ImageFile(NamedTuple):
    """A file; `path` is relative to the listing's root, with forward slashes, or absolute where it lies elsewhere."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Listing:
    """The files of each part, sorted by class and path. `labels` are -1 without classes.

    `left_out` (reason -> paths) are files that belong to no part, `notes` sentences about how classes were understood.
    """

    root: Path
    class_names: tuple[str, ...]
    files: dict[str, list[ImageFile]]
    labels: dict[str, Ints]
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def key(self) -> str:
        """A digest of names, sizes and labels; a file that was only touched does not change it."""
        hasher = hashlib.sha256("\0".join(self.class_names).encode())
        for part, files in self.files.items():
            hasher.update(f"\n{part}\n".encode())
            for file, label in zip(files, self.labels[part].tolist(), strict=True):
                hasher.update(os.fsencode(f"{file.path}\0{file.size}\0{label}\n"))
        return hasher.hexdigest()

    def remarks(self) -> list[str]:
        """What belongs to no part, and how classes were understood: a sentence for each."""
        return [
            *(left_out(reason, sorted(paths)) for reason, paths in self.left_out.items()),
            *self.notes,
        ]

    def without(self, reasons: Mapping[str, str]) -> Listing:
        """All but the files of these paths, which are left out for their reasons."""
        if not reasons:
            return self
        files, labels = {}, {}
        for part, every in self.files.items():
            kept = np.array([file.path not in reasons for file in every], bool)
            files[part] = [file for file, keep in zip(every, kept, strict=True) if keep]
            labels[part] = self.labels[part][kept]
        left_out = {reason: [*paths] for reason, paths in self.left_out.items()}
        for path, reason in reasons.items():
            left_out.setdefault(reason, []).append(path)
        return replace(self, files=files, labels=labels, left_out=left_out)

    def checked(self) -> Listing:
        """Itself, if each class has an image to train on; what val or test lack is noted.

        UserError with all that cannot be.
        """
        problems, notes = [], list(self.notes)
        for part in LABELED:
            if part not in self.files:
                continue
            sizes = np.bincount(self.labels[part], minlength=len(self.class_names))
            empty = [self.class_names[k] for k in np.flatnonzero(sizes == 0).tolist()]
            if empty and part == "train":
                names = first_names(empty)
                problems.append(
                    f"has no image of {names} to train on: add some, or remove the class"
                )
            elif empty and len(self.files[part]):
                notes.append(f"{part} has no image of {first_names(empty)}")
        if problems:
            raise UserError(
                Problem(f"is '{self.root}', which {text}", "data.root") for text in problems
            )
        return replace(self, notes=tuple(notes))


def list_images(spec: DataSpec) -> Listing:
    """The user's files: `data.labels`' or train/<class>/ or <class>/, and the other parts beside it or elsewhere.

    Raises:
        UserError: nothing to read, fewer than two classes, classes that train lacks, or a wrong table.
    """
    root = _folder("data.root", spec.root) if spec.root is not None else None
    if spec.labels is not None:
        return _of_table(spec, root)
    if root is None:
        text = "is not set, but dataset 'folder' needs the folder of the images, or data.labels"
        raise UserError(Problem(text, "data.root"))
    flat, roots = not (root / "train").is_dir(), _roots(spec)
    tops = {"train": root if flat else root / "train"}
    tops |= {part: root / part for part in PARTS[1:] if (root / part).is_dir()}
    tops |= roots
    inner = [name for name in _subfolders(root) if not name.startswith(".")]
    called = {name: part for name in inner if (part := _sounds_like(name))}
    if flat and "train" in called.values() and {*inner} <= {*called, *PARTS}:
        raise UserError(Problem(_misnamed(root, called), "data.root"))
    listing = list_parts(root, tops, spec.class_depth)
    used = {
        top.relative_to(root).parts[0]
        for top in tops.values()
        if top != root and top.is_relative_to(root)
    }
    notes = [
        f"{name}/ is no part: data.{part}_root={root / name} makes it the {part} part"
        for name, part in called.items()
        if part != "train" and part not in tops
    ]
    beside = [] if flat else [e.name for e, why in _entries(root) if not why and e.name not in used]
    out = {**listing.left_out, **({"beside train/ and in no part": beside} if beside else {})}
    return replace(listing, notes=(*listing.notes, *notes), left_out=out)


def list_parts(root: Path, tops: Mapping[str, Path], depth: int = 1) -> Listing:
    """List each part's folder: train, val and test by class, unlabeled at any depth. UserError as `list_images`."""
    left_out: dict[str, list[str]] = defaultdict(list)
    found: dict[str, dict[str, list[ImageFile]]] = {}
    notes: list[str] = []
    for part in LABELED:
        if part in tops:
            top = tops[part]
            elsewhere = [other for name, other in tops.items() if name != part]
            inside = {
                o.relative_to(top).parts[0] for o in elsewhere if o != top and o.is_relative_to(top)
            }
            skip = {*PARTS, *inside} if top == root else inside
            found[part] = _by_class(top, root, depth, skip, left_out)
            notes += _nested(found[part], part, depth)
    names = tuple(sorted(found["train"]))
    problems = []
    if len(names) < 2:
        problems.append(_too_few(root, tops["train"], names, depth))
    for part in LABELED[1:]:
        others = sorted(set(found.get(part, ())) - set(names))
        if others and len(names) >= 2:
            close = nearest(others[0], names) if len(others) == 1 else ""
            problems.append(
                f"has {first_names(others)} in {part}/, which are no classes to train on{close} "
                f"(classes: {first_names(names, 10)})"
            )
    if problems:
        raise UserError(Problem(f"is '{root}', which {text}", "data.root") for text in problems)
    files: dict[str, list[ImageFile]] = {}
    labels: dict[str, Ints] = {}
    for part, classes in found.items():
        sizes = [len(classes.get(name, ())) for name in names]
        files[part] = [file for name in names for file in classes.get(name, ())]
        labels[part] = np.repeat(np.arange(len(names)), sizes)
    if "unlabeled" in tops:
        files["unlabeled"] = find_images(tops["unlabeled"], root, left_out)
        labels["unlabeled"] = np.full(len(files["unlabeled"]), -1, np.int64)
    return Listing(root, names, files, labels, dict(left_out), tuple(notes))


def find_images(
    top: Path, root: Path, left_out: dict[str, list[str]] | None = None
) -> list[ImageFile]:
    """The files below `top` that may be images, sorted. Links are followed once.

    What is hidden, or of a system, goes to `left_out`. `root` is what paths are relative to, where `top` is in it.
    """
    found: list[ImageFile] = []
    left_out = {} if left_out is None else left_out
    seen: set[tuple[int, int]] = set()
    todo = [(str(top), _name_in(top, root))]
    while todo:
        folder, name = todo.pop()
        try:
            status = os.stat(folder)
        except OSError as error:
            raise _unreadable(folder, error) from None
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry, why in _entries(folder):
            path = f"{name}/{entry.name}" if name else entry.name
            if why:
                left_out.setdefault(why, []).append(path)
            elif _is_folder(entry):
                todo.append((entry.path, path))
            else:
                try:
                    info = entry.stat()
                except OSError:  # a broken link: it is found bad when it is read
                    found.append(ImageFile(path, -1, 0))
                    continue
                if stat.S_ISREG(info.st_mode):
                    found.append(ImageFile(path, info.st_size, info.st_mtime_ns))
                else:
                    left_out.setdefault("no regular file", []).append(path)
    return sorted(found)


def left_out(reason: str, paths: Sequence[str]) -> str:
    """The sentence about files that are not used."""
    return f"left out: {len(paths)} {'file' if len(paths) == 1 else 'files'}, {reason} ({first_names(paths)})"


def first_names(names: Iterable[str], limit: int = LISTED) -> str:
    """The first names, printable on any terminal, and how many more there are."""
    names = [shown_name(name) for name in names]
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def shown_name(path: str) -> str:
    r"""A path as valid text in one line: bytes that are no UTF-8 as \xff, control characters as escapes."""
    return printable(as_text(path))


def as_text(path: str) -> str:
    r"""A path as valid text: bytes that are no UTF-8 as \xff."""
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return path.encode("utf-8", "backslashreplace").decode()


# ---- folders ------------------------------------------------------------------------------------


def _folder(key: str, text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_dir():
        near = nearest(path.name, _subfolders(path.parent))
        text = f"is '{path}', but there is no such folder{near}"
        raise UserError(Problem(text, key))
    return path


def _sounds_like(name: str) -> str:
    """The part that a folder's name means without being it: Train, validation; empty if none."""
    meant = SYNONYMS.get(name.lower(), "")
    return "" if meant == name else meant


def _misnamed(root: Path, called: Mapping[str, str]) -> str:
    keys = [
        f"data.{'root' if part == 'train' else f'{part}_root'}={root / name}"
        for name, part in called.items()
    ]
    names = ", ".join(f"{name}/ {part}/" for name, part in called.items())
    return f"is '{root}', whose folders are no classes: rename {names}, or give {' '.join(keys)}"


def _roots(spec: DataSpec) -> dict[str, Path]:
    """The parts that lie elsewhere."""
    given = {"val": spec.val_root, "test": spec.test_root, "unlabeled": spec.unlabeled_root}
    return {part: _folder(f"data.{part}_root", text) for part, text in given.items() if text}


def _subfolders(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(path) if _is_folder(entry))
    except OSError:
        return []


def _entries(folder: str | Path) -> Iterator[tuple[os.DirEntry[str], str]]:
    """What lies in a folder, and why it is no image where its name says so."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                why = ""
                if entry.name.lower() in SYSTEM_FOLDERS or entry.name.endswith("@SynoEAStream"):
                    why = SYSTEM
                elif entry.name.startswith("."):
                    why = "hidden"
                yield entry, why
    except OSError as error:
        raise _unreadable(folder, error) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _unreadable(folder: str | Path, error: OSError) -> UserError:
    text = f"has a folder '{shown_name(str(folder))}' that cannot be read: {first_line(error)}"
    return UserError(Problem(text, "data.root"))


def _name_in(path: Path, root: Path) -> str:
    if not path.is_relative_to(root):
        return path.absolute().as_posix()
    name = path.relative_to(root).as_posix()
    return "" if name == "." else name


def _by_class(
    top: Path, root: Path, depth: int, skip: Collection[str], left_out: dict[str, list[str]]
) -> dict[str, list[ImageFile]]:
    """Class -> its files, for the folders `depth` levels below `top`. Names that Unicode holds equal are one class."""
    found: dict[str, list[ImageFile]] = {}
    todo = [(top, "", 0)]
    while todo:
        folder, name, level = todo.pop()
        for entry, why in _entries(folder):
            if level == 0 and entry.name in skip:
                continue
            if why or not _is_folder(entry):
                where = f"{_name_in(folder, root)}/{entry.name}".lstrip("/")
                left_out.setdefault(why or "in no class folder", []).append(where)
                continue
            own = unicodedata.normalize("NFC", shown_name(entry.name))
            own = f"{name}/{own}" if name else own
            if level + 1 < depth:
                todo.append((Path(entry.path), own, level + 1))
            else:
                inside = find_images(Path(entry.path), root, left_out)
                found[own] = sorted([*found.get(own, []), *inside])
    return found


def _nested(classes: Mapping[str, list[ImageFile]], part: str, depth: int) -> list[str]:
    """A sentence where a class has folders of its own that look like classes."""
    notes = []
    for name, files in classes.items():
        level = os.path.commonpath([os.path.dirname(f.path) for f in files]) if files else ""
        start = level.count("/") + 1 if level else 0
        inner = sorted({"/".join(f.path.split("/")[start:-1]).split("/")[0] for f in files} - {""})
        if len(inner) > 1:
            notes.append(
                f"{part}: class {name} has its images in {len(inner)} folders ({first_names(inner)}), which count as "
                f"one class; data.class_depth={depth + 1} makes each of them one"
            )
    if len(notes) > LISTED:
        return [*notes[:LISTED], f"{part}: {len(notes) - LISTED} more classes are like that"]
    return notes


def _too_few(root: Path, top: Path, names: tuple[str, ...], depth: int) -> str:
    """What is wrong with a folder that has no two classes, and what would work."""
    inner = [name for name in _subfolders(root) if not name.startswith(".")]
    for name in inner:
        if (root / name / "train").is_dir():
            return f"has no classes, but '{root / name}' has: give that as data.root"
    if len(names) == 1 and depth == 1 and len(_subfolders(top / names[0])) > 1:
        return f"has one class, {names[0]}; its own folders are classes with data.root={top / names[0]}"
    where = "train/" if top != root else "it"
    return (
        f"needs 2 or more class folders, <class>/ or train/<class>/, but {where} has {len(names)}; or "
        "data.labels=FILE, a table of path and label"
    )


# ---- a table of paths and labels ----------------------------------------------------------------


def _of_table(spec: DataSpec, root: Path | None) -> Listing:
    """The files that `data.labels` names, and the parts that lie in folders of their own."""
    table = Path(str(spec.labels)).expanduser()
    base = root or table.absolute().parent
    problems: list[Problem] = []
    rows: dict[str, list[tuple[str, ImageFile]]] = defaultdict(list)
    seen: dict[str, str] = {}
    for where, row in _rows(table):
        try:
            part, label, file = _placed(row, base)
            if file.path in seen:
                raise ValueError(f"path {shown(row['path'])} stands in {seen[file.path]} too")
            seen[file.path] = where
            rows[part].append((label, file))
        except ValueError as error:
            problems.append(Problem(str(error), where=where))
    names = tuple(sorted({label for part in LABELED for label, _ in rows[part]}))
    train = {label for label, _ in rows["train"]}
    if not problems and len(train) < 2:
        text = f"is '{table}', but must have 2 or more labels in part train, and has {len(train)}"
        problems.append(Problem(text, "data.labels"))
    elif not problems and (lacking := sorted(set(names) - train)):
        text = f"is '{table}', but no row of part train has the label {first_names(lacking)}"
        problems.append(Problem(text, "data.labels"))
    if len(problems) > MOST_PROBLEMS:
        more = Problem(f"{len(problems) - MOST_PROBLEMS} more rows are wrong", where=str(table))
        problems = [*problems[:MOST_PROBLEMS], more]
    if problems:
        raise UserError(problems)
    number = {name: k for k, name in enumerate(names)}
    files: dict[str, list[ImageFile]] = {}
    labels: dict[str, Ints] = {}
    for part in PARTS:
        placed = sorted(rows[part])
        if placed:
            files[part] = [file for _, file in placed]
            found = [number[label] if part in LABELED else -1 for label, _ in placed]
            labels[part] = np.array(found, np.int64)
    listing = Listing(base, names, files, labels)
    return _with_roots(listing, _roots(spec), spec.class_depth)


def _with_roots(listing: Listing, roots: Mapping[str, Path], depth: int) -> Listing:
    """The listing with the parts of `data.val_root` and the like."""
    files, labels, left_out = {**listing.files}, {**listing.labels}, {**listing.left_out}
    for part, top in roots.items():
        if part == "unlabeled":
            more = find_images(top, listing.root, left_out)
            files[part] = [*files.get(part, []), *more]
            labels[part] = np.full(len(files[part]), -1, np.int64)
            continue
        classes = _by_class(top, listing.root, depth, (), left_out)
        if others := sorted(set(classes) - set(listing.class_names)):
            text = f"is '{top}', which has {first_names(others)}, but the table has no such label"
            raise UserError(Problem(text, f"data.{part}_root"))
        sizes = [len(classes.get(name, ())) for name in listing.class_names]
        more = [f for name in listing.class_names for f in classes.get(name, ())]
        files[part] = [*files.get(part, []), *more]
        own = labels.get(part, np.zeros(0, np.int64))
        labels[part] = np.concatenate([own, np.repeat(np.arange(len(sizes)), sizes)])
    return replace(listing, files=files, labels=labels, left_out=left_out)


def _rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(FILE:line, the row) of a CSV or Parquet file. UserError where it cannot be read, or lacks a column."""
    lines: list[int] = []
    try:
        if table.suffix.lower() in (".parquet", ".pq"):
            import pyarrow.parquet as parquet

            rows: list[dict[str, Any]] = parquet.read_table(table).to_pylist()
            columns = parquet.read_schema(table).names
        else:
            with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                head = file.readline()
                file.seek(0)
                delimiter = max(",;\t", key=head.count)
                reader = csv.DictReader(file, delimiter=delimiter)
                reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
                rows = []
                for row in reader:
                    rows.append(row)
                    lines.append(reader.line_num)
                columns = list(reader.fieldnames or [])
            if any("\udc80" <= c <= "\udcff" for c in head) or "\0" in head:
                raise ValueError("it is not UTF-8 text")
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's own are ValueErrors
        text = f"is '{table}', which cannot be read: {first_line(error)}"
        raise UserError(Problem(text, "data.labels")) from None
    twice = [name for name in COLUMNS if list(columns).count(name) > 1]
    if twice:
        text = f"is '{table}', which has the column {twice[0]} twice"
        raise UserError(Problem(text, "data.labels"))
    for name in COLUMNS[:2]:
        if name not in columns:
            near = nearest(name, columns)
            text = f"is '{table}', but has no column {name}{near} (columns: {', '.join(map(str, columns))})"
            raise UserError(Problem(text, "data.labels"))
    for number, row in enumerate(rows):
        yield f"{table}:{lines[number] if lines else number + 1}", row


def _placed(row: Mapping[Any, Any], base: Path) -> tuple[str, str, ImageFile]:
    """The part, the label and the file of a row. ValueError says what is wrong with it."""
    path = str(row.get("path") or "").strip()
    if None in row:
        raise ValueError("has more fields than there are columns")
    if not path:
        raise ValueError("path is missing")
    given = row.get("label")
    if isinstance(given, float) and given.is_integer():  # whole numbers with gaps between them
        given = int(given)
    if isinstance(given, bytes):
        given = given.decode("utf-8", "surrogateescape")
    if any("\udc80" <= c <= "\udcff" for c in str(given)):
        raise ValueError(
            f"label is {shown_name(str(given))!r}, which is not UTF-8: save the table as UTF-8"
        )
    empty = given is None or given != given or str(given).strip() == ""
    label = "" if empty else unicodedata.normalize("NFC", shown_name(str(given).strip()))
    part = str(row.get("part") or "").strip() or ("unlabeled" if empty else "train")
    if part not in PARTS:
        meant = SYNONYMS.get(part.lower())
        hint = f"; did you mean '{meant}'?" if meant else nearest(part, PARTS)
        raise ValueError(f"part is {shown(part)}, but must be one of: {', '.join(PARTS)}{hint}")
    if empty and part in LABELED:
        raise ValueError(f"label is missing, but part {part} needs one")
    full = Path(os.path.normpath(base / path))
    try:
        info = full.stat()
    except OSError as error:
        raise ValueError(f"path is {shown(path)}, but '{full}': {first_line(error)}") from None
    if not stat.S_ISREG(info.st_mode):
        raise ValueError(f"path is {shown(path)}, but '{full}' is no file")
    return part, label, ImageFile(_name_in(full, base), info.st_size, info.st_mtime_ns)
