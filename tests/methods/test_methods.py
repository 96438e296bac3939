"""The contract of every method: what the loop may rely on, checked for each file in tune_ssl/methods."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import small_spec
from tune_ssl.data.batch import Task
from tune_ssl.data.loading import Loader, load_data
from tune_ssl.evaluation import EVALUATORS
from tune_ssl.methods import find_method, method_names
from tune_ssl.training import train

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", method_names())
def test_every_stage_returns_exactly_its_loss_terms_as_finite_scalars_with_gradients(name):
    spec = small_spec(name)
    data = load_data(spec.data, 0, CPU)
    network = None
    for stage in find_method(name).stages(spec.method):
        network = stage.build(data.task, spec.model, network)
        loader = Loader(data, spec.data, stage.labeled_views, stage.unlabeled_views, seed=0)
        with torch.no_grad():
            stage.start(network.eval(), loader.sample())
        out = stage.step(network.train(), loader.next())
        assert tuple(out.losses) == stage.loss_terms
        for term, loss in out.losses.items():
            assert loss.shape == () and torch.isfinite(loss) and loss.requires_grad, term
        for term, value in out.diagnostics.items():
            assert value.shape == () and not value.requires_grad, term
        assert set(stage.evaluators) <= set(EVALUATORS)


@pytest.mark.parametrize("name", method_names())
def test_a_method_has_a_default_weight_for_each_term_of_its_stages_and_no_other(name):
    method = find_method(name)
    terms = [term for stage in method.stage_types for term in stage.loss_terms]
    assert sorted(terms) == sorted(method.losses)
    assert method.name == name and method.Spec.model_fields["name"].default == name


@pytest.mark.parametrize("name", method_names())
def test_hidden_labels_never_change_what_is_learned(name):
    """Only diagnostics may read them: a run with scrambled ones must end with the same weights."""
    spec = small_spec(name)
    data = load_data(spec.data, 0, CPU)

    def weights(scramble: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        stage = find_method(name).stages(spec.method)[0]
        network = stage.build(data.task, spec.model, None)
        loader = Loader(data, spec.data, stage.labeled_views, stage.unlabeled_views, seed=0)
        with torch.no_grad():
            stage.start(network, loader.sample())
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(3):
            batch = loader.next()
            if scramble and batch.hidden_labels_U is not None:
                batch = batch._replace(hidden_labels_U=(batch.hidden_labels_U + 3) % 10)
            optimizer.zero_grad()
            sum(stage.step(network, batch).losses.values()).backward()
            optimizer.step()
        return [*network.state_dict().values()]

    for ours, theirs in zip(weights(False), weights(True), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", method_names())
def test_every_method_trains_on_images_of_another_size_and_three_channels(name):
    stage = find_method(name).stages(find_method(name).Spec())[0]
    network = stage.build(Task(4, 3, 24), small_spec(name).model, None)
    prediction = stage.predict(network.eval(), torch.zeros(2, 3, 24, 24))
    assert prediction.features_ND.shape == (2, 16)
    assert prediction.logits_NK is None or prediction.logits_NK.shape == (2, 4)


@pytest.mark.parametrize("init", ["labeled_means", "kmeans++", "random"])
@pytest.mark.parametrize("name", ["kmeans", "soft_kmeans"])
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


def test_matched_targets_follow_the_labels_when_cluster_indices_are_shuffled():
    """Permuting the centroids must not change what `matched` teaches, and must change `raw`."""
    changes = {}
    for mode in ("matched", "raw"):
        spec = small_spec("soft_kmeans", **{"method.cluster_to_class": mode})
        data = load_data(spec.data, 0, CPU)
        stage = find_method("soft_kmeans").stages(spec.method)[0]
        torch.manual_seed(0)
        network = stage.build(data.task, spec.model, None).eval()
        loader = Loader(data, spec.data, stage.labeled_views, stage.unlabeled_views, seed=0)
        with torch.no_grad():
            stage.start(network, loader.sample())
        batch, centers = loader.sample(), network.centroids.centers_KD.clone()
        batch = batch._replace(unlabeled=(batch.unlabeled[0], batch.unlabeled[0]))
        first = stage.step(network, batch).losses["cluster"].item()
        network.centroids.counts_KK.zero_()
        network.centroids.centers_KD.copy_(centers.roll(1, dims=0))
        second = stage.step(network, batch).losses["cluster"].item()
        changes[mode] = abs(first - second)
    assert changes["matched"] < 1e-5
    assert changes["raw"] > 1e-3
