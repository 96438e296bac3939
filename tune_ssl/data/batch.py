"""What a method sees of the data in one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

VIEWS = (
    *("none", "weak", "strong", "randaugment", "contrastive", "contrastive_noise"),
    *("joint_contrastive", "joint_classification"),
)
"""Names of the views, which tune_ssl.data.augment makes: here without torch."""


class Task(NamedTuple):
    """The shape of the problem: K classes of (channels, image_size, image_width) images; no width: as wide as high.

    `unlabeled` is the number of unlabeled images; 0 where a network is only to predict.
    """

    num_classes: int
    channels: int
    image_size: int
    image_width: int | None = None
    unlabeled: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of an image, in pixels."""
        return self.image_size, self.image_width or self.image_size


class Balance(NamedTuple):
    """How the classes' numbers of labels count in a loss: factors of each image's loss, and what is added to logits."""

    weights_K: Tensor
    offsets_K: Tensor


class Batch(NamedTuple):
    """N labeled and U unlabeled images; a tuple holds one normalised float tensor for each view.

    N or U is 0 where the stage asks for no such view. `hidden_labels_U` are for diagnostics only: no
    loss may read them; -1 where nobody knows. `balance` is what the stage's supervised term asks for, `progress` the
    share of the stage's steps that are over, in [0, 1). `ids_U` tells the unlabeled images apart: the same image has
    the same number in every step, from 0 to `Task.unlabeled` - 1; none where the stage asks for no unlabeled view.
    """

    labeled: tuple[Tensor, ...]
    labels_N: Tensor
    unlabeled: tuple[Tensor, ...]
    hidden_labels_U: Tensor
    balance: Balance | None = None
    progress: float = 0.0
    ids_U: Tensor | None = None


class Sample(NamedTuple):
    """Un-augmented images that a stage starts from, some at a time: a call begins anew.

    `labeled()` gives (images (n, C, H, W), labels (n,)), of every class that has labels; `unlabeled()` gives images.
    Both give nothing where the stage has no such view.
    """

    labeled: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    unlabeled: Callable[[], Iterator[Tensor]]
