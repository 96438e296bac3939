"""k nearest neighbours on pixels or on a frozen encoder's features: the labeled images vote.

Shapes: N labeled images, D features, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import Size
from tune_ssl.methods.base import Method, Network
from tune_ssl.methods.classical import PIXELS, ClassicalSpec, FittedStage

if TYPE_CHECKING:
    import torch.nn.functional as F
    from torch import Tensor, nn

    from tune_ssl.models import fitted
else:
    F = LazyModule("torch.nn.functional")
    fitted = LazyModule("tune_ssl.models.fitted")


class NearestNeighborsSpec(ClassicalSpec):
    name: Literal["nearest_neighbors"] = "nearest_neighbors"  # type: ignore[assignment]
    k: Size = Field(5, description="neighbours that vote; all labeled images where they are fewer")
    weights: Literal["uniform", "distance"] = Field(
        "distance", description="of the votes: equal, or 1 / distance"
    )


class NearestNeighborsStage(FittedStage[NearestNeighborsSpec]):
    def head(self, features: int, classes: int) -> nn.Module:
        return fitted.Neighbors(features, classes, self.spec.k, self.spec.weights)

    def fit(
        self, network: Network, labeled_ND: Tensor, labels_N: Tensor, unlabeled_UD: Tensor
    ) -> None:
        classes = network.head.shares_BK.shape[1]
        network.head.fill(network.scaling.fit(labeled_ND), F.one_hot(labels_N, classes))


class NearestNeighbors(Method[NearestNeighborsSpec]):
    name = "nearest_neighbors"
    Spec = NearestNeighborsSpec
    losses = {}
    defaults = PIXELS
    stage_types = (NearestNeighborsStage,)
    searched = {
        "method.k": {"choice": [1, 3, 5, 10, 20]},
        "method.weights": {"choice": ["uniform", "distance"]},
        "method.scaling": {"choice": ["none", "standard", "unit"]},
    }
