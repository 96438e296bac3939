"""The contract of every method: what the loop may rely on, checked for each file in tune_ssl/methods.

Then what single methods promise.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, get_args

import pytest
import torch
from torch import nn

from tests.support.helpers import small_spec
from tune_ssl.base.errors import UserError
from tune_ssl.base.spec import ModelSpec
from tune_ssl.data.batch import Batch, Task
from tune_ssl.data.loading import Data, Loader, load_data
from tune_ssl.methods import find_method, measures, method_names
from tune_ssl.methods.base import Ratio, Stage
from tune_ssl.methods.fixmatch import pseudo_labels, target_diagnostics
from tune_ssl.methods.simsiam import SimSiamPretrain
from tune_ssl.methods.supervised import balance_of
from tune_ssl.study.trial import TrialSpec
from tune_ssl.training.loop import Collapsed, train
from tune_ssl.training.optimizers import build_optimizers
from tune_ssl.training.stepper import Stepper
from tune_ssl.tuning.test_data import measure_test

CPU = torch.device("cpu")


def choices(name: str) -> list[dict[str, str]]:
    """Every combination of options that changes which stages a method has."""
    fields = find_method(name).Spec.model_fields
    shaping = [option for option in ("transfer", "init") if option in fields]
    values = [get_args(fields[option].annotation) for option in shaping]
    return [dict(zip(shaping, chosen, strict=True)) for chosen in product(*values)]


CHOICES = [
    pytest.param(name, chosen, id="-".join([name, *chosen.values()]))
    for name in method_names()
    for chosen in choices(name)
]


def distinct() -> list[Any]:
    """Of CHOICES the first one for each sequence of stages: methods share those after a pretraining."""
    found: dict[tuple[type, ...], Any] = {}
    for choice in CHOICES:
        name, chosen = choice.values
        found.setdefault(tuple(map(type, spec_of(name, chosen).stages())), choice)
    return list(found.values())


def spec_of(name: str, chosen: dict[str, str], **values: Any) -> TrialSpec:
    return small_spec(name, **{f"method.{k}": v for k, v in chosen.items()}, **values)


def loader_of(spec: TrialSpec, stage: Stage[Any], data: Data) -> Loader:
    return Loader(data, spec.data, stage.labeled_views, stage.unlabeled_views, seed=0)


def started(spec: TrialSpec, data: Data) -> Iterator[tuple[Stage[Any], Any, Loader]]:
    """Each stage with its network, ready for the first step; the next one starts from that network."""
    network: nn.Module | None = None
    for stage in spec.stages():
        network = stage.build(data.task, spec.model, network)
        loader = loader_of(spec, stage, data)
        with torch.no_grad():
            stage.start(network.train(), loader.sample())
        yield stage, network, loader
        network.requires_grad_(True)


def same(ours: nn.Module, theirs: nn.Module | dict[str, torch.Tensor]) -> bool:
    """Whether all weights and statistics are bit-identical."""
    other = theirs.state_dict() if isinstance(theirs, nn.Module) else theirs
    own = ours.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)


def copied(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


@pytest.mark.parametrize("name, chosen", CHOICES)
def test_every_stage_returns_exactly_its_loss_terms_as_finite_scalars_with_gradients(name, chosen):
    spec = spec_of(name, chosen)
    for stage, network, loader in started(spec, load_data(spec.data, 0, CPU)):
        if stage.fits:  # in tests/methods/test_classical.py
            continue
        batch = loader.next()
        assert len(batch.labeled) == len(stage.labeled_views)
        assert len(batch.unlabeled) == len(stage.unlabeled_views)
        out = stage.step(network, batch)
        assert tuple(out.losses) == stage.loss_terms
        for term, loss in out.losses.items():
            assert loss.shape == () and torch.isfinite(loss) and loss.requires_grad, term
        for term, value in out.diagnostics.items():
            for number in value if isinstance(value, Ratio) else [value]:
                assert number.shape == () and not number.requires_grad, term
        assert set(stage.floors) <= set(out.diagnostics)


@pytest.mark.parametrize("name", method_names())
def test_a_method_has_a_default_weight_for_each_term_of_its_stages_and_no_other(name):
    method, found = find_method(name), set()
    for chosen in choices(name):
        terms = [term for stage in spec_of(name, chosen).stages() for term in stage.loss_terms]
        assert len(set(terms)) == len(terms), "a term belongs to one stage"
        found.update(terms)
    assert found == set(method.losses)
    assert method.name == name and method.Spec.model_fields["name"].default == name


@pytest.mark.parametrize("name", method_names())
def test_optimizer_parts_are_the_stages_and_parts_that_exist(name):
    method, found = find_method(name), {stage.name for stage in find_method(name).stage_types}
    data = load_data(small_spec(name).data, 0, CPU)
    for chosen in choices(name):
        spec = spec_of(name, chosen)
        for stage, network, _ in started(spec, data):
            parts = stage.parts(network)
            assert set(parts) <= set(method.optim_parts)
            found.update(parts)
            trained = [
                parameter
                for _, optimizer in build_optimizers(spec.optim, stage, network).values()
                for group in optimizer.param_groups
                for parameter in group["params"]
            ]
            assert len(set(map(id, trained))) == len(trained)
            learning = [p for p in network.parameters() if p.requires_grad]
            assert set(map(id, trained)) == set(map(id, learning))
    assert set(method.optim_parts) <= found


@pytest.mark.parametrize("name, chosen", CHOICES)
def test_what_a_stage_measures_is_declared_and_stands_in_for_nothing_else(name, chosen):
    stages = spec_of(name, chosen).stages()
    for stage in stages:
        keys = {key for evaluator in stage.evaluators for key in measures.MEASURED[evaluator]}
        assert stage.stand_in is None or stage.stand_in in keys
    assert "classifier" in stages[-1].evaluators
    options = set(find_method(name).Spec.model_fields)
    options |= {f"model.{key}" for key in ModelSpec.model_fields}
    assert all(set(stage.shaped_without) <= options for stage in stages)


@pytest.mark.parametrize(
    "channels, size", [(3, (24, 24)), (2, (17, 8)), (5, (24, 40))], ids=["3", "2", "5"]
)
@pytest.mark.parametrize("name, chosen", distinct())
def test_every_method_predicts_for_images_of_another_size_and_number_of_channels(
    name, chosen, channels, size
):
    spec, network = spec_of(name, chosen), None
    for stage in spec.stages():
        network = stage.build(Task(4, channels, *size), spec.model, network)
        if not stage.evaluators:
            continue
        prediction = stage.predict(network.eval(), torch.zeros(2, channels, *size))
        assert prediction.features_ND.ndim == 2 and len(prediction.features_ND) == 2
        for needed, outputs in (
            ("classifier", prediction.logits_NK),
            ("clusters", prediction.clusters_NK),
        ):
            assert outputs is None or outputs.shape == (2, 4)
            assert outputs is not None or needed not in stage.evaluators


# ---- kmeans, soft_kmeans -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, init", [("kmeans", "kmeans++"), ("kmeans", "random"), ("soft_kmeans", "labeled_means")]
)
def test_every_option_of_the_clustering_methods_trains(name, init):
    spec = small_spec(
        name,
        **{
            "method.centroid_init": init,
            "method.cluster_to_class": "raw",
            "method.cluster_all": True,
        },
    )
    last = list(train(spec))[-1]
    assert last.trained.network.centroids.cluster_of_class.tolist() == list(range(10))
    assert set(last.metrics) >= {
        "diag/cluster_entropy",
        "diag/largest_cluster_share",
        "val/cluster_class_accuracy",
        "val/cluster_nmi",
        "val/cluster_accuracy",
    }


TAIL = {"data.imbalance": 20}
OTHERS = {"data.classes": ["8", "3", "5", "0"], "data.unlabeled_mismatch": 0.5}
CLASSICAL = {"model.encoder": "pixels"}


@pytest.mark.parametrize(
    "name, values",
    [
        *[pytest.param(name, TAIL | OTHERS, id=name) for name in method_names()],
        pytest.param("fixmatch", TAIL, id="fixmatch-tail"),
        pytest.param("fixmatch", OTHERS, id="fixmatch-others"),
    ],
)
def test_a_method_trains_on_a_long_tail_and_beside_images_of_other_classes(name, values):
    fits = all(stage.fits for stage in find_method(name).stage_types)
    spec = small_spec(name, **values, **(CLASSICAL if fits else {}), **{"budget.steps": 4})
    trained = list(train(spec))[-1].trained
    data = trained.data
    classes = 4 if "data.classes" in values else 10
    assert data.task.num_classes == classes
    assert trained.evaluate(data.sets.validation, "val")["val/classes"] == classes
    sizes = torch.bincount(torch.from_numpy(data.sets.labeled.labels)).tolist()
    assert len(sizes) == classes and min(sizes) >= 1
    assert sizes == [10] * 4 if values is OTHERS else sizes[0] > 8 * sizes[-1]
    others = (data.sets.unlabeled.hidden_labels == -1).mean()
    assert others == pytest.approx(0.5 if "data.classes" in values else 0, abs=0.01)
    measured = measure_test(trained)["result"]
    assert len(measured["test/confusion"]) == classes


def test_a_pseudo_label_of_an_image_of_another_class_is_neither_right_nor_wrong():
    weak_UK = torch.tensor([[9.0, 0, 0], [9.0, 0, 0], [0, 9.0, 0], [0, 9.0, 0]])
    hidden_U = torch.tensor([0, -1, 2, -1])
    found = target_diagnostics(pseudo_labels(weak_UK, 0.9), hidden_U)
    right, known = found["pseudo_label_accuracy"]
    assert (int(right), int(known), float(found["mask_rate"])) == (1, 2, 1.0)


def test_matched_targets_follow_the_labels_when_cluster_indices_are_shuffled():
    """Permuting the centroids must not change what `matched` teaches, and must change `raw`."""
    changes = {}
    for mode in ("matched", "raw"):
        spec = small_spec(
            "soft_kmeans", **{"method.cluster_to_class": mode, "method.match_every": 1}
        )
        data = load_data(spec.data, 0, CPU)
        stage = find_method("soft_kmeans").stages(spec.method)[0]
        torch.manual_seed(0)
        network = stage.build(data.task, spec.model, None).eval()
        loader = Loader(data, spec.data, stage.labeled_views, stage.unlabeled_views, seed=0)
        with torch.no_grad():
            stage.start(network, loader.sample())
        centers = network.centroids.centers_KD.clone()
        sample = loader.sample()
        (labeled, labels), unlabeled = next(sample.labeled()), next(sample.unlabeled())
        batch = Batch((labeled,), labels, (unlabeled, unlabeled), torch.full((len(unlabeled),), -1))
        first = stage.step(network, batch).losses["cluster"].item()
        network.centroids.counts_KK.zero_()
        network.centroids.centers_KD.copy_(centers.roll(1, dims=0))
        second = stage.step(network, batch).losses["cluster"].item()
        changes[mode] = abs(first - second)
    assert changes["matched"] < 1e-5
    assert changes["raw"] > 1e-3


# ---- fixmatch_cvae -----------------------------------------------------------------------------


def seen_by_classifier(name: str, **values: Any) -> tuple[torch.Tensor, Batch, nn.Module]:
    """The images that go through the classifier in a step of the last stage, the batch, the network."""
    spec = small_spec(name, **{"data.mu": 4, **values})
    torch.manual_seed(0)
    *_, (stage, network, loader) = started(spec, load_data(spec.data, 0, CPU))
    if name == "fixmatch_cvae":  # an untrained decoder draws nothing
        nn.init.normal_(network.perturbation.output.weight)
    seen: list[torch.Tensor] = []
    network.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = loader.next()
    torch.manual_seed(7)
    stage.step(network, batch)
    return *seen, batch, network


def test_without_cvae_images_the_batch_is_that_of_plain_fixmatch():
    plain, _, _ = seen_by_classifier("fixmatch")
    ours, _, _ = seen_by_classifier("fixmatch_cvae", **{"method.cvae_share": 0})
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("perturbation", ["sampling", "smoothing"])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_that_share_of_the_strong_views_is_made_by_the_cvae_from_the_weak_ones(share, perturbation):
    options = {"method.cvae_share": share, "method.perturbation": perturbation}
    seen, batch, network = seen_by_classifier("fixmatch_cvae", **options)
    weak, strong = batch.unlabeled
    _, same_weak, learned = seen.split([8, 32, 32])
    made = int(share * 32)
    assert torch.equal(same_weak, weak) and torch.equal(learned[made:], strong[made:])
    torch.manual_seed(7)
    expected = network.perturbation.perturb(weak[:made], perturbation, 0.84)
    assert torch.equal(learned[:made], expected)
    own = (learned[:, None] == strong).flatten(2).all(dim=2).any(dim=1)
    assert not own[:made].any() and own[made:].all()


def test_the_cvae_is_bit_identical_before_and_after_the_train_stage():
    kept: dict[str, torch.Tensor] = {}
    for report in train(small_spec("fixmatch_cvae")):
        if report.stage == "perturbation":
            kept = copied(report.trained.network)
        else:
            assert same(report.trained.network.perturbation, kept)
    assert kept and report.stage == "train"


def test_pictures_are_the_four_rows_of_the_papers_figure():
    spec = small_spec("fixmatch_cvae")
    *_, (stage, network, loader) = started(spec, load_data(spec.data, 0, CPU))
    nn.init.normal_(network.perturbation.output.weight)
    batch = loader.next()
    rows = stage.pictures(network.eval(), batch)
    assert list(rows) == ["weak", "strong", "sampled", "smoothed"]
    assert torch.equal(rows["weak"], batch.unlabeled[0])
    assert torch.equal(rows["strong"], batch.unlabeled[1])
    for images in rows.values():
        assert images.shape == (8, 1, 8, 8) and torch.isfinite(images).all()
        assert not images.requires_grad
    assert len({tuple(images.flatten().tolist()) for images in rows.values()}) == 4


# ---- simclr_joint ------------------------------------------------------------------------------


def after_joint(**values: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The averaged weights at the end of the stage: of the probe, and of all the rest."""
    spec = small_spec("simclr_joint", **values)
    report = next(report for report in train(spec) if report.step == spec.stage_steps()["joint"])
    weights = copied(report.trained.network)
    probe = {key: value for key, value in weights.items() if key.startswith("probe.")}
    return probe, {key: value for key, value in weights.items() if key not in probe}


def test_the_probe_has_an_optimizer_of_its_own_and_teaches_the_encoder_nothing():
    probe, rest = after_joint()
    for key, value in {"optim.probe.lr": 0.1, "losses.probe.weight": 0}.items():
        other_probe, other_rest = after_joint(**{key: value})
        assert all(torch.equal(rest[name], other_rest[name]) for name in rest)
        assert not torch.equal(probe["probe.weight"], other_probe["probe.weight"])


def test_the_view_that_the_probe_learns_from_changes_no_batchnorm_statistics_of_the_encoder():
    spec = small_spec("simclr_joint")
    found = []
    for factor in (1, 5):
        torch.manual_seed(0)
        stage, network, loader = next(started(spec, load_data(spec.data, 0, CPU)))
        batch = loader.next()
        stage.step(network, batch._replace(labeled=(factor * batch.labeled[0],)))
        assert all(module.training for module in network.modules())
        found.append(network.encoder)
    assert same(*found)


def test_the_probe_follows_the_stages_learning_rate_unless_it_has_its_own():
    for values, expected in (({}, 0.01), ({"optim.probe.lr": 0.5}, 0.5)):
        report = next(train(small_spec("simclr_joint", **{"optim.lr": 0.01}, **values)))
        assert report.metrics["lr/probe"] / report.metrics["lr"] == pytest.approx(expected / 0.01)


def test_the_contrast_is_of_unlabeled_views_alone_so_that_no_image_meets_its_copy():
    """The pool holds the labeled images: beside it they would be a second time in the batch."""
    spec = small_spec("simclr_joint", **{"data.mu": 4})
    torch.manual_seed(0)
    stage, network, loader = next(started(spec, load_data(spec.data, 0, CPU)))
    assert stage.labeled_views == ("joint_classification",)
    batch = loader.next()
    seen: list[int] = []
    network.projector.register_forward_hook(lambda module, inputs, out: seen.append(len(out)))
    expected = stage.step(network, batch).losses
    assert seen == [2 * 32]
    noise = torch.randn_like(batch.labeled[0])
    found = stage.step(network, batch._replace(labeled=(noise,))).losses
    assert torch.equal(found["contrastive"], expected["contrastive"])
    assert not torch.equal(found["probe"], expected["probe"])


# ---- images that are each other's negatives ------------------------------------------------------


def refusal(method: str, **values: Any) -> str:
    with pytest.raises(UserError) as caught:
        list(train(small_spec(method, **values)))
    return str(caught.value)


@pytest.mark.parametrize("method", ["simclr", "simclr_joint"])
def test_a_contrast_needs_two_images_in_a_step_and_each_of_them_once(method):
    assert refusal(method, **{"data.batch_size": 1}) == (
        "data.mu is 1, so that a step has 1 unlabeled image (data.batch_size 1), but must leave at least 2: each is a "
        "negative of the others"
    )
    pool = len(load_data(small_spec(method).data, 0, CPU).sets.unlabeled)
    mu = pool // 32 + 1
    assert refusal(method, **{"data.batch_size": 32, "data.mu": mu}) == (
        f"data.mu is {mu}, so that a step has {32 * mu} unlabeled images (data.batch_size 32), but there are {pool}, "
        f"and each is a negative of the others; data.mu={pool // 32} does"
    )


def test_a_step_may_have_all_unlabeled_images_once_and_simsiam_has_no_negatives():
    spec = small_spec("simclr")
    data, (stage, _) = load_data(spec.data, 0, CPU), spec.stages()
    network = stage.build(data.task, spec.model, None)
    pool = len(data.sets.unlabeled)
    for size, fits in ((pool, True), (pool + 1, False)):
        whole = small_spec("simclr", **{"data.batch_size": size})
        if fits:
            Stepper(whole, stage, network, data, 1, 0)
        else:
            with pytest.raises(UserError, match=f"but there are {pool}, and each is a negative"):
                Stepper(whole, stage, network, data, 1, 0)
    contrasting = {name for name in method_names() if find_method(name).stage_types[0].contrasts}
    assert contrasting == {"moco", "simclr", "simclr_joint"}


# ---- views and balance of every method -----------------------------------------------------------


@pytest.mark.parametrize("name", ["fixmatch", "fixmatch_cvae", "kmeans", "soft_kmeans"])
def test_the_views_of_unlabeled_images_are_options(name):
    default = spec_of(name, {}).stages()[-1]
    assert default.unlabeled_views == ("weak", "randaugment" if "fixmatch" in name else "strong")
    chosen = {"weak_view": "joint_classification", "strong_view": "weak"}
    spec = spec_of(name, chosen)
    for stage in spec.stages():
        assert stage.unlabeled_views == ("joint_classification", "weak")
        assert not set(chosen) & set(stage.shaped_without)
    assert list(train(spec_of(name, {"weak_view": "none"}, **{"budget.steps": 2})))[-1].last


WITH_LABELS = [
    pytest.param(*choice.values, id=choice.id)
    for choice in CHOICES
    if not all(stage.fits for stage in spec_of(*choice.values).stages())
]


@pytest.mark.parametrize("name, chosen", WITH_LABELS)
def test_every_labeled_term_is_balanced_when_asked_and_no_other_term_has_the_key(name, chosen):
    spec = spec_of(name, chosen)
    losses = spec.losses
    balanced = {t for t, loss in losses.items() if "balance" in type(loss).model_fields}
    assert balanced == {"supervised", "probe"} & set(dict(losses.items()))
    for stage, network, loader in started(spec, load_data(spec.data, 0, CPU)):
        batch = loader.next()
        kept = copied(network)
        found = []
        for balance in (None, balance_of("logit_adjustment", torch.tensor([0] * 99 + [1]), 10)):
            network.load_state_dict(kept)
            torch.manual_seed(0)
            found.append(stage.step(network, batch._replace(balance=balance)).losses)
        changed = {t for t in stage.loss_terms if not torch.equal(found[0][t], found[1][t])}
        assert changed == balanced & set(stage.loss_terms)


# ---- simsiam -----------------------------------------------------------------------------------


def test_the_predictors_learning_rate_stays_while_the_rest_follows_the_cosine(lr=0.03):
    reports = list(train(small_spec("simsiam", **{"optim.lr": lr})))
    values = [r.metrics for r in reports if r.stage == "pretrain"]
    assert [v["lr/predictor"] for v in values] == [lr] * 3
    expected = [lr * (1 + torch.tensor(torch.pi * at / 12).cos().item()) / 2 for at in (3, 7, 11)]
    assert [v["lr"] for v in values] == pytest.approx(expected)
    assert "lr/predictor" not in reports[-1].metrics


def test_each_view_goes_through_simsiam_by_itself_so_that_batchnorm_normalises_it_alone():
    spec = small_spec("simsiam", **{"data.mu": 2})
    stage, network, loader = next(started(spec, load_data(spec.data, 0, CPU)))
    batch, seen = loader.next(), []
    for module in (network.encoder, network.projector, network.predictor):
        module.register_forward_hook(lambda module, inputs, out: seen.append(len(out)))
    network.projector.register_forward_hook(
        lambda module, inputs, out: torch.testing.assert_close(
            out.mean(dim=0), torch.zeros(16), atol=1e-5, rtol=0
        )
    )
    stage.step(network, batch)
    assert seen == [16] * 6  # of 16 images


class Fixed(nn.Module):
    """A SimSiam network whose projections and predictions are plain parameters: in each pass those of one view."""

    def __init__(self) -> None:
        super().__init__()
        self.projected, self.predicted = (nn.Parameter(torch.randn(6, 4)) for _ in range(2))
        self.passes = [0, 0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.passes[0] += 1
        return self.projected.chunk(2)[self.passes[0] - 1]

    def predictor(self, projected: torch.Tensor) -> torch.Tensor:
        self.passes[1] += 1
        return self.predicted.chunk(2)[self.passes[1] - 1]


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_the_target_of_simsiam_learns_only_without_the_stop_gradient(stop_gradient):
    method = small_spec("simsiam", **{"method.stop_gradient": stop_gradient}).method
    network, images = Fixed(), torch.zeros(3, 1, 8, 8)
    none = torch.zeros(0, dtype=torch.int64)
    out = SimSiamPretrain(method).step(network, Batch((), none, (images, images), none))
    p1, p2 = torch.nn.functional.normalize(network.predicted, dim=1).chunk(2)
    z1, z2 = torch.nn.functional.normalize(network.projected, dim=1).chunk(2)
    expected = -((p1 * z2).sum(dim=1).mean() + (p2 * z1).sum(dim=1).mean()) / 2
    assert out.losses["similarity"].item() == pytest.approx(expected.item())
    out.losses["similarity"].backward()
    assert network.predicted.grad.any()
    assert (network.projected.grad is None) == stop_gradient


COLLAPSING = {"data.mu": 8, "optim.lr": 0.1, "budget.steps": 75, "budget.eval_every": 25}
COLLAPSING |= {"method.projector_hidden": 64, "method.projector_dim": 64}
COLLAPSING |= {"method.predictor_hidden": 16}


def test_simsiam_without_its_stop_gradient_collapses_and_the_run_says_when():
    spec = small_spec("simsiam", **COLLAPSING, **{"method.stop_gradient": False})
    with pytest.raises(Collapsed) as caught:
        list(train(spec))
    assert caught.value.quantity == "embedding_std" and caught.value.step in (50, 75)
    step, value = caught.value.step, caught.value.value
    assert str(caught.value) == (
        f"embedding_std is {value:.3g} over steps {step - 24} to {step}, under its floor 0.5"
    )
    assert caught.value.images_seen == step * 64 and caught.value.seconds > 0


def test_simsiam_as_published_does_not_collapse():
    steps = {"pretrain": 75, "finetune": 1}
    spec = small_spec("simsiam", **{**COLLAPSING, "budget.steps": steps})
    spread = [r.metrics["diag/embedding_std"] for r in train(spec) if r.stage == "pretrain"]
    assert len(spread) == 3 and min(spread) > 0.9
