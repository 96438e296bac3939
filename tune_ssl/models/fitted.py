"""Networks that are fitted at once instead of trained: features on one scale, and a head on them.

All that a fit finds is in buffers and weights, so that a saved network needs nothing of scikit-learn.

Shapes: M images, D features, K classes, B rows of a bank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tune_ssl.base.spec import ModelSpec
from tune_ssl.data.batch import Task
from tune_ssl.models.heads import encoded, encoder_for

CHUNK = 1 << 24  # values that are held at once
MARGIN = 8  # neighbours beyond k, since a product's rounding may change their order


class FittedNetwork(nn.Module):
    """A frozen encoder -> scaled features -> K logits."""

    def __init__(
        self, task: Task, model: ModelSpec, scaling: str, head: Callable[[int, int], nn.Module]
    ) -> None:
        super().__init__()
        self.encoder = encoder_for(task, model).requires_grad_(False).eval()
        width: int = self.encoder.out_dim  # type: ignore[assignment]
        self.scaling = Scaling(width, scaling)
        self.head = head(width, task.num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (M, C, H, W), or the encoder's output (M, D) -> features (M, D) and logits (M, K)."""
        features_MD = encoded(self.encoder, images)
        return features_MD, self.head(self.scaling(features_MD))

    def train(self, mode: bool = True) -> FittedNetwork:
        super().train(mode)
        self.encoder.eval()
        return self


class Scaling(nn.Module):
    """`none`, `standard` (mean 0, deviation 1 of each feature where it was fitted) or `unit` (rows of length 1)."""

    shift_D: Tensor
    factor_D: Tensor

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("shift_D", torch.zeros(width))
        self.register_buffer("factor_D", torch.ones(width))

    def fit(self, features_MD: Tensor) -> Tensor:
        """Take the scale of these features; returns them scaled. A feature that never changes keeps its scale."""
        if self.how == "standard":
            std_D = features_MD.double().std(dim=0, correction=0)
            self.shift_D.copy_(features_MD.double().mean(dim=0))
            self.factor_D.copy_(torch.where(std_D > 1e-12, 1 / std_D, torch.ones_like(std_D)))
        scaled: Tensor = self(features_MD.to(self.shift_D.device))
        return scaled.cpu()

    def forward(self, features_MD: Tensor) -> Tensor:
        scaled_MD = (features_MD.float() - self.shift_D) * self.factor_D
        return nn.functional.normalize(scaled_MD, dim=1) if self.how == "unit" else scaled_MD


class Neighbors(nn.Module):
    """log of the share that each class has among the k nearest rows of a bank, by Euclidean distance.

    A row's class may be a distribution over classes. `distance` weighs each neighbour by 1 / distance, as
    scikit-learn does: a row at distance 0 then counts alone. A class without any share has logit log 1e-12.
    """

    bank_BD: Tensor
    shares_BK: Tensor

    def __init__(self, width: int, classes: int, k: int, weights: str = "uniform") -> None:
        super().__init__()
        self.k, self.weights = k, weights
        self.register_buffer("bank_BD", torch.zeros(1, width))
        self.register_buffer("shares_BK", torch.zeros(1, classes))

    def fill(self, bank_BD: Tensor, shares_BK: Tensor) -> None:
        device = self.bank_BD.device
        self.bank_BD, self.shares_BK = bank_BD.float().to(device), shares_BK.float().to(device)

    def forward(self, features_MD: Tensor) -> Tensor:
        width = (self.k + MARGIN) * self.bank_BD.shape[1]
        size = max(1, CHUNK // max(width, len(self.bank_BD)))
        return torch.cat([self._logits(part_MD) for part_MD in features_MD.float().split(size)])

    def _logits(self, features_MD: Tensor) -> Tensor:
        # A product ranks all rows fast; of some more than k the distances are then measured
        rows = len(self.bank_BD)
        ranks_MB = self.bank_BD.square().sum(dim=1) - 2 * features_MD @ self.bank_BD.T
        some_Mj = (
            ranks_MB.topk(min(self.k + MARGIN, rows), largest=False).indices.sort(dim=1).values
        )
        gaps_MjD = self.bank_BD[some_Mj] - features_MD[:, None]
        near_Mk, at_Mk = gaps_MjD.norm(dim=2).topk(min(self.k, rows), largest=False)
        rows_Mk = some_Mj.gather(1, at_Mk)
        votes_Mk = torch.ones_like(near_Mk)
        if self.weights == "distance":
            at_M1 = (near_Mk == 0).any(dim=1, keepdim=True)
            votes_Mk = torch.where(at_M1, (near_Mk == 0).float(), 1 / near_Mk.clamp(min=1e-30))
        sums_MK = torch.einsum("mk,mkc->mc", votes_Mk, self.shares_BK[rows_Mk])
        shares_MK = sums_MK / sums_MK.sum(dim=1, keepdim=True).clamp(min=1e-30)
        return shares_MK.clamp(min=1e-12).log()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """The bank has as many rows as it was filled with."""
        for name in ("bank_BD", "shares_BK"):
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, getattr(self, name).new_zeros(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)
