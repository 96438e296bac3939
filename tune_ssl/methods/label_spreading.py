"""Label spreading (Zhou et al. 2004, "Learning with Local and Global Consistency"): labels flow along neighbours.

scikit-learn's LabelSpreading on a k-nearest-neighbour graph of labeled and unlabeled images, on pixels or on a frozen
encoder's features. A new image has the mean of the label distributions of its k nearest among them.

Shapes: N labeled, U unlabeled images, M = N + U, D features, K classes.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import Size
from tune_ssl.methods.base import Method, Network
from tune_ssl.methods.classical import PIXELS, ClassicalSpec, FittedStage

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tune_ssl.models import fitted
else:
    torch = LazyModule("torch")
    fitted = LazyModule("tune_ssl.models.fitted")


class LabelSpreadingSpec(ClassicalSpec):
    name: Literal["label_spreading"] = "label_spreading"  # type: ignore[assignment]
    k: Size = Field(7, description="neighbours of an image in the graph")
    alpha: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="share of an image's distribution that comes from its neighbours"
    )
    class_mass: bool = Field(
        True,
        description="each class gets as large a share of all images as it has of the labels (Zhu et al. 2003)",
    )
    most_unlabeled: Size = Field(
        10_000,
        description="unlabeled images in the graph; of more, the first ones of a fixed random order",
    )


class LabelSpreadingStage(FittedStage[LabelSpreadingSpec]):
    @property
    def unlabeled_views(self) -> tuple[str, ...]:
        return ("none",)

    def head(self, features: int, classes: int) -> nn.Module:
        return fitted.Neighbors(features, classes, self.spec.k)

    def fit(
        self, network: Network, labeled_ND: Tensor, labels_N: Tensor, unlabeled_UD: Tensor
    ) -> None:
        from sklearn.semi_supervised import LabelSpreading as Spreading

        if len(unlabeled_UD) > self.spec.most_unlabeled:
            order = torch.randperm(len(unlabeled_UD), generator=torch.Generator().manual_seed(0))
            unlabeled_UD = unlabeled_UD[order[: self.spec.most_unlabeled].sort().values]
        images_MD = network.scaling.fit(torch.cat([labeled_ND, unlabeled_UD]))
        labels_M = torch.cat([labels_N, labels_N.new_full((len(unlabeled_UD),), -1)])
        k = min(self.spec.k, len(images_MD))
        model = Spreading(kernel="knn", n_neighbors=k, alpha=self.spec.alpha, max_iter=100)
        with warnings.catch_warnings():  # of images that no label reaches: they vote for nothing
            warnings.simplefilter("ignore")
            model.fit(images_MD.numpy(), labels_M.numpy())
        shares_MK = torch.from_numpy(model.label_distributions_).nan_to_num()
        if self.spec.class_mass:
            wanted_K = labels_N.bincount(minlength=shares_MK.shape[1]) / len(labels_N)
            shares_MK = shares_MK * wanted_K / shares_MK.sum(dim=0).clamp(min=1e-12)
            shares_MK = shares_MK / shares_MK.sum(dim=1, keepdim=True).clamp(min=1e-12)
        network.head.fill(images_MD, shares_MK)


class LabelSpreading(Method[LabelSpreadingSpec]):
    name = "label_spreading"
    Spec = LabelSpreadingSpec
    losses = {}
    defaults = PIXELS
    stage_types = (LabelSpreadingStage,)
    searched = {
        "method.k": {"choice": [5, 10, 20, 40]},
        "method.class_mass": {"choice": [True, False]},
        "method.alpha": {"uniform": [0.05, 0.95]},
        "method.scaling": {"choice": ["none", "unit"]},
    }
