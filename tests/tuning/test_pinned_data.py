"""A run keeps to the images that it began with, whatever happens to the folder while it runs."""

from __future__ import annotations

import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.runs import drive, endings, events, write_study
from tune_ssl.artifacts.model_files import read_card
from tune_ssl.base.errors import Stopped
from tune_ssl.base.yaml_file import read_yaml
from tune_ssl.data.store import cache_folder, open_store
from tune_ssl.records import log
from tune_ssl.records.ledger import Ledger
from tune_ssl.runs.folder import create, reopen, stores_of
from tune_ssl.runs.splits import changed_folders, check_data
from tune_ssl.study.study import load_study
from tune_ssl.tuning import worker
from tune_ssl.tuning.job import Job
from tune_ssl.tuning.run import open_run, searching
from tune_ssl.tuning.stream import JobStream

STUDY = """
fixed:
  data: {dataset: folder, root: IMAGES, batch_size: 8, num_labels: 8}
  method: {name: fixmatch}
  budget: {steps: 4, eval_every: 2}
search:
  optim.lr: {log_uniform: [1e-3, 1e-2]}
study: {num_trials: 3, finalists: 1, seeds: [0, 1], searcher: random, scheduler: none}
"""


@pytest.fixture
def images(tmp_path) -> Path:
    rng = np.random.default_rng(zlib.crc32(str(tmp_path).encode()))  # a store of its own
    root = tmp_path / "images"
    for k, name in enumerate("ab"):
        for i in range(20):
            save(root / "train" / name / f"{i}.png", rng.integers(100 * k, 100 * k + 50, (8, 8)))
    for i in range(10):
        save(root / "unlabeled" / f"{i}.png", rng.integers(0, 150, (8, 8)))
    return root


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def disturb(images: Path) -> None:
    """A photo more, one fewer, and one that changed."""
    save(images / "unlabeled" / "new.png", np.full((8, 8), 77))
    (images / "train" / "a" / "3.png").unlink()
    save(images / "train" / "b" / "5.png", np.zeros((8, 8)))


def begin(tmp_path: Path, images: Path, body: str = STUDY) -> tuple[Path, JobStream]:
    study = load_study(write_study(tmp_path, body.replace("IMAGES", str(images))))
    stores = check_data(study)
    run = create(study, stores, tmp_path / "runs", "one", "")
    context = open_run(run, study, stores, Ledger(), lambda line: None)
    return run, JobStream(context, searching(context))


def test_photos_added_changed_and_removed_while_a_search_runs_change_nothing_of_it(
    tmp_path, images
):
    run, stream = begin(tmp_path, images)
    jobs = 0

    def work(config):
        nonlocal jobs
        jobs += 1
        if jobs == 2:
            disturb(images)
        worker.train_job(config)

    drive(stream, work)
    assert set(endings(run).values()) == {log.FINISHED} and jobs == 5
    about = read_yaml(run / log.STUDY).data
    digest = about["dataset"]["digest"]
    assert about["conditions"][0]["data"] == digest
    assert [read_card(path.parent).data for path in run.rglob(log.MODEL)] == [digest] * len(
        list(run.rglob(log.MODEL))
    )
    stores = [path.read_text() for path in (cache_folder() / "stores").glob("*/meta.json")]
    assert sum(str(images) in meta for meta in stores) == 1


def test_a_run_that_goes_on_says_that_its_folder_changed_and_uses_the_store_it_began_with(
    tmp_path, images
):
    run, _ = begin(tmp_path, images)
    _, study = reopen(run.parent, run.name)
    assert changed_folders(study, check_data(study, stores_of(run))) == []
    disturb(images)
    stores = check_data(study, stores_of(run))
    began = stores_of(run)["all"]
    assert (stores["all"].digest, str(stores["all"].path)) == began
    assert changed_folders(study, stores) == [
        "the images have changed since this run began (1 more, 1 fewer, 1 changed): it goes on with those "
        f"of {began[1]}"
    ]
    shutil.rmtree(images)
    assert check_data(study, stores_of(run))["all"].digest == began[0], (
        "the folder itself is not needed"
    )


def test_a_worker_that_finds_other_images_ends_the_trial_with_one_line(tmp_path, images):
    run, stream = begin(tmp_path, images)
    digest, store = stores_of(run)["all"]
    disturb(images)
    shutil.rmtree(store)
    with pytest.raises(Stopped):
        drive(stream)
    reason = next(e["reason"] for e in events(run) if e["event"] == log.FAILED)
    assert "\n" not in reason
    assert (
        f"but the run began with {digest}: the data changed, and the store {store} is gone"
        in reason
    )
    assert os.path.exists(images)


SIZES = """
fixed:
  data: {dataset: folder, root: IMAGES, batch_size: 8, num_labels: 8}
  method: {name: supervised}
  budget: {steps: 2, eval_every: 2}
search:
  data.image_size: {choice: [8, 16]}
  data.resize: {choice: [crop, pad]}
study: {num_trials: 4, finalists: 1, seeds: [0], searcher: grid, scheduler: none}
"""


def test_images_of_several_sizes_are_searched_by_size_each_trial_on_its_own_store(tmp_path, images):
    save(images / "train" / "a" / "long.png", np.zeros((8, 30)))
    run, stream = begin(tmp_path, images, SIZES)
    shapes = {}

    def work(config):
        job = Job.from_config(config)
        store = open_store(Path(job.store))
        shapes[job.config["data.image_size"], job.config["data.resize"]] = store
        assert store.digest == job.data
        worker.train_job(config)

    drive(stream, work)
    assert set(endings(run).values()) == {log.FINISHED}
    assert {size: store.shape[1] for (size, _), store in shapes.items()} == {8: 8, 16: 16}
    assert len({store.path for store in shapes.values()}) == 4
