"""A split is reproducible, stratified as asked, nested, and refuses budgets that cannot work."""

import json

import numpy as np
import pytest

from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import DataSpec
from tune_ssl.data.splits import Split, hold_out, make_split

NAMES = ["ant", "bee", "cat"]
LABELS = np.repeat([0, 1, 2], [100, 60, 40])  # 200 images


def split(labels=LABELS, names=NAMES, *, seed=0, has_val=False, **data) -> Split:
    if "unlabeled_mismatch" in data:
        data["classes"] = names
    return make_split(labels, names, DataSpec(**data), seed=seed, has_val=has_val)


def counts(rows, labels=LABELS):
    return np.bincount(labels[rows], minlength=3).tolist()


def message(**options) -> str:
    with pytest.raises(UserError) as caught:
        split(**options)
    return str(caught.value)


def test_validation_is_a_stratified_share_of_exact_size_and_all_the_rest_is_the_pool():
    made = split(val_ratio=0.2)
    assert counts(made.validation) == [20, 12, 8]
    assert counts(made.labeled) == counts(made.unlabeled) == [80, 48, 32]
    both = np.concatenate([made.unlabeled, made.validation])
    assert sorted(both.tolist()) == list(range(200))
    assert len(split(val_ratio=0.13).validation) == 26


def test_labeled_ratio_is_proportional_and_num_labels_is_balanced():
    assert counts(split(labeled_ratio=0.25).labeled) == [20, 12, 8]
    assert counts(split(num_labels=12).labeled) == [4, 4, 4]
    uneven = counts(split(num_labels=14).labeled)
    assert sorted(uneven) == [4, 5, 5]
    assert {tuple(counts(split(num_labels=14, seed=s).labeled)) for s in range(20)} == {
        (4, 5, 5),
        (5, 4, 5),
        (5, 5, 4),
    }


def test_a_proportional_budget_gives_even_a_rare_class_one_label():
    labels = np.repeat([0, 1, 2], [500, 490, 10])
    assert counts(split(labels, labeled_ratio=0.005).labeled, labels) == [2, 1, 1]


@pytest.mark.parametrize("validation", ["split", "within_budget"])
@pytest.mark.parametrize("how", ["stratified", "random"])
@pytest.mark.parametrize("key", ["num_labels", "labeled_ratio"])
def test_with_one_seed_a_smaller_budget_is_a_subset_of_a_larger_one(key, how, validation):
    labels = np.random.default_rng(3).choice(3, 300, p=[0.5, 0.3, 0.2])
    last = Split(*(np.empty(0, np.int64),) * 3, "train", 300)
    for step in range(3, 13):
        budget = 8 * step if key == "num_labels" else step / 30
        made = split(labels, split=how, validation=validation, seed=7, **{key: budget})
        assert set(last.labeled.tolist()) < set(made.labeled.tolist())
        assert set(last.validation.tolist()) <= set(made.validation.tolist())
        last = made


def test_the_same_seed_gives_the_same_split_on_every_machine():
    # Worked out once; a change here would change every published split.
    labels = np.arange(40) % 2
    made = make_split(
        labels, ["a", "b"], DataSpec(num_labels=6, val_ratio=0.1), seed=5, has_val=False
    )
    assert made.validation.tolist() == [4, 8, 29, 31]
    assert made.labeled.tolist() == [5, 6, 20, 22, 27, 37]
    assert made.digest == "0d0c14f6ce2b"
    assert split(seed=1).digest == split(seed=1).digest != split(seed=2).digest


def test_the_stores_own_validation_part_is_used_and_then_nothing_is_held_out():
    made = split(has_val=True, num_labels=9)
    assert made.validation_part == "val" and len(made.validation) == 0
    assert len(made.unlabeled) == 200


def test_within_budget_takes_validation_out_of_the_labels_and_leaves_the_rest_in_the_pool():
    made = split(validation="within_budget", num_labels=30, val_ratio=0.2, has_val=True)
    assert counts(made.validation) == [2, 2, 2] and counts(made.labeled) == [8, 8, 8]
    assert made.validation_part == "train"
    assert len(made.unlabeled) == 194
    assert not set(made.validation.tolist()) & set(made.unlabeled.tolist())
    small = split(validation="within_budget", num_labels=6, val_ratio=0.01)
    assert counts(small.validation) == counts(small.labeled) == [1, 1, 1]


def test_a_random_split_is_a_plain_permutation():
    made = split(split="random", num_labels=60)
    assert len(made.labeled) == 60 and len(made.validation) == 40
    assert counts(made.labeled) != [20, 20, 20]


def test_budgets_that_cannot_work_are_refused_in_one_line():
    assert message(num_labels=2) == (
        "data.num_labels is 2, but must be at least 3 (one label for each of 3 classes)"
    )
    assert message(labeled_ratio=0.01) == (
        "data.labeled_ratio is 0.01, but must be at least 0.0188 (one label for each of 3 classes)"
    )
    assert message(num_labels=5, validation="within_budget") == (
        "data.num_labels is 5, but must be at least 6 "
        "(one label and one validation image for each of 3 classes)"
    )
    assert message(num_labels=500) == (
        "data.num_labels is 500, but the training pool has only 160 images"
    )
    assert message(num_labels=120) == (
        "data.num_labels is 120, which takes up to 40 images per class, but in the training pool "
        "cat has 32; at most 96 can be balanced; data.labeled_ratio=0.75 takes 120 in the classes' own shares, at "
        "least one of each"
    )


def test_a_random_split_that_leaves_classes_without_a_label_names_them():
    labels = np.repeat([0, 1, 2], [500, 498, 2])
    text = message(labels=labels, split="random", num_labels=10, has_val=True)
    assert text == (
        "data.num_labels is 10, but leaves cat without a label; it takes more labels; data.labeled_ratio=0.01 takes "
        "10 in the classes' own shares, at least one of each"
    )
    text = message(labels=labels, split="random", num_labels=6, has_val=True)
    assert text.endswith("; data.split=stratified takes 6, of each class")
    text = message(labels=labels, val_ratio=0.999)
    assert text.startswith("data.val_ratio is 0.999, but leaves no training image of ")


@pytest.mark.parametrize("how", ["stratified", "random"])
def test_of_500_to_25_to_1_the_refusal_names_what_then_works(how):
    labels = np.repeat([0, 1, 2], [1600, 80, 3])
    text = message(labels=labels, split=how, num_labels=100)
    ratio = float(text.partition("data.labeled_ratio=")[2].split()[0])
    made = counts(split(labels, labeled_ratio=ratio).labeled, labels)
    assert sum(made) >= 100 and min(made) >= 1


def test_the_least_ratio_a_message_names_is_accepted():
    assert counts(split(labeled_ratio=0.0188).labeled) == [1, 1, 1]


def test_a_saved_split_comes_back_the_same_and_a_changed_one_is_noticed():
    made = split(num_labels=30)
    record = json.loads(json.dumps(made.to_record()))
    again = Split.from_record(record)
    assert again.digest == made.digest
    for name in ("labeled", "unlabeled", "validation"):
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
        assert getattr(again, name).dtype == np.int64
    record["labeled"][0] += 1
    with pytest.raises(UserError, match=f"the saved split has digest {made.digest}, but its rows"):
        Split.from_record(record)


def test_the_fixed_test_part_is_stratified_and_never_takes_a_classs_only_image():
    labels = np.repeat([0, 1, 2], [50, 49, 1])
    train, test = hold_out(labels)
    assert np.bincount(labels[test], minlength=3).tolist() == [10, 10, 0]
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(100))


# ---- a harder task of a dataset: a long tail, and unlabeled images of other classes --------------

EVEN = np.repeat([0, 1, 2], 100)
TASK = np.repeat([0, 1, 2, -1], [50, 50, 50, 120])  # 120 images are of classes that the task lacks


def tailed(**data) -> Split:
    return split(EVEN, has_val=True, **data)


def test_an_imbalance_is_an_exponential_long_tail_of_the_training_pool():
    """Cui et al. 2019: 100, 100 * 25^(-1/2) and 100 / 25 images."""
    made = tailed(imbalance=25)
    assert counts(made.labeled, EVEN) == counts(made.unlabeled, EVEN) == [100, 20, 4]
    own = split(EVEN, imbalance=16)
    assert counts(own.validation, EVEN) == [20, 20, 20]
    assert counts(own.unlabeled, EVEN) == [80, 20, 5]


def test_a_whole_number_of_images_is_not_one_less_by_rounding():
    labels = np.repeat(np.arange(6), 64)
    made = split(labels, [*"abcdef"], has_val=True, imbalance=32)
    assert np.bincount(labels[made.unlabeled]).tolist() == [64, 32, 16, 8, 4, 2]


def test_classes_that_are_too_small_for_the_tail_make_all_of_it_smaller():
    labels = np.repeat([0, 1, 2], [100, 10, 100])
    assert counts(split(labels, has_val=True, imbalance=4).unlabeled, labels) == [20, 10, 5]


def test_labels_are_divided_in_the_tails_shares_and_each_class_has_one():
    assert counts(tailed(imbalance=25, num_labels=31).labeled, EVEN) == [25, 5, 1]
    assert counts(tailed(imbalance=25, labeled_ratio=0.25).labeled, EVEN) == [25, 5, 1]
    assert counts(tailed(imbalance=100, num_labels=10).labeled, EVEN) == [8, 1, 1]


def test_in_a_longer_tail_a_class_has_fewer_of_the_same_images():
    last = tailed()
    for ratio in (2, 5, 20, 100):
        made = tailed(imbalance=ratio)
        assert set(made.unlabeled.tolist()) < set(last.unlabeled.tolist())
        last = made
    small, large = (tailed(imbalance=20, num_labels=n) for n in (12, 40))
    assert set(small.labeled.tolist()) < set(large.labeled.tolist())
    np.testing.assert_array_equal(small.unlabeled, large.unlabeled)


def test_the_unlabeled_images_may_have_a_tail_of_their_own():
    made = tailed(unlabeled_imbalance=25, num_labels=12)
    assert counts(made.labeled, EVEN) == [4, 4, 4] and counts(made.unlabeled, EVEN) == [100, 20, 4]
    made = tailed(imbalance=25, unlabeled_imbalance=1, num_labels=31)
    assert counts(made.labeled, EVEN) == [25, 5, 1]
    assert counts(made.unlabeled, EVEN) == [100, 100, 100]


def test_within_budget_the_images_that_validate_are_no_unlabeled_ones_of_the_tail():
    made = tailed(imbalance=4, num_labels=56, validation="within_budget")
    assert counts(made.validation, EVEN) == [6, 3, 2] and counts(made.labeled, EVEN) == [26, 13, 6]
    assert counts(made.unlabeled, EVEN) == [94, 47, 23]
    assert not set(made.validation.tolist()) & set(made.unlabeled.tolist())


def test_a_tail_that_the_images_do_not_allow_names_the_longest_one_that_they_do():
    assert message(labels=EVEN, has_val=True, imbalance=101) == (
        "data.imbalance is 101, but must be at most 100: with the images of the training pool the last class has none"
    )
    labels = np.repeat([0, 1, 2], [100, 4, 100])
    assert "must be at most 16:" in message(labels=labels, has_val=True, unlabeled_imbalance=100)
    assert counts(split(labels, has_val=True, imbalance=16).labeled, labels) == [16, 4, 1]
    assert counts(tailed(imbalance=100).labeled, EVEN) == [100, 10, 1]


def test_a_budget_that_a_tail_cannot_give_says_so():
    assert message(labels=EVEN, has_val=True, imbalance=25, num_labels=125) == (
        "data.num_labels is 125, but the training pool has only 124 images with data.imbalance=25"
    )
    text = message(
        labels=EVEN, has_val=True, imbalance=25, num_labels=12, validation="within_budget"
    )
    assert text.startswith("data.num_labels is 12, but leaves cat with fewer than 2 labels; it ")
    ratio = float(text.partition("data.labeled_ratio=")[2].split()[0])
    made = tailed(imbalance=25, labeled_ratio=ratio, validation="within_budget")
    assert min(counts(made.labeled, EVEN)) >= 1


def test_images_of_other_classes_are_neither_labeled_nor_validation_images():
    made = split(TASK, num_labels=30, val_ratio=0.2)
    assert counts(made.validation, TASK) == counts(made.labeled, TASK) == [10, 10, 10]
    assert counts(made.unlabeled, TASK) == [40, 40, 40]


@pytest.mark.parametrize("num_labels", [9, 60])
def test_of_more_and_more_mismatch_there_are_as_many_unlabeled_images_and_the_labels_are_the_same(
    num_labels,
):
    """Oliver et al. 2018: what other classes do, and not what fewer images do."""
    plain = split(TASK, num_labels=num_labels)
    before: set[int] = set()
    for share, others in ((0, 0), (0.25, 30), (0.5, 60), (1, 120)):
        made = split(TASK, num_labels=num_labels, unlabeled_mismatch=share)
        np.testing.assert_array_equal(made.labeled, plain.labeled)
        np.testing.assert_array_equal(made.validation, plain.validation)
        labels = TASK[made.unlabeled]
        assert len(labels) == 120 and (labels < 0).sum() == others
        assert np.bincount(labels[labels >= 0], minlength=3).tolist() == [(120 - others) // 3] * 3
        outside = set(made.unlabeled[labels < 0].tolist())
        assert before <= outside
        before = outside


def test_the_number_of_unlabeled_images_is_what_both_kinds_can_give():
    few = TASK[:-90]  # 30 of other classes
    for share in (0, 0.1, 1):
        made = split(few, unlabeled_mismatch=share)
        assert len(made.unlabeled) == 30 and (few[made.unlabeled] < 0).sum() == round(share * 30)


def test_a_mismatch_without_other_classes_is_refused():
    assert message(unlabeled_mismatch=0.5) == (
        "data.unlabeled_mismatch is 0.5, but all images of the training pool are of data.classes"
    )


@pytest.mark.parametrize(
    "data", [{"imbalance": 9.0}, {"unlabeled_mismatch": 0.5, "imbalance": 3.0}, {}]
)
def test_a_saved_split_of_some_of_the_images_comes_back_the_same(data):
    made = split(TASK, num_labels=30, **data)
    record = json.loads(json.dumps(made.to_record()))
    again = Split.from_record(record)
    assert again.digest == made.digest
    np.testing.assert_array_equal(again.unlabeled, made.unlabeled)
    record["unlabeled"][0] += 1
    with pytest.raises(UserError, match="the saved split has digest"):
        Split.from_record(record)
