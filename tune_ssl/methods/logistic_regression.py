"""Logistic regression on pixels or on a frozen encoder's features: the labeled images alone, fitted at once.

Shapes: N labeled images, D features, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tune_ssl.base.lazy import LazyModule
from tune_ssl.methods.base import Method, Network
from tune_ssl.methods.classical import PIXELS, ClassicalSpec, FittedStage

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")
    nn = LazyModule("torch.nn")


class LogisticRegressionSpec(ClassicalSpec):
    name: Literal["logistic_regression"] = "logistic_regression"  # type: ignore[assignment]
    scaling: Literal["none", "standard", "unit"] = "standard"
    inverse_penalty: Annotated[float, Field(gt=0)] = Field(
        1.0, description="scikit-learn's C: 1 / strength of the L2 penalty"
    )


class LogisticRegressionStage(FittedStage[LogisticRegressionSpec]):
    def head(self, features: int, classes: int) -> nn.Module:
        return nn.Linear(features, classes)

    def fit(
        self, network: Network, labeled_ND: Tensor, labels_N: Tensor, unlabeled_UD: Tensor
    ) -> None:
        from sklearn.linear_model import LogisticRegression as Regression

        scaled_ND = network.scaling.fit(labeled_ND).double().numpy()
        model = Regression(C=self.spec.inverse_penalty, max_iter=1000)
        model.fit(scaled_ND, labels_N.numpy())
        weights_KD, bias_K = map(torch.from_numpy, (model.coef_, model.intercept_))
        if len(weights_KD) == 1:  # of two classes it gives the second one's logit
            weights_KD = torch.cat([torch.zeros_like(weights_KD), weights_KD])
            bias_K = torch.cat([torch.zeros_like(bias_K), bias_K])
        with torch.no_grad():
            network.head.weight.copy_(weights_KD)
            network.head.bias.copy_(bias_K)


class LogisticRegression(Method[LogisticRegressionSpec]):
    name = "logistic_regression"
    Spec = LogisticRegressionSpec
    losses = {}
    defaults = PIXELS
    stage_types = (LogisticRegressionStage,)
    searched = {
        "method.inverse_penalty": {"log_uniform": [1e-4, 100]},
        "method.scaling": {"choice": ["none", "standard", "unit"]},
    }
