"""What many or large image files cost: to list, to store, to open again, and to feed to a network.

    python -m benchmarks.image_stores FOLDER            # makes 100,000 small files and 5,000 photos there, and measures
    python -m benchmarks.image_stores FOLDER --feed     # only: images a second beside a ResNet-18's step

Each store is built in a process of its own, whose peak memory is that of its own pages. Feeding is measured after the
store was read once; the step is forward and backward of a batch of 64, on a GPU where there is one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

SMALL, PHOTOS = 100_000, 5_000
KINDS = ("pixels", "encoded")


def make_small(folder: Path, first: int, count: int) -> None:
    from PIL import Image

    rng = np.random.default_rng(first)
    for k in range(first, first + count):
        path = folder / "unlabeled" / f"{k // 1000:03d}" / f"{k:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path, quality=85)


def make_photos(folder: Path, first: int, count: int) -> None:
    """Clouds at several scales, as JPEG of 2000 x 1500 pixels: about the size of a photo."""
    from PIL import Image

    rng = np.random.default_rng(first)
    picture = np.zeros((1500, 2000, 3), np.float32)
    for side in (8, 64, 400):
        noise = Image.fromarray(rng.integers(0, 256, (side * 3 // 4, side, 3), np.uint8))
        picture += np.asarray(noise.resize((2000, 1500), Image.Resampling.BICUBIC)) / 3
    clouds = picture.clip(0, 255).astype(np.uint8)
    for k in range(first, first + count):
        path = folder / "unlabeled" / f"{k:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        moved = np.roll(clouds, tuple(rng.integers(0, 1500, 2)), axis=(0, 1))
        Image.fromarray(moved).save(path, quality=88)


def make_labeled(folder: Path, size: tuple[int, int]) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for part, count in (("train", 40), ("test", 10)):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for k in range(count):
                pixels = rng.integers(0, 256, (*size, 3), np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{k}.jpg")


def make(base: Path) -> dict[str, Path]:
    folders = {"small": base / "small", "photos": base / "photos"}
    workers = os.cpu_count() or 1
    for name, maker, total, size in (
        ("small", make_small, SMALL, (32, 32)),
        ("photos", make_photos, PHOTOS, (1500, 2000)),
    ):
        done = folders[name] / "made"
        if done.exists():
            continue
        shutil.rmtree(folders[name], ignore_errors=True)
        make_labeled(folders[name], size)
        each = total // (10 * workers)
        with ProcessPoolExecutor(workers) as pool:
            list(
                pool.map(
                    maker,
                    *zip(*[(folders[name], i, each) for i in range(0, total, each)], strict=True),
                )
            )
        done.touch()
    return folders


def spec_of(folder: Path, kind: str, side: int) -> Any:
    from tune_ssl.base.spec import DataSpec

    values = {"dataset": "folder", "root": str(folder), "image_size": side, "store": kind}
    return DataSpec.model_validate({**values, "batch_size": 8, "mu": 7, "num_labels": 40})


def peak_megabytes() -> float:
    """Of this process alone: what getrusage says begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def build(folder: Path, kind: str, side: int, cache: Path, answers: Any) -> None:
    from tune_ssl.data.folder import list_images
    from tune_ssl.data.store import prepare

    spec = spec_of(folder, kind, side)
    began = time.perf_counter()
    listing = list_images(spec)
    listed = time.perf_counter() - began
    began = time.perf_counter()
    store = prepare(spec, cache=cache)
    built = time.perf_counter() - began
    peak = peak_megabytes()
    began = time.perf_counter()
    prepare(spec, cache=cache)
    again = time.perf_counter() - began
    disk = sum(file.stat().st_size for file in store.path.iterdir()) / 1e6
    count = sum(map(len, listing.files.values()))
    answers.put((count, listed, built, again, peak, disk, store.digest))


def feed(folder: Path, kind: str, side: int, cache: Path) -> tuple[float, float, str]:
    """Images a second through gather and the weak view, images a second of a ResNet-18's step, and where."""
    import torch

    from tune_ssl.data.loading import Loader, load_data
    from tune_ssl.data.store import prepare
    from tune_ssl.models.encoders import build_encoder

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = spec_of(folder, kind, side)
    data = load_data(spec, 0, device, store=prepare(spec, cache=cache))
    loader = Loader(data, spec, ("weak",), ("weak",), 0)
    for _ in range(5):
        loader.next()
    steps = 100 if device.type == "cuda" else 20
    began = time.perf_counter()
    for _ in range(steps):
        batch = loader.next()
    if device.type == "cuda":
        torch.cuda.synchronize()
    rate = 64 * steps / (time.perf_counter() - began)
    network = build_encoder("resnet18", 3, "large" if side > 40 else "small", (side, side)).to(
        device
    )
    images = torch.cat([batch.labeled[0], batch.unlabeled[0]])
    steps = 20 if device.type == "cuda" else 2
    for warm in (True, False):
        began = time.perf_counter()
        for _ in range(2 if warm else steps):
            network(images).square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
    trained = 64 * steps / (time.perf_counter() - began)
    return rate, trained, str(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--feed", action="store_true")
    given = parser.parse_args()
    folders, cache = make(given.folder), given.folder / "cache"
    sides = {"small": (32,), "photos": (96, 224)}
    for name, folder in folders.items():
        for side in sides[name]:
            for kind in KINDS:
                if not given.feed:
                    shutil.rmtree(cache, ignore_errors=True)
                    answers: Any = multiprocessing.Queue()
                    child = multiprocessing.Process(
                        target=build, args=(folder, kind, side, cache, answers)
                    )
                    child.start()
                    count, listed, built, again, peak, disk, digest = answers.get()
                    child.join()
                    print(
                        f"{name} {side} px {kind}: {count} files listed in {listed:.2f} s, stored in {built:.1f} s "
                        f"(peak {peak:.0f} MB), found again in {again:.2f} s; {disk:.0f} MB on disk; {digest}",
                        flush=True,
                    )
                rate, trained, where = feed(folder, kind, side, cache)
                print(
                    f"{name} {side} px {kind}: feeds {rate:.0f} images/s, a ResNet-18's step {trained:.0f} ({where})",
                    flush=True,
                )


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
