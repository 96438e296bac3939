"""What an encoder starts from: found, pinned by content, loaded whole or refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support.helpers import small_spec
from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import ModelSpec, digest
from tune_ssl.data.batch import Task
from tune_ssl.models import check_encoder, encoder_for, weights
from tune_ssl.models.encoders import build_encoder
from tune_ssl.models.weights import IMAGENET, pinned, statistics
from tune_ssl.study.trial import override

VIT, LITE, MOBILE = (
    f"timm:{name}"
    for name in ("vit_tiny_patch16_224", "tf_efficientnet_lite0", "mobilenetv3_small_050")
)
State = Mapping[str, Tensor]


def random_state(encoder: str = "small_cnn", channels: int = 3, side: int = 8) -> dict[str, Tensor]:
    """Random weights, BatchNorm's statistics among them."""
    torch.manual_seed(5)
    state = build_encoder(encoder, channels, "small", (side, side)).state_dict()
    return {
        name: torch.rand_like(value) if value.is_floating_point() else value + 7
        for name, value in state.items()
    }


def saved(path: Path, state: State) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.clone() for name, value in state.items()}, path)
    else:
        torch.save(dict(state), path)
    return path


def started(file: object, encoder: str = "small_cnn", channels: int = 3, side: int = 8) -> State:
    """The weights of the encoder that begins with `model.weights: file`."""
    model = pinned(ModelSpec(encoder=encoder, weights=str(file)))
    return encoder_for(Task(10, channels, side), model).state_dict()


def same(ours: State, theirs: State) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def refusal(do: Callable[[], object]) -> str:
    """What the one UserError says, whose key is model.weights; without the key."""
    with pytest.raises(UserError) as caught:
        do()
    (problem,) = caught.value.problems
    assert problem.key == "model.weights"
    assert "\n" not in str(problem)
    return problem.text


def before(state: State, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


# ---- files ---------------------------------------------------------------------------------------

HEAD = {"classifier.weight": torch.zeros(10, 128), "classifier.bias": torch.zeros(10)}
WAYS: dict[str, Callable[[State], Any]] = {
    "plain": dict,
    "module": lambda state: before(state, "module."),
    "encoder": lambda state: before(state, "encoder."),
    "backbone": lambda state: before(state, "backbone."),
    "two prefixes": lambda state: before(state, "module.backbone."),
    "a head beside": lambda state: {
        **HEAD,
        **before(state, "encoder."),
        "fc.weight": HEAD["classifier.bias"],
    },
}


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("way", WAYS)
def test_an_encoder_starts_with_the_very_weights_that_a_file_holds(way, suffix, tmp_path):
    state = random_state()
    assert same(started(saved(tmp_path / f"w.{suffix}", WAYS[way](state))), state)


@pytest.mark.parametrize("within", ["state_dict", "model", "teacher"])
def test_a_training_checkpoint_gives_the_network_within_it(within, tmp_path):
    state = random_state()
    torch.save({"epoch": 3, within: before(state, "module."), "lr": 0.1}, tmp_path / "w.pth")
    assert same(started(tmp_path / "w.pth"), state)


def test_a_file_in_torchs_old_format_is_read_as_well(tmp_path):
    state = random_state()
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    assert same(started(tmp_path / "w.pt"), state)


@pytest.mark.parametrize(
    "encoder, side",
    [("small_cnn", 8), ("resnet18", 8), ("timm:resnet18", 32), (VIT, 32), (LITE, 32)],
)
def test_a_first_layer_for_colour_is_summed_over_its_channels_for_grey_images(
    encoder, side, tmp_path
):
    state = random_state(encoder, side=side)
    found = started(saved(tmp_path / "w.pt", state), encoder, channels=1, side=side)
    changed = [name for name in found if found[name].shape != state[name].shape]
    (first,) = changed
    torch.testing.assert_close(found[first], state[first].sum(dim=1, keepdim=True))
    assert all(torch.equal(found[name], state[name]) for name in found if name != first)


@pytest.mark.parametrize("channels", [2, 5])
@pytest.mark.parametrize("encoder, side", [("small_cnn", 8), ("timm:resnet18", 32), (VIT, 32)])
def test_a_first_layer_for_colour_is_repeated_for_other_channels_and_keeps_its_scale(
    encoder, side, channels, tmp_path
):
    state = random_state(encoder, side=side)
    found = started(saved(tmp_path / "w.pt", state), encoder, channels=channels, side=side)
    (first,) = [name for name in found if found[name].shape != state[name].shape]
    for channel in range(channels):
        expected = state[first][:, channel % 3] * 3 / channels
        torch.testing.assert_close(found[first][:, channel], expected)
    assert all(torch.equal(found[name], state[name]) for name in found if name != first)


@pytest.mark.parametrize("encoder", [LITE, MOBILE, VIT])
@pytest.mark.parametrize("leaf", [True, False], ids=["own leaf names", "numbers alone"])
def test_names_that_are_all_strange_are_taken_in_order_where_the_shapes_agree(
    encoder, leaf, tmp_path
):
    state = random_state(encoder, side=32)
    strange = {
        f"layer_{number:03d}" + f".{name.rpartition('.')[2]}" * leaf: value
        for number, (name, value) in enumerate(state.items())
    }
    strange |= {"top.weight": torch.zeros(10, 5)}
    found = started(saved(tmp_path / "w.pt", strange), encoder, side=32)
    for name, value in found.items():
        assert value.ndim == 0 or torch.equal(value, state[name]), name


def test_a_file_from_before_batchnorm_counted_its_batches_loads(tmp_path):
    state = random_state()
    old = {name: value for name, value in state.items() if value.is_floating_point()}
    found = started(saved(tmp_path / "w.pt", old))
    assert all(torch.equal(found[name], value) for name, value in old.items())


def test_strange_names_are_not_taken_in_order_where_one_that_is_known_would_move(tmp_path):
    """All shapes agree, but the one known name stands in another place."""
    state = random_state("keras_cnn", channels=128)
    assert len({value.shape for value in state.values()}) == 2
    names = [*state]
    swapped = {f"x{i}": value for i, value in enumerate(state.values())}
    del swapped["x4"]
    moved = {names[0]: state[names[4]], **swapped, "x9": state[names[0]]}
    text = refusal(lambda: started(saved(tmp_path / "w.pt", moved), "keras_cnn", channels=128))
    assert f"{names[2]} is missing" in text


@pytest.mark.parametrize("prefix", ["", "encoder.", "module."])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transformers_position_embedding_is_interpolated_to_another_image_size(
    prefix, channels, tmp_path
):
    state = random_state(VIT, side=32)
    found = started(saved(tmp_path / "w.pt", before(state, prefix)), VIT, channels, side=64)
    assert state["pos_embed"].shape == (1, 1 + 2 * 2, 192)
    assert found["pos_embed"].shape == (1, 1 + 4 * 4, 192)
    expected = timm.layers.resample_abs_pos_embed(state["pos_embed"], [4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(found["pos_embed"], expected)
    torch.testing.assert_close(found["pos_embed"][:, 0], state["pos_embed"][:, 0])  # of cls_token
    for name in ("cls_token", "blocks.5.attn.qkv.weight", "norm.weight"):
        assert torch.equal(found[name], state[name])


def test_a_whole_trial_starts_with_the_file_and_trains(tmp_path):
    from tune_ssl.training.loop import train

    state = random_state(channels=1)
    still = {"model.weights": str(saved(tmp_path / "w.pt", state)), "optim.ema_decay": 0.0}
    spec = small_spec("supervised", **still, **{"model.freeze": "all", "budget.steps": 2})
    (report,) = train(spec)
    assert same(report.trained.network.encoder.state_dict(), state)


# ---- pinned by content ---------------------------------------------------------------------------


def test_a_spec_holds_the_absolute_path_and_the_digest_of_the_content(tmp_path, monkeypatch):
    import hashlib

    monkeypatch.chdir(tmp_path)
    saved(Path("w.pt"), random_state())
    expected = hashlib.sha256(Path("w.pt").read_bytes()).hexdigest()[:12]
    model = pinned(ModelSpec(weights="w.pt"))
    assert model.weights == f"{tmp_path / 'w.pt'}#{expected}"
    assert pinned(model) == model
    spec = small_spec("supervised", **{"model.weights": "w.pt", "model.encoder": "resnet18"})
    assert spec.model.weights == model.weights


def test_other_content_is_another_spec_and_is_refused_under_the_old_one(tmp_path):
    path = saved(tmp_path / "w.pt", random_state())
    spec = small_spec("supervised", **{"model.weights": str(path)})
    first = spec.model.weights.rpartition("#")[2]
    saved(path, before(random_state(), "x."))
    os.utime(path, ns=(1, 1))
    now = pinned(ModelSpec(weights=str(path))).weights.rpartition("#")[2]
    assert now != first
    text = refusal(lambda: override(spec, {"optim.lr": 0.1}))
    assert text == (
        f"is {path}, which began with digest {first} and has digest {now} now: another file is "
        "another study"
    )
    other = small_spec("supervised", **{"model.weights": str(path)})
    assert digest(other) != digest(spec)
    path.unlink()
    assert refusal(lambda: override(spec, {"optim.lr": 0.1})) == (
        f"is {path}, which began with digest {first} and is gone: another file is another study"
    )


def test_two_copies_of_a_file_have_one_digest(tmp_path):
    first = saved(tmp_path / "a.safetensors", random_state())
    (tmp_path / "b.safetensors").write_bytes(first.read_bytes())
    found = {pinned(ModelSpec(weights=str(tmp_path / f"{n}.safetensors"))).weights for n in "ab"}
    assert len({text.rpartition("#")[2] for text in found}) == 1


# ---- runs and saved models -----------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """runs/digits with two conditions, of which the second has a saved model."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/digits")
    (folder / "models/1").mkdir(parents=True)
    ids = ["data.num_labels=20", "data.num_labels=50"]
    (folder / "study.yaml").write_text(
        yaml.safe_dump({"conditions": [{"id": name} for name in ids]})
    )
    saved(folder / "models/1/model.safetensors", WAYS["a head beside"](random_state()))
    card = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (folder / "models/1/model.json").write_text(json.dumps(card))
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "digits",
        "runs/digits",
        "digits:data.num_labels=50",
        "runs/digits:data.num_labels=50",
        "runs/digits/models/1",
    ],
)
def test_a_runs_saved_model_is_found_by_the_runs_name_its_condition_or_its_folder(text, run):
    assert same(started(text), random_state())
    path = (run / "models/1/model.safetensors").resolve()
    assert pinned(ModelSpec(weights=text)).weights.startswith(f"{path}#")
    assert statistics(pinned(ModelSpec(weights=text)), 3) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    "text, says",
    [
        (
            "digits:data.num_labels=20",
            "is runs/digits, which has no saved model of condition data.num_labels=20: the first fresh seed "
            "of a confirmation saves it",
        ),
        (
            "digits:data.num_label=50",
            "is runs/digits:data.num_label=50, but runs/digits has no such condition; did you mean "
            "'data.num_labels=50'? (known: data.num_labels=20, data.num_labels=50)",
        ),
        (
            "digit",
            "is 'digit', but must be none, pretrained, a weights file, a saved model's folder, RUN or "
            "RUN:CONDITION; did you mean 'digits'?",
        ),
        (
            "pretraind",
            "is 'pretraind', but must be none, pretrained, a weights file, a saved model's folder, RUN or "
            "RUN:CONDITION; did you mean 'pretrained'?",
        ),
        (
            "weights/resnet.pt",
            "is 'weights/resnet.pt', but must be none, pretrained, a weights file, a saved model's folder, "
            "RUN or RUN:CONDITION",
        ),
    ],
)
def test_what_is_not_there_is_one_line_with_the_nearest_name(text, says, run):
    assert refusal(lambda: pinned(ModelSpec(weights=text))) == says


def test_a_run_that_saved_no_model_says_when_one_is_saved(run):
    for path in (run / "models/1").iterdir():
        path.unlink()
    assert refusal(lambda: pinned(ModelSpec(weights="digits"))) == (
        "is runs/digits, which has no saved model: the first fresh seed of a confirmation saves it"
    )


# ---- bad files -----------------------------------------------------------------------------------


class RunsCode:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["torch.save", "torch.save of old", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(how, tmp_path):
    ran, path = tmp_path / "ran", tmp_path / "w.pt"
    content = {**random_state(), "more": RunsCode(ran)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch.save")
    assert refusal(lambda: started(path)) == (
        f"is {path}, which would run code when it is loaded: save its tensors alone, as safetensors"
    )
    assert not ran.exists()
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert ran.exists(), "the file is a real one"


def test_a_whole_network_that_torch_saved_is_code_and_is_refused(tmp_path):
    torch.save(build_encoder("small_cnn", 3, "small", (8, 8)), tmp_path / "w.pt")
    assert "would run code when it is loaded" in refusal(lambda: started(tmp_path / "w.pt"))


@pytest.mark.parametrize("share", [0, 0.0001, 0.5, 0.9999])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_torn_file_is_one_line(suffix, share, tmp_path):
    path = saved(tmp_path / f"w.{suffix}", random_state())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    text = refusal(lambda: started(path))
    assert text in (
        f"is {path}, which is torn",
        f"is {path}, which is torn, or neither safetensors nor a file of torch.save",
    )


@pytest.mark.parametrize("content", [b"# How to train\n\nFirst of all", b"lr: 0.1\n", b"\x00" * 99])
def test_a_file_of_another_kind_is_one_line(content, tmp_path):
    path = tmp_path / "readme.md"
    path.write_bytes(content)
    assert refusal(lambda: started(path)) == (
        f"is {path}, which is torn, or neither safetensors nor a file of torch.save"
    )


@pytest.mark.parametrize("content", [[1, 2], {"lr": 0.1}, torch.zeros(3)])
def test_a_file_without_named_tensors_is_one_line(content, tmp_path):
    path = tmp_path / "w.pt"
    torch.save(content, path)
    assert refusal(lambda: started(path)) == f"is {path}, which holds no named tensors"


def test_weights_of_another_network_name_what_does_not_fit(tmp_path):
    path = saved(tmp_path / "w.pt", random_state())
    wide = build_encoder("small_cnn", 3, "small", (8, 8)).state_dict()
    wide["6.weight"] = torch.zeros(256, 64, 3, 3)
    del wide["4.bias"]
    other = saved(tmp_path / "wide.pt", wide)
    assert refusal(lambda: started(other)) == (
        f"is {other}, which does not fit small_cnn: 4.bias is missing; "
        "6.weight is (256, 64, 3, 3), not (128, 64, 3, 3)"
    )
    text = refusal(lambda: started(path, "resnet18"))
    start, _, listed = text.partition(": ")
    assert start == f"is {path}, which does not fit resnet18"
    names = listed.split("; ")
    count = len(build_encoder("resnet18", 3, "small", (8, 8)).state_dict())
    assert len(names) == 10 and names[0] == "conv1.weight is missing"
    assert names[-1].endswith(f" and {count - 10} more")


def test_weights_that_do_not_fit_change_nothing_of_the_encoder(tmp_path):
    state = random_state()
    del state["7.running_var"]
    model = pinned(ModelSpec(weights=str(saved(tmp_path / "w.pt", state))))
    encoder = build_encoder("small_cnn", 3, "small", (8, 8))
    kept = {name: value.clone() for name, value in encoder.state_dict().items()}
    refusal(lambda: weights.load_weights(encoder, model, 3))
    assert same(encoder.state_dict(), kept)


# ---- timm's own ----------------------------------------------------------------------------------


def tagged(encoder: str, text: str = "pretrained") -> str:
    return pinned(ModelSpec(encoder=encoder, weights=text)).weights


def test_pretrained_is_pinned_with_timms_first_tag_that_of_the_name_or_the_one_asked_for():
    assert tagged("timm:resnet18") == "pretrained:a1_in1k"
    assert tagged("timm:resnet18.tv_in1k") == "pretrained:tv_in1k"
    assert tagged("timm:resnet18", "pretrained:tv_in1k") == "pretrained:tv_in1k"
    assert tagged(LITE) == "pretrained:in1k"


def test_an_encoders_name_may_have_a_tag_that_timm_knows():
    check_encoder("timm:resnet18.tv_in1k")
    with pytest.raises(UserError) as caught:
        check_encoder("timm:resnet18.tv_in1")
    assert str(caught.value).startswith(
        "model.encoder is 'timm:resnet18.tv_in1', but must be a known timm model; did you mean "
        "'timm:resnet18.tv_in1k'? (known: timm:resnet18, timm:resnet18.a1_in1k, "
    )


@pytest.mark.parametrize(
    "encoder, text, says",
    [
        (
            "resnet18",
            "pretrained",
            "is 'pretrained', which timm's encoders have, but resnet18 is none; give a weights file, or an "
            "encoder such as timm:resnet18",
        ),
        (
            "timm:efficientnet_b8",
            "pretrained",
            "is 'pretrained', but timm has no weights of efficientnet_b8",
        ),
        (
            "timm:resnet18",
            "pretrained:a1_in1",
            "has no weights resnet18.a1_in1; did you mean 'a1_in1k'? (known: a1_in1k, a2_in1k, a3_in1k, "
            "fb_ssl_yfcc100m_ft_in1k, fb_swsl_ig1b_ft_in1k, gluon_in1k, tv_in1k)",
        ),
        (
            "timm:resnet18.tv_in1k",
            "pretrained:a1_in1k",
            "is 'pretrained:a1_in1k', but model.encoder is timm:resnet18.tv_in1k",
        ),
    ],
)
def test_weights_that_timm_does_not_have_are_one_line(encoder, text, says):
    assert refusal(lambda: tagged(encoder, text)) == says


@pytest.mark.parametrize("known_offline", [True, False])
def test_without_a_network_pretrained_says_at_once_what_would_help(
    known_offline, tmp_path, monkeypatch
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", known_offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(weights.urllib.request, "getproxies", dict)
    probed = []
    monkeypatch.setattr(weights, "probe", lambda address, s: probed.append(address) or "no route")
    model = pinned(ModelSpec(encoder=MOBILE, weights="pretrained"))
    began = time.monotonic()
    text = refusal(lambda: encoder_for(Task(10, 3, 32), model))
    assert time.monotonic() - began < 10
    name = "mobilenetv3_small_050.lamb_in1k"
    assert text.startswith(f"is 'pretrained', but {name} cannot be fetched: ")
    assert text.endswith(
        f". On a machine with a network, python -c \"import timm; timm.create_model('{name}', pretrained=True)\" "
        "brings it into the cache that HF_HOME names; or give a file: model.weights=FILE"
    )
    assert [address.rpartition(":")[2] for address in probed] == ["443"]
    assert constants.HF_HUB_OFFLINE is known_offline, "as it was before"


def test_what_timm_fetches_is_loaded_under_the_encoders_names(monkeypatch):
    """timm's cache is replaced by random weights: nothing is fetched in a test."""
    state, asked = random_state(MOBILE, side=32), []
    create = timm.create_model

    def fetched(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        network = create(name, pretrained=False, **options)
        if pretrained:
            asked.append(name)
            network.load_state_dict(state)
        return network

    monkeypatch.setattr(timm, "create_model", fetched)
    monkeypatch.setattr(weights, "probe", lambda address, seconds: None)
    assert same(started("pretrained", MOBILE, side=32), state)
    grey = started("pretrained", MOBILE, channels=1, side=32)
    torch.testing.assert_close(
        grey["conv_stem.weight"], state["conv_stem.weight"].sum(dim=1, keepdim=True)
    )
    assert asked == ["mobilenetv3_small_050.lamb_in1k"] * 2


# ---- how images are normalised -------------------------------------------------------------------

TF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_images_are_normalised_as_the_weights_were_trained(tmp_path):
    file = str(saved(tmp_path / "w.pt", random_state()))
    assert statistics(ModelSpec(), 3) is None  # the data's own
    assert statistics(pinned(ModelSpec(weights=file)), 3) == IMAGENET
    assert statistics(pinned(ModelSpec(encoder="timm:resnet18", weights=file)), 3) == IMAGENET
    assert statistics(pinned(ModelSpec(encoder=LITE, weights="pretrained")), 3) == TF
    assert statistics(pinned(ModelSpec(encoder=LITE, weights=file)), 3) == TF


def test_what_lies_beside_the_weights_goes_before_timm_and_the_spec_before_all(tmp_path):
    file = str(saved(tmp_path / "w.pt", random_state()))
    (tmp_path / "model.json").write_text('{"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}')
    beside = pinned(ModelSpec(encoder=LITE, weights=file))
    assert statistics(beside, 3) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    own = beside.model_copy(update={"mean": [0.0, 0.5, 1.0], "std": [1.0, 1.0, 1.0]})
    assert statistics(own, 3) == ((0.0, 0.5, 1.0), (1.0, 1.0, 1.0))
    (tmp_path / "model.json").write_text("{")
    assert statistics(beside, 3) == TF


def test_grey_images_are_normalised_with_the_mean_of_the_colours_and_one_value_serves_all(tmp_path):
    file = pinned(ModelSpec(weights=str(saved(tmp_path / "w.pt", random_state()))))
    (mean,), (std,) = statistics(file, 1)
    assert mean == pytest.approx((0.485 + 0.456 + 0.406) / 3)
    assert std == pytest.approx((0.229 + 0.224 + 0.225) / 3)
    one = ModelSpec(mean=[0.2], std=[0.3])
    assert statistics(one, 3) == ((0.2, 0.2, 0.2), (0.3, 0.3, 0.3))
    assert statistics(one, 1) == ((0.2,), (0.3,))
    with pytest.raises(UserError) as caught:
        statistics(ModelSpec(mean=[0.2] * 3, std=[0.3] * 3), 4)
    assert str(caught.value) == "model.mean has 3 channels, but the images have 4"


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_images_of_other_channels_take_the_mean_over_those_of_the_weights(channels, tmp_path):
    file = pinned(ModelSpec(weights=str(saved(tmp_path / "w.pt", random_state()))))
    mean, std = statistics(file, channels)
    assert mean == pytest.approx((0.449,) * channels, abs=1e-3)
    assert std == pytest.approx((0.226,) * channels, abs=1e-3)
    own = file.model_copy(update={"mean": [0.1] * channels, "std": [0.2] * channels})
    assert statistics(own, channels) == ((0.1,) * channels, (0.2,) * channels)


def test_a_mean_without_a_deviation_is_refused():
    with pytest.raises(UserError, match="must have both, of equal length, or neither"):
        small_spec("supervised", **{"model.mean": [0.5]})


def test_a_trial_sees_its_images_as_the_spec_says(tmp_path):
    from tune_ssl.training.loop import train

    spec = small_spec("supervised", **{"model.mean": [0.25], "model.std": [0.5], "budget.steps": 1})
    (report,) = train(spec)
    data = report.trained.data
    assert (data.mean, data.std) == ((0.25,), (0.5,))
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    torch.testing.assert_close(data.normalize(pixels).flatten(), torch.tensor([-0.5, 1.5]))
