"""What unlabeled images teach: who counts, with which target, and what the network remembers.

The losses themselves are compared with a slow version in test_losses.py, and with public code in test_published.py.
"""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn

from tests.methods.slow import draw
from tests.methods.slow_targets import stage_of, stepped, straight
from tests.support.helpers import small_spec
from tune_ssl.artifacts.model_files import load_model, save_model
from tune_ssl.base.errors import UserError
from tune_ssl.data.batch import Batch
from tune_ssl.data.loading import Loader, load_data
from tune_ssl.methods import mixmatch
from tune_ssl.methods.adamatch import relative_targets
from tune_ssl.methods.flexmatch import class_thresholds
from tune_ssl.methods.mixmatch import drawn_shares, mixed, sharpened
from tune_ssl.methods.pi_model import squared_difference
from tune_ssl.methods.softmatch import aligned, truncated_gaussian
from tune_ssl.methods.uda import most_confident
from tune_ssl.methods.vat import adversarial_noise, divergence
from tune_ssl.training.loop import train

CPU = torch.device("cpu")


def with_real_images(method: str, **values):
    """The stage, its network in training, and a batch of digits."""
    spec = small_spec(method, **values)
    data, (stage,) = load_data(spec.data, 0, CPU), spec.stages()
    torch.manual_seed(0)
    network = stage.build(data.task, spec.model, None).train()
    loader = Loader(data, spec.data, stage.labeled_views, stage.unlabeled_views, seed=0)
    return stage, network, loader.next()._replace(progress=0.5)


def stage_batch(labeled: torch.Tensor, views: tuple[torch.Tensor, ...]) -> Batch:
    """Logits in the place of images; every label is 0."""
    labels = torch.zeros(len(labeled), dtype=torch.int64)
    return Batch((labeled,), labels, views, torch.full((len(views[0]),), -1))


def norms(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def assert_same_statistics(ours: nn.Module, theirs: nn.Module) -> None:
    assert norms(ours)
    for a, b in zip(norms(ours), norms(theirs), strict=True):
        assert torch.equal(a.running_mean, b.running_mean) and a.running_mean.any()
        assert torch.equal(a.running_var, b.running_var)
        assert a.momentum == b.momentum


# ---- vat -----------------------------------------------------------------------------------------


class Linear:
    """A softmax of a linear map of images (U, 1, 2, 3), for which the Hessian of the divergence is known."""

    def __init__(self) -> None:
        self.weights_DK, self.images = draw(6, 3, 1), draw(5, 6, 2).view(5, 1, 2, 3)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.weights_DK

    def hessians(self) -> torch.Tensor:
        """W (diag(p) - p p') W' of each image: (U, D, D)."""
        p = torch.softmax(self(self.images), dim=1)
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        return self.weights_DK @ inner @ self.weights_DK.T

    def noise(self, iterations: int, epsilon: float = 2.0) -> torch.Tensor:
        torch.manual_seed(0)
        clean = self(self.images)
        return adversarial_noise(self, self.images, clean, epsilon, 0.01, iterations)


def alike(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)


def test_one_power_iteration_is_the_hessian_of_the_divergence_times_the_random_start():
    model = Linear()
    torch.manual_seed(0)
    start = torch.randn_like(model.images).flatten(1)
    expected = (model.hessians() @ start[:, :, None])[:, :, 0]
    assert alike(model.noise(1), expected).min() > 0.999


def test_many_power_iterations_find_the_direction_in_which_the_prediction_changes_most():
    model = Linear()
    strongest = torch.linalg.eigh(model.hessians()).eigenvectors[:, :, -1]
    assert alike(model.noise(50), strongest).abs().min() > 0.999
    clean = model(model.images)
    small = model.noise(50, epsilon=0.1)
    torch.manual_seed(1)
    for _ in range(20):
        other = torch.randn_like(small)
        other *= 0.1 / other.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        assert divergence(clean, model(model.images + small)) > divergence(
            clean, model(model.images + other)
        )


@pytest.mark.parametrize("epsilon", [0.5, 6.0])
def test_the_noise_of_every_image_has_the_length_epsilon_and_no_gradient(epsilon):
    noise = Linear().noise(1, epsilon)
    assert torch.allclose(noise.flatten(1).norm(dim=1), torch.full((5,), epsilon), rtol=1e-5)
    assert not noise.requires_grad


@pytest.mark.parametrize("weight", [0.0, 1e-20])
def test_where_no_change_of_an_image_changes_its_prediction_the_noise_is_finite(weight):
    images = torch.zeros(3, 1, 2, 2)

    def predict(images: torch.Tensor) -> torch.Tensor:
        return weight * images.flatten(1)

    noise = adversarial_noise(predict, images, predict(images), 6.0, 0.01)
    assert torch.isfinite(noise).all() and noise.norm() <= 6 * math.sqrt(3) + 1e-4
    assert weight or not noise.any()


def test_batchnorm_learns_from_the_labeled_images_of_vat_alone_and_a_step_makes_no_gradients():
    stage, network, batch = with_real_images("vat")
    other = copy.deepcopy(network)
    out = stage.step(network, batch)
    assert all(parameter.grad is None for parameter in network.parameters())
    other(batch.labeled[0])
    assert_same_statistics(network, other)
    sum(out.losses.values()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_vats_noise_is_found_in_single_precision_under_autocast():
    stage, network, batch = with_real_images("vat")
    kept, found = copy.deepcopy(network.state_dict()), []
    for half in (False, True):
        network.load_state_dict(kept)
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found.append(stage.step(network, batch).losses)
    for term in ("adversarial", "entropy"):
        assert torch.equal(found[0][term], found[1][term]) and found[0][term] > 0


# ---- mean_teacher --------------------------------------------------------------------------------


def test_the_target_of_the_first_view_is_what_the_teacher_says_of_the_second():
    stage, network, batch = with_real_images("mean_teacher", **{"method.teacher_decay": 0.9})
    network.teacher.updates.fill_(5)
    for weights in network.parameters():
        weights.data += 0.1 * torch.randn_like(weights)
    other, (first, second) = copy.deepcopy(network), batch.unlabeled
    found = stage.step(network, batch).losses["consistency"]
    other.teacher.follow(other, 5 / 6)
    _, student = other(torch.cat([batch.labeled[0], first]))
    expected = squared_difference(student[8:], other.teacher(second)[1])
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


# ---- uda -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 7, 10, 100])
def test_annealing_rises_from_one_of_k_to_one_late_for_exp_and_early_for_log(classes):
    found = {
        how: [most_confident(at / 20, classes, how) for at in range(21)]
        for how in ("linear", "log", "exp", "none")
    }
    assert set(found.pop("none")) == {1.0}
    for values in found.values():
        assert values == sorted(values) and values[-1] == pytest.approx(1, abs=0.01)
        assert all(1 / classes <= value <= 1 + 1e-12 for value in values)
    assert found["linear"][0] == found["log"][0] == 1 / classes
    for at in range(1, 20):
        assert found["exp"][at] < found["linear"][at] < found["log"][at]
    assert most_confident(0.5, 1, "exp") == 1


def test_only_labeled_images_below_the_annealed_confidence_are_in_udas_term():
    """Their probabilities are 1/2, 0.88 and 0.99998; at half of the steps those up to 3/4 count."""
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0], [11.0, 0.0]])
    stage = stage_of("uda", annealing="linear")
    network, views = straight(stage, 2), (draw(4, 2, 0), draw(4, 2, 1))
    for progress, counted in ((0.0, 1), (0.5, 1), (0.8, 2), (1.0, 3)):
        batch = stage_batch(logits, views)._replace(progress=progress)
        found = stage.step(network, batch).losses["supervised"]
        losses = -torch.log_softmax(logits, dim=1)[:counted, 0]
        assert found.item() == pytest.approx(losses.mean().item(), rel=1e-5), progress
    plain = stage_of("uda").step(network, stage_batch(logits, views)).losses["supervised"]
    assert plain.item() == pytest.approx(-torch.log_softmax(logits, dim=1)[:, 0].mean().item())


# ---- mixmatch ------------------------------------------------------------------------------------


def test_a_sharpened_guess_is_a_distribution_the_mean_at_1_and_the_likeliest_class_near_0():
    first, second = draw(6, 4, 0, 3.0), draw(6, 4, 1, 3.0)
    mean = (torch.softmax(first, dim=1) + torch.softmax(second, dim=1)) / 2
    torch.testing.assert_close(sharpened(first, second, 1.0), mean)
    one_hot = torch.nn.functional.one_hot(mean.argmax(dim=1), 4).float()
    torch.testing.assert_close(sharpened(first, second, 1e-3), one_hot, atol=1e-4, rtol=0)
    for temperature in (1e-3, 0.5, 20.0):
        guess = sharpened(first, second, temperature)
        torch.testing.assert_close(guess.sum(dim=1), torch.ones(6))


@pytest.mark.parametrize(
    "alpha, mean", [(0.5, 0.5 + 1 / math.pi), (1.0, 0.75), (0.01, 0.993), (1e6, 0.5)]
)
def test_an_images_own_share_is_the_larger_part_of_a_draw_of_beta(alpha, mean):
    torch.manual_seed(0)
    shares, partners = drawn_shares(20_000, alpha)
    assert shares.min() >= 0.5 and shares.max() <= 1
    assert shares.mean().item() == pytest.approx(mean, abs=0.005)
    assert torch.equal(partners.sort().values, torch.arange(20_000))
    assert (partners == torch.arange(20_000)).float().mean() < 0.01


def test_an_alpha_whose_shares_cannot_be_drawn_is_refused():
    with pytest.raises(UserError, match="method.alpha is 0.001, but must be at least 0.01"):
        small_spec("mixmatch", **{"method.alpha": 0.001})


def test_a_mixed_row_lies_between_an_image_and_its_partner_nearer_to_its_own():
    rows, (shares, partners) = draw(7, 12, 0).view(7, 3, 2, 2), drawn_shares(7, 0.5)
    found = mixed(rows, shares, partners)
    for i in range(7):
        expected = shares[i] * rows[i] + (1 - shares[i]) * rows[partners[i]]
        torch.testing.assert_close(found[i], expected)
    assert torch.equal(mixed(rows, torch.ones(7), partners), rows)


def test_what_enters_mixmatchs_network_is_nearer_to_its_own_image_and_targets_sum_to_one(
    monkeypatch,
):
    stage, network, batch = with_real_images("mixmatch")
    made, shares = [], []
    monkeypatch.setattr(mixmatch, "mixed", lambda *a: made.append((a[0], mixed(*a))) or made[-1][1])
    monkeypatch.setattr(
        mixmatch, "drawn_shares", lambda *a: shares.append(drawn_shares(*a)) or shares[-1]
    )
    seen = []
    network.encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    other = copy.deepcopy(network)
    out = stage.step(network, batch)
    ((_, partners),) = shares
    (images, between), (targets, soft) = made
    assert torch.equal(images, torch.cat([*batch.labeled, *batch.unlabeled]))
    assert torch.equal(seen[0], torch.cat(batch.unlabeled)) and torch.equal(seen[1], between)
    own = (between - images).flatten(1).norm(dim=1)
    assert (own <= (between - images[partners]).flatten(1).norm(dim=1) + 1e-4).all()
    assert (soft >= 0).all() and torch.allclose(soft.sum(dim=1), torch.ones(len(soft)))
    first, second = targets[8:].chunk(2)
    assert torch.equal(first, second) and torch.equal(targets[:8].argmax(dim=1), batch.labels_N)
    assert not soft.requires_grad and out.losses["guess"].requires_grad
    # BatchNorm learns from the mixed images, not from those that only guess
    other(between)
    assert_same_statistics(network, other)


# ---- flexmatch -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "predicted, betas",
    [
        ([-1] * 8, [0, 0, 0]),  # nothing is known yet: every image counts
        ([0] * 8, [1, 0, 0]),
        ([0, 1, -1, -1, -1, -1, -1, -1], [1 / 6, 1 / 6, 0]),  # 6 are not known yet
        ([0, 0, 0, 0, 1, 1, 2, -1], [1, 1 / 2, 1 / 4]),
    ],
)
def test_a_classs_threshold_rises_with_its_share_of_the_best_learned_one(predicted, betas):
    found = class_thresholds(torch.tensor(predicted), 3, 0.9)
    assert found.tolist() == pytest.approx([0.9 * beta / (2 - beta) for beta in betas])


def sure(*classes: int) -> torch.Tensor:
    """Logits of 3 classes: certain of these, and of -1 uncertain."""
    return torch.stack([9 * torch.eye(3)[k] if k >= 0 else torch.zeros(3) for k in classes])


def test_flexmatch_remembers_the_latest_confident_prediction_of_each_image():
    stage = stage_of("flexmatch", threshold=0.9)
    network = straight(stage, 3, unlabeled=5)
    for ids, classes, after in [
        ([0, 1, 2], (1, 0, -1), [1, 0, -1, -1, -1]),
        ([2, 0, 4], (2, -1, 1), [1, 0, 2, -1, 1]),  # unsure: what was known of image 0 stays
        ([0, 3, 1], (2, 2, 0), [2, 0, 2, 2, 1]),
    ]:
        rows = sure(*classes)
        stepped(stage, network, (rows, rows), ids_U=torch.tensor(ids))
        assert network.predicted_P.tolist() == after


@pytest.mark.parametrize("classes", [(1, -1), (-1, 1)])
def test_an_image_that_is_twice_in_a_step_keeps_its_confident_prediction(classes):
    stage = stage_of("flexmatch", threshold=0.9)
    network, rows = straight(stage, 3, unlabeled=2), sure(*classes)
    stepped(stage, network, (rows, rows), ids_U=torch.tensor([0, 0]))
    assert network.predicted_P.tolist() == [1, -1]


def test_the_ids_of_a_batch_name_the_same_image_in_every_step():
    spec = small_spec("flexmatch", **{"data.mu": 4})
    data = load_data(spec.data, 0, CPU)
    loader, seen = Loader(data, spec.data, ("weak",), ("none", "weak"), seed=0), {}
    pool, repeated = len(data.sets.unlabeled), 0
    assert data.task.unlabeled == pool
    for _ in range(2 * pool // 32):
        batch = loader.next()
        for place, image in zip(batch.ids_U.tolist(), batch.unlabeled[0], strict=True):
            assert torch.equal(seen.setdefault(place, image), image)
            repeated += seen[place] is not image
    assert repeated and set(seen) <= set(range(pool))
    assert len({tuple(image.flatten().tolist()) for image in seen.values()}) > 0.9 * len(seen)


def test_a_flexmatch_model_that_was_saved_is_loaded_with_what_it_remembers(tmp_path):
    spec = small_spec("flexmatch", **{"method.threshold": 0.2})
    last = list(train(spec))[-1]
    save_model(tmp_path, last.trained, trial="t", condition="c", spec=spec.model_dump(mode="json"))
    loaded, kept = load_model(tmp_path).network, last.trained.network.eval()
    assert torch.equal(loaded.predicted_P, kept.predicted_P) and (kept.predicted_P >= 0).any()
    images = draw(3, 64, 0).view(3, 1, 8, 8)
    torch.testing.assert_close(loaded(images)[1], kept(images)[1])


# ---- freematch -----------------------------------------------------------------------------------


def test_freematchs_averages_start_at_one_of_k_and_move_by_one_less_the_decay():
    stage = stage_of("freematch", decay=0.75)
    network, weak = straight(stage, 4), draw(6, 4, 0)
    started = [
        network.confidence.item(),
        *network.classes_K.tolist(),
        *network.histogram_K.tolist(),
    ]
    assert started == [0.25] * 9
    stepped(stage, network, (weak, weak))
    p = torch.softmax(weak, dim=1)
    histogram = torch.bincount(p.argmax(dim=1), minlength=4) / 6
    for found, new in (
        (network.confidence, p.amax(dim=1).mean()),
        (network.classes_K, p.mean(dim=0)),
        (network.histogram_K, histogram),
    ):
        torch.testing.assert_close(found, 0.75 * 0.25 + 0.25 * new)


def test_the_class_that_is_predicted_most_has_the_mean_confidence_as_threshold_others_less():
    stage = stage_of("freematch", decay=0.0)
    network = straight(stage, 2)
    # p of the first class: 0.9, 0.8, 0.7, and of the second one 0.65: the mean is 0.7625
    p = torch.tensor([0.9, 0.8, 0.7, 0.35])
    weak = torch.stack([p.log(), (1 - p).log()], dim=1)
    targets = stage.targets(network, stage_batch(weak, (weak, weak)), weak, weak)
    assert targets.weights_U.tolist() == [1, 1, 0, 1]  # 0.65 >= 0.7625 x 0.3125 / 0.6875


def test_less_fair_predictions_cost_more_unless_the_term_is_as_published():
    """Of 4 confident images; what is published rewards them for it."""
    fair, unfair = sure(0, 1, 2, 0) / 3, torch.stack([sure(0)[0] / 3] * 4)
    costs = {}
    for sign in ("agreement", "published"):
        stage = stage_of("freematch", fairness=sign)
        for name, strong in (("fair", fair), ("unfair", unfair)):
            network = straight(stage, 3)
            out = stepped(stage, network, (sure(0, 1, 2, 0), strong))
            costs[sign, name] = out.losses["fairness"].item()
    assert costs["agreement", "unfair"] > costs["agreement", "fair"] + 1
    for name in ("fair", "unfair"):
        assert costs["published", name] == -costs["agreement", name]


# ---- softmatch, adamatch -------------------------------------------------------------------------


def test_aligned_predictions_have_the_wanted_mean_once_they_are_all_of_one_kind():
    rows = torch.softmax(draw(1, 4, 0), dim=1).repeat(5, 1)
    wanted = torch.tensor([0.4, 0.3, 0.2, 0.1])
    torch.testing.assert_close(aligned(rows, wanted, rows[0]), wanted.repeat(5, 1))
    unlike = torch.softmax(draw(5, 4, 1), dim=1)
    torch.testing.assert_close(aligned(unlike, wanted, wanted), unlike)
    holes = aligned(torch.eye(4), torch.ones(4), torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert torch.equal(holes, torch.eye(4))


def test_a_weight_is_one_from_the_mean_on_and_falls_as_a_gaussian_below():
    confidence = torch.tensor([0.9, 0.6, 0.5, 0.4])
    mean, variance = torch.tensor(0.6), torch.tensor(0.04)
    found = truncated_gaussian(confidence, mean, variance, 2.0)
    expected = [1, 1, math.exp(-0.5), math.exp(-2)]  # of a deviation of 0.2 / 2
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    still = truncated_gaussian(confidence, mean, torch.tensor(0.0), 2.0)
    assert still.tolist() == pytest.approx([1, 1, 0, 0])


@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("alignment", [True, False])
def test_softmatch_follows_mean_and_unbiased_variance_of_batches_of_any_size(count, alignment):
    stage = stage_of("softmatch", decay=0.75, uniform_alignment=alignment)
    network, weak = straight(stage, 4), draw(count, 4, 0)
    assert (network.mean.item(), network.variance.item()) == (0.25, 1)
    targets = stage.targets(network, stage_batch(weak, (weak, weak)), weak, weak)
    p = torch.softmax(weak, dim=1)
    if alignment:
        p = aligned(p, torch.ones(4), 0.75 * 0.25 + 0.25 * p.mean(dim=0))
    confidence = p.amax(dim=1)
    variance = confidence.var() if count > 1 else torch.tensor(0.0)
    torch.testing.assert_close(network.mean, 0.75 * 0.25 + 0.25 * confidence.mean())
    torch.testing.assert_close(network.variance, 0.75 + 0.25 * variance)
    assert torch.equal(targets.classes, weak.argmax(dim=1))  # not of the aligned ones
    assert ((targets.weights_U > 0) & (targets.weights_U <= 1)).all()


def test_adamatchs_threshold_is_a_share_of_the_labeled_images_mean_confidence():
    labeled = torch.tensor([[0.9, 0.1], [0.3, 0.7]])  # 0.8 on the mean
    weak = torch.tensor([[0.73, 0.27], [0.71, 0.29], [0.2, 0.8]])
    found = relative_targets(weak, labeled, 0.9)
    assert found.classes.tolist() == [0, 0, 1] and found.weights_U.tolist() == [1, 0, 1]


def test_adamatch_predicts_rarer_what_unlabeled_images_are_more_often_than_labeled_ones():
    stage = stage_of("adamatch", decay=0.0, threshold=0.0)
    labeled = torch.zeros(4, 2)
    p = torch.tensor([0.9, 0.85, 0.65])
    weak = torch.stack([p.log(), (1 - p).log()], dim=1)
    targets = stage.targets(straight(stage, 2), stage_batch(labeled, (weak, weak)), labeled, weak)
    # The means of the unlabeled ones are 0.8 and 0.2: 0.65 / 0.8 is less than 0.35 / 0.2
    assert targets.classes.tolist() == [0, 0, 1]


# ---- all of them ---------------------------------------------------------------------------------

METHODS = (
    *("pseudo_label", "pi_model", "mean_teacher", "vat", "uda"),
    *("mixmatch", "flexmatch", "freematch", "softmatch", "adamatch"),
)


@pytest.mark.parametrize("size, precision", [(1, "fp32"), (2, "bf16")])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_one_or_two_images_a_step_in_both_precisions(
    method, size, precision
):
    values = {"data.batch_size": size, "compute.precision": precision, "budget.steps": 2}
    (report,) = train(small_spec(method, **values))
    losses = {key: value for key, value in report.metrics.items() if key.startswith("loss/")}
    assert len(losses) >= 3 and all(math.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(w).all() for w in report.trained.network.state_dict().values())


# ---- what is remembered survives an interruption -------------------------------------------------

REMEMBERS = {
    "flexmatch": ({"threshold": 0.2}, ("predicted_P",)),
    "freematch": ({"decay": 0.5}, ("confidence", "classes_K", "histogram_K")),
    "softmatch": ({"decay": 0.5}, ("mean", "variance", "classes_K")),
    "adamatch": ({"decay": 0.5}, ("labeled_K", "unlabeled_K")),
    "mean_teacher": (
        {"teacher_decay": 0.5},
        ("teacher.updates", "teacher.network.classifier.weight"),
    ),
}


@pytest.mark.parametrize("method", REMEMBERS)
def test_a_resumed_run_remembers_and_averages_what_the_uninterrupted_one_does(method):
    options, names = REMEMBERS[method]
    values = {f"method.{option}": value for option, value in options.items()}
    spec = small_spec(method, **values, **{"budget.steps": 16, "budget.eval_every": 12})
    whole = train(spec)
    file = io.BytesIO()
    torch.save(next(whole).snapshot(), file)
    last = next(whole)
    file.seek(0)
    snapshot = torch.load(file, weights_only=True)
    (stage,) = spec.stages()
    torch.manual_seed(0)
    fresh = stage.build(last.trained.data.task, spec.model, None).state_dict()
    for part in ("network", "averaged"):
        kept = snapshot["stepper"][part]
        assert all(not torch.equal(kept[name], fresh[name]) for name in names), part
    torch.manual_seed(12345)
    (again,) = train(spec, resume=snapshot)
    assert again.metrics == last.metrics and "raw/mean_class_accuracy" in last.metrics
    ours, theirs = again.trained.network.state_dict(), last.trained.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
