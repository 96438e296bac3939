"""What ends a run early: values that are not finite or grow without bound, and embeddings that collapse."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from tune_ssl.methods.base import Ratio
from tune_ssl.records.log import TOO_LONG

GRADIENT = "gradient"
AT_ONCE, LATER = 1e6, 1e3  # times 1 + what a loss was at first: without bound


class Diverged(ArithmeticError):
    """A loss term or the gradient's norm stopped being finite: `quantity` first, at `step`.

    Or a term grew without bound: then `text` says so.
    """

    def __init__(self, quantity: str, step: int, value: float, text: str = "") -> None:
        super().__init__(text or f"{quantity} is {value} at step {step}")
        self.quantity, self.step, self.value = quantity, step, value
        self.images_seen, self.seconds, self.waited, self.reused = 0, 0.0, 0.0, 0


class Collapsed(ArithmeticError):
    """A diagnostic's mean over some steps fell under the stage's floor: the features say nothing."""

    def __init__(self, quantity: str, value: float, floor: float, first: int, step: int) -> None:
        super().__init__(
            f"{quantity} is {value:.3g} over steps {first} to {step}, under its floor {floor:g}"
        )
        self.quantity, self.step, self.value = quantity, step, value
        self.images_seen, self.seconds, self.waited, self.reused = 0, 0.0, 0.0, 0


class TooLong(ArithmeticError):
    """A trial has trained for longer than `budget.max_minutes`."""

    def __init__(self, minutes: float, step: int) -> None:
        super().__init__(f"{TOO_LONG} ({minutes:g}) at step {step}")
        self.step = step
        self.images_seen, self.seconds, self.waited, self.reused = 0, 0.0, 0.0, 0


class Guard:
    """Sums watched quantities and diagnostics, and raises Diverged for the first watched one that is not finite.

    `every` steps it looks at the values: each look waits for the device, so a GPU looks seldom. All of a look
    comes in one copy, and is summed on the CPU in float64.

    `limits` say above which mean over an interval each has grown without bound: AT_ONCE x (1 + its first value) in the
    first interval, LATER x (1 + its mean in the first one) from then on. `intervals` counts those that passed.
    """

    def __init__(self, names: tuple[str, ...], every: int) -> None:
        self.names, self.every = names, every
        # Of each step: its values in a row, and of which diagnostics those at its end are
        self.pending: list[tuple[Tensor, list[str]]] = []
        self.diagnostics: dict[str, list[float]] = {}  # sums of (part, whole)
        self.sums = torch.zeros(len(names), dtype=torch.float64)
        self.limits: list[float] = []
        self.intervals = 0

    def add(
        self, values: Sequence[Tensor], diagnostics: Sequence[tuple[str, Ratio]], step: int
    ) -> None:
        """Scalars: one for each of `names`, and diagnostics, of the optimizer step that made the count `step`."""
        ratios = [part for _, ratio in diagnostics for part in ratio]
        device = values[0].device
        row = torch.stack([v.detach().to(device, torch.float32) for v in (*values, *ratios)])
        self.pending.append((row, [name for name, _ in diagnostics]))
        if len(self.pending) >= self.every:
            self.check(step)

    def check(self, step: int) -> None:
        if not self.pending:
            return
        every = torch.cat([row for row, _ in self.pending]).cpu().double()
        each = every.split([len(row) for row, _ in self.pending])
        rows = torch.stack([row[: len(self.names)] for row in each])
        for row, (_, diagnostics) in zip(each, self.pending, strict=True):
            ratios = row[len(self.names) :].view(-1, 2).tolist()
            for name, (part, whole) in zip(diagnostics, ratios, strict=True):
                sums = self.diagnostics.setdefault(name, [0.0, 0.0])
                sums[0] += part
                sums[1] += whole
        first = step - len(self.pending) + 1
        self.pending = []
        bad = (~torch.isfinite(rows)).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise Diverged(self.names[column], first + row, float(rows[row, column]))
        self.sums += rows.sum(dim=0)
        if not self.limits:
            self.limits = (AT_ONCE * (1 + rows[0].abs())).tolist()

    def take_means(self, count: int, step: int, watched: Collection[str]) -> list[float]:
        """Means over the `count` steps since the last call. Raises Diverged where a watched one is over its limit."""
        means: Tensor = self.take_sums() / count
        for name, value, limit in zip(self.names, means.tolist(), self.limits, strict=False):
            if name in watched and value > limit:
                text = f"loss {name} is {value:.3g} at step {step}: it grew without bound"
                raise Diverged(name, step, value, text)
        if self.limits:
            self.intervals += 1
        if self.intervals == 1:
            self.limits = (LATER * (1 + means.abs())).tolist()
        found: list[float] = means.tolist()
        return found

    def take_diagnostics(self) -> dict[str, list[float]]:
        """Of each diagnostic the sums of its parts and wholes since the last call."""
        found, self.diagnostics = self.diagnostics, {}
        return found

    def take_sums(self) -> Tensor:
        sums, self.sums = self.sums, torch.zeros_like(self.sums)
        return sums
