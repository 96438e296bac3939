"""What ends a run early: values that are not finite, and embeddings that collapse."""

from __future__ import annotations

import torch
from torch import Tensor

GRADIENT = "gradient"


class Diverged(ArithmeticError):
    """A loss term or the gradient's norm stopped being finite: `quantity` first, at `step`."""

    def __init__(self, quantity: str, step: int, value: float) -> None:
        super().__init__(f"{quantity} is {value} at step {step}")
        self.quantity, self.step, self.value = quantity, step, value
        self.images_seen, self.seconds, self.waited = 0, 0.0, 0.0


class Collapsed(ArithmeticError):
    """A diagnostic's mean over some steps fell under the stage's floor: the features say nothing."""

    def __init__(self, quantity: str, value: float, floor: float, first: int, step: int) -> None:
        super().__init__(
            f"{quantity} is {value:.3g} over steps {first} to {step}, under its floor {floor:g}"
        )
        self.quantity, self.step, self.value = quantity, step, value
        self.images_seen, self.seconds, self.waited = 0, 0.0, 0.0


class Guard:
    """Sums watched quantities and raises Diverged for the first one that is not finite.

    `every` steps it looks at the values: each look waits for the device, so a GPU looks seldom.
    """

    def __init__(self, names: tuple[str, ...], every: int) -> None:
        self.names, self.every = names, every
        self.pending: list[Tensor] = []
        self.sums = torch.zeros(len(names), dtype=torch.float64)

    def add(self, values: Tensor, step: int) -> None:
        """`values` (len(names),) of the optimizer step that made the count `step`."""
        self.pending.append(values)
        if len(self.pending) >= self.every:
            self.check(step)

    def check(self, step: int) -> None:
        if not self.pending:
            return
        rows = torch.stack(self.pending).cpu().double()
        first = step - len(self.pending) + 1
        self.pending = []
        bad = (~torch.isfinite(rows)).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise Diverged(self.names[column], first + row, float(rows[row, column]))
        self.sums += rows.sum(dim=0)

    def take_sums(self) -> Tensor:
        sums, self.sums = self.sums, torch.zeros_like(self.sums)
        return sums
