"""Specs: strict types, nothing unknown, frozen, and a digest of their content."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from tune_ssl.base.spec import (
    UNBALANCED,
    BudgetSpec,
    ComputeSpec,
    DataSpec,
    OptimPart,
    OptimSpec,
    StudySpec,
    digest,
)
from tune_ssl.study.messages import validation_problems


def messages(spec, raw) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        spec.model_validate(raw)
    return [str(problem) for problem in validation_problems(caught.value, spec, raw)]


@pytest.mark.parametrize(
    "spec, raw, expected",
    [
        (OptimSpec, {"lr": -1}, "lr is -1, but must be greater than 0"),
        (OptimSpec, {"lr": "0.1"}, "lr is '0.1', but must be a number"),
        (OptimSpec, {"lr": None}, "lr is null, but must be a number"),
        (OptimSpec, {"lr": float("nan")}, "lr is nan, but must be a finite number"),
        (OptimSpec, {"momentum": 1}, "momentum is 1, but must be less than 1"),
        (OptimSpec, {"nesterov": 1}, "nesterov is 1, but must be true or false"),
        (OptimSpec, {"grad_clip": [1]}, "grad_clip is [1], but must be a number"),
        (
            OptimSpec,
            {"name": "adamm"},
            "name is 'adamm', but must be 'adamw', 'adam' or 'sgd'; did you mean 'adam'?",
        ),
        (DataSpec, {"batch_size": 8.0}, "batch_size is 8.0, but must be a whole number"),
        (DataSpec, {"batch_size": True}, "batch_size is true, but must be a whole number"),
        (DataSpec, {"labeled_ratio": 0}, "labeled_ratio is 0, but must be greater than 0"),
        (DataSpec, {"labeled_ratio": 1.5}, "labeled_ratio is 1.5, but must be at most 1"),
        (DataSpec, {"root": 3}, "root is 3, but must be a text"),
        (DataSpec, {"image_size": 4}, "image_size is 4, but must be at least 8"),
        (
            DataSpec,
            {"labeled_ratio": 0.5, "num_labels": 9},
            "has labeled_ratio 0.5 and num_labels 9, but must have at most one of them",
        ),
        (BudgetSpec, {"steps": 0}, "steps is 0, but must be greater than 0 or a mapping"),
        (BudgetSpec, {"steps": "x"}, "steps is 'x', but must be a whole number or a mapping"),
        (BudgetSpec, {"steps": {"train": 0}}, "steps.train is 0, but must be greater than 0"),
        (OptimPart, {"lr": 0}, "lr is 0, but must be greater than 0"),
        (OptimPart, {"momentum": 1}, "momentum is 1, but must be less than 1"),
        (OptimPart, {"grad_clip": 1}, "grad_clip is not a known key"),
        (ComputeSpec, {"cache": "no"}, "cache is 'no', but must be true or false"),
        (ComputeSpec, {"device": "gpu"}, "device is 'gpu', but must be auto, cpu, cuda or"),
        (StudySpec, {"seeds": [0, 1, 0]}, "seeds is [0, 1, 0], but must have each seed once"),
        (StudySpec, {"seeds": []}, "seeds is [], but must be a list of at least 1"),
        (StudySpec, {"seeds": [0, -1]}, "seeds.1 is -1, but must be at least 0"),
        (StudySpec, {"seeds": 3}, "seeds is 3, but must be a list"),
        (
            StudySpec,
            {"tuning_seed": 2},
            "seeds is [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], but must not have the tuning_seed",
        ),
        (StudySpec, {"gpus_per_trial": "all"}, "is 'all', but must be a number or 'auto'"),
        (StudySpec, {"name": "../a"}, "name is '../a', but must be up to 100 letters, digits"),
        (StudySpec, {"num_trails": 3}, "num_trails is not a known key; did you mean 'num_trials'?"),
        (StudySpec, {3: 3}, "3 is not a known key (known: "),
        (StudySpec, 3, "is 3, but must be a mapping"),
    ],
)
def test_each_wrong_value_is_one_line_in_our_own_words(spec, raw, expected):
    [message] = messages(spec, raw)
    assert expected in message
    assert "Input" not in message and "type=" not in message and "constrained" not in message


def test_defaults_are_validated_too_and_sound():
    for spec in (BudgetSpec, ComputeSpec, DataSpec, OptimPart, OptimSpec, StudySpec):
        assert spec.model_validate(spec().model_dump()) == spec()


def test_an_optimizer_part_has_a_key_for_each_setting_but_those_of_the_whole_network():
    whole = {"grad_clip", "ema_decay", "encoder", "head"}
    assert set(OptimPart.model_fields) == set(OptimSpec.model_fields) - whole
    assert not OptimPart().model_dump(exclude_none=True)
    assert OptimSpec().of("train") == OptimSpec()


def test_a_spec_never_changes():
    with pytest.raises(ValidationError):
        OptimSpec().lr = 1.0


def test_a_whole_number_is_the_same_float_and_has_the_same_digest():
    assert digest(OptimSpec(lr=1)) == digest(OptimSpec(lr=1.0)) != digest(OptimSpec(lr=1.5))


def test_a_later_key_is_no_part_of_the_digest_where_it_is_off():
    """So that records of runs that knew no such key have the digests of today."""
    assert digest(DataSpec()) == "da3cc91105a2"
    assert digest(DataSpec(num_labels=40, split_seed=3)) == "02b81a9c856a"
    assert digest(ComputeSpec()) == "7fbd5d8c2a0a"
    assert digest(ComputeSpec(tf32=True)) != digest(ComputeSpec(tf32=False))
    assert not set(UNBALANCED) & set(DataSpec().model_dump())
    hard = {
        "classes": ["a", "b"],
        "imbalance": 10.0,
        "unlabeled_imbalance": 1.0,
        "unlabeled_mismatch": 0.0,
    }
    spec = DataSpec(**hard)
    assert DataSpec(**spec.model_dump()) == spec and hard.items() <= spec.model_dump().items()
    assert {*hard} == {*UNBALANCED}


def test_a_class_that_is_named_with_a_number_may_be_written_as_one():
    assert DataSpec(classes=[3, "cat"]).classes == ["3", "cat"]


def test_a_digest_is_the_same_in_every_process_and_in_any_order_of_keys():
    here = digest({"b": [1, 2.5, None], "a": {"é": True}})
    assert here == digest({"a": {"é": True}, "b": [1, 2.5, None]})
    code = "from tune_ssl.base.spec import digest; print(digest({'b': [1, 2.5, None], 'a': {'é': True}}))"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONUTF8": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == here
