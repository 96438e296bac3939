"""What the classical methods share: an encoder that nothing trains, features on one scale, a head fitted at once.

They are the floor of every comparison. They read the images themselves (`model.encoder: pixels`, their default), or
the features of the encoder with weights that the other methods start from.

Shapes: N labeled, U unlabeled images, M = N + U, D features, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.spec import MethodSpec, ModelSpec
from tune_ssl.data.batch import Task
from tune_ssl.methods.base import Network, Prediction, Stage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tune_ssl.models import fitted
else:
    fitted = LazyModule("tune_ssl.models.fitted")


PIXELS = {"model.encoder": "pixels"}


class ClassicalSpec(MethodSpec):
    scaling: Literal["none", "standard", "unit"] = Field(
        "none",
        description="of the features: standard: each to mean 0 and deviation 1; unit: each image's to length 1",
    )


SpecT = TypeVar("SpecT", bound=ClassicalSpec)


class FittedStage(Stage[SpecT]):
    """One fit on un-augmented images; the encoder stays as it is."""

    name = "fit"
    loss_terms: ClassVar[tuple[str, ...]] = ()
    fits: ClassVar[bool] = True
    on_features: ClassVar[bool] = True

    @property
    def labeled_views(self) -> tuple[str, ...]:
        return ("none",)

    def head(self, features: int, classes: int) -> nn.Module:
        """What `fit` fills: (M, D) scaled features -> (M, K) logits."""
        raise NotImplementedError

    def build(self, task: Task, model: ModelSpec, previous: nn.Module | None) -> Network:
        return fitted.FittedNetwork(task, model, self.spec.scaling, self.head)

    def predict(self, network: Network, images: Tensor) -> Prediction:
        return Prediction(*network(images))
