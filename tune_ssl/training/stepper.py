"""One stage's optimizer steps: weights and ramps of the loss terms, precision, averaging, the NaN guard."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from math import isnan, nan
from typing import Any

import torch
from torch import Tensor, nn

from tune_ssl.base.spec import SupervisedLossSpec
from tune_ssl.data.batch import Balance, Batch
from tune_ssl.data.loading import Data, Loader
from tune_ssl.methods.base import Ratio, Stage
from tune_ssl.methods.contract import check_output
from tune_ssl.methods.supervised import balance_of
from tune_ssl.study.trial import TrialSpec, check_contrast
from tune_ssl.training.device import pick_precision
from tune_ssl.training.guard import GRADIENT, Collapsed, Guard
from tune_ssl.training.optimizers import build_optimizers, set_rate
from tune_ssl.training.schedules import ema_decay, learning_rate, ramp_up


class Stepper:
    """Everything that changes while a stage trains; `state` and `load` carry it over an interruption.

    `steps` are the stage's own, `before` those of the stages before it. UserError where the stage contrasts images, and
    a step has too few of them, or one of them twice.
    """

    def __init__(
        self,
        spec: TrialSpec,
        stage: Stage[Any],
        network: nn.Module,
        data: Data,
        steps: int,
        before: int,
    ) -> None:
        self.spec, self.stage, self.steps, self.step = spec, stage, steps, 0
        self.before = before
        # Called after each step with the stage's name and the step, those of the stages before included
        self.on_step: Callable[[str, int], None] | None = None
        self.device = data.device
        self.channels_last = spec.compute.channels_last
        if self.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = network.train()
        self.average = Averaged(network, spec.optim.ema_decay, steps)
        if spec.compute.compile:
            # In place: names stay; a copy, such as the average, is not compiled
            getattr(network, "encoder", network).compile()
        self.optimizers = build_optimizers(spec.optim, stage, network)
        self.precision = pick_precision(spec.compute, self.device)
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.precision is torch.float16)
        self.loader = Loader(data, spec.data, stage.labeled_views, stage.unlabeled_views, spec.seed)
        if stage.contrasts:
            check_contrast(spec, len(self.loader.unlabeled.labels))
        self.weights = dict(spec.losses.items())
        self.balance = self._balance(data)
        self.parts = spec.compute.accumulate
        self.guard = Guard((*stage.loss_terms, GRADIENT), every=20 if self._on_gpu else 1)
        self.reported = 0
        # Of each diagnostic that `stage.idle` watches, over all intervals
        self.largest: dict[str, float] = {}

    @property
    def averaged(self) -> nn.Module:
        """The network whose weights are evaluated."""
        return self.average.network

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def start(self) -> None:
        """Let the stage set what depends on data; the averaged weights start equal.

        The features are those of a step: BatchNorm normalises by the batch, for its own statistics
        are still empty, and does not learn from it.
        """
        norms = [
            m for m in self.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
        ]
        kept = [copy.deepcopy(norm.state_dict()) for norm in norms]
        with torch.no_grad():
            self.stage.start(self.network, self.loader.sample())
        for norm, state in zip(norms, kept, strict=True):
            norm.load_state_dict(state)
        self.average.copy()

    @property
    def images_seen(self) -> int:
        """Distinct images per step, times the steps so far."""
        return self.step * self.loader.images_per_step

    def advance_to(self, step: int) -> dict[str, float]:
        """Optimizer steps until `step`; returns the means of `take_means`."""
        while self.step < step:
            self.advance()
            if self.on_step is not None:
                self.on_step(self.stage.name, self.before + self.step)
        return self.take_means()

    def factors(self, progress: float) -> dict[str, float]:
        """weight x ramp of each loss term at `progress` in [0, 1]."""
        return {
            term: self.weights[term].weight * ramp_up(progress, self.weights[term].ramp_up)
            for term in self.stage.loss_terms
        }

    def advance(self) -> None:
        """One optimizer step. Raises Diverged, on a GPU at most 20 steps late."""
        progress = self.step / self.steps
        factors = self.factors(progress)
        for optim, optimizer in self.optimizers.values():
            set_rate(optimizer, optim.lr * learning_rate(progress, optim.schedule, optim.warmup))
        batch = self.loader.next()._replace(balance=self.balance, progress=progress)
        if self.channels_last:
            batch = batch._replace(
                labeled=tuple(map(to_channels_last, batch.labeled)),
                unlabeled=tuple(map(to_channels_last, batch.unlabeled)),
            )
        for _, optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        parts = split(batch, self.parts)
        # The gradients of the parts add up, each a mean over a part: together the mean over the batch.
        found = [self._part(part, factors) for part in parts]
        norm = self._descend()
        self.step += 1
        self.average.update(self.step)
        of_terms = zip(*[losses for losses, _ in found], strict=True)
        means = [torch.stack(own).mean() if len(parts) > 1 else own[0] for own in of_terms]
        diagnostics = [own for _, of_part in found for own in of_part]
        guarded = norm if self.precision is not torch.float16 else norm.nan_to_num(posinf=0)
        self.guard.add([*means, guarded], diagnostics, self.before + self.step)

    def _part(
        self, batch: Batch, factors: dict[str, float]
    ) -> tuple[list[Tensor], list[tuple[str, Ratio]]]:
        """Add the gradients of a part of the batch; its raw losses, in the order of the terms, and its diagnostics."""
        try:
            with self.autocast():
                out = self.stage.step(self.network, batch)
        except Exception:
            # Where a NaN made the method fail, the NaN is the cause to name.
            self.guard.check(self.before + self.step)
            raise
        check_output(self.stage, out)
        # A term that counts nothing can still be NaN: it must not reach the sum as 0 x NaN.
        total = sum(factors[term] * out.losses[term] for term in out.losses if factors[term] > 0)
        if isinstance(total, Tensor) and total.requires_grad:  # else every term is ramped to 0
            self.scaler.scale(total if self.parts == 1 else total / self.parts).backward()
        losses = [
            out.losses[t].detach().float()
            if factors[t] > 0
            else out.losses[t].detach().float().nan_to_num()
            for t in self.stage.loss_terms
        ]
        diagnostics = [
            (name, value if isinstance(value, Ratio) else Ratio(value, torch.ones_like(value)))
            for name, value in out.diagnostics.items()
        ]
        return losses, diagnostics

    def _descend(self) -> Tensor:
        """Each optimizer's step along the gradient; its norm, which is 0 where no term counts yet."""
        optimizers = [optimizer for _, optimizer in self.optimizers.values()]
        if all(p.grad is None for p in self.network.parameters()):
            return torch.zeros((), device=self.device)
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)
        norm = self._gradient_norm()
        for optimizer in optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        return norm

    def take_means(self) -> dict[str, float]:
        """Mean losses and diagnostics since the last call, and the schedule's values at this step.

        Raises Diverged as `advance` does, and where a term grew without bound; Collapsed where a diagnostic is under
        its floor.
        """
        self.guard.check(self.before + self.step)
        count = max(self.step - self.reported, 1)
        counted = [t for t in self.stage.loss_terms if self.weights[t].weight > 0]
        means = self.guard.take_means(count, self.before + self.step, counted)
        values = {f"loss/{t}": v for t, v in zip(self.stage.loss_terms, means, strict=False)}
        factors = self.factors(self.step / self.steps)
        values |= {f"weight/{term}": factor for term, factor in factors.items()}
        values["loss/total"] = sum(factors[t] * values[f"loss/{t}"] for t in self.stage.loss_terms)
        values["gradient_norm"] = means[-1]
        for part, (_, optimizer) in self.optimizers.items():
            top = optimizer.param_groups[0]  # the group next to the head comes first
            values[f"lr/{part}" if part else "lr"] = top["lr"] / top["lr_scale"]
        sums = self.guard.take_diagnostics()
        values |= {f"diag/{n}": part / whole if whole else nan for n, (part, whole) in sums.items()}
        for name in self.stage.idle:
            if name in sums:
                value = values[f"diag/{name}"]
                self.largest[name] = max(
                    self.largest.get(name, 0.0), 0.0 if isnan(value) else value
                )
        first, self.reported = self.reported + 1, self.step
        for name, floor in self.stage.floors.items():
            if values[f"diag/{name}"] < floor:
                at = (self.before + first, self.before + self.step)
                raise Collapsed(name, values[f"diag/{name}"], floor, *at)
        return values

    def idle(self) -> list[str]:
        """The stage's sentences on diagnostics that were 0 in every interval so far."""
        return [text for name, text in self.stage.idle.items() if self.largest.get(name) == 0]

    def state(self) -> dict[str, Any]:
        """Everything as tensors and plain values, so that it loads without running code."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": {part: o.state_dict() for part, (_, o) in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
            "limits": {"values": self.guard.limits, "intervals": self.guard.intervals},
            "largest": dict(self.largest),
            "loader": self.loader.state(),
            "rng": torch.get_rng_state(),
            "rng_gpu": torch.cuda.get_rng_state(self.device) if self._on_gpu else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.step = self.reported = state["step"]
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        for part, (_, optimizer) in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][part])
        self.scaler.load_state_dict(state["scaler"])
        self.guard.limits = list(state["limits"]["values"])
        self.guard.intervals = state["limits"]["intervals"]
        self.largest = dict(state["largest"])
        self.loader.load(state["loader"])
        torch.set_rng_state(state["rng"])
        if self._on_gpu and state["rng_gpu"] is not None:
            torch.cuda.set_rng_state(state["rng_gpu"], self.device)

    def _balance(self, data: Data) -> Balance | None:
        """What the stage's supervised term asks for, of all labeled images."""
        terms = [self.weights[term] for term in self.stage.loss_terms]
        how = next((term.balance for term in terms if isinstance(term, SupervisedLossSpec)), "none")
        labels_N = torch.from_numpy(data.sets.labeled.labels)
        found = balance_of(how, labels_N, data.task.num_classes)
        return found and Balance(*(part.to(self.device) for part in found))

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def _gradient_norm(self) -> Tensor:
        """Of the whole network, before each optimizer's own parameters are clipped to optim.grad_clip."""
        norms = []
        for _, optimizer in self.optimizers.values():
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            gradients = [p.grad for p in parameters if p.grad is not None]
            if not gradients:  # its only term counts nothing yet
                continue
            norms.append(nn.utils.get_total_norm(gradients))
            if self.spec.optim.grad_clip is not None:
                nn.utils.clip_grads_with_norm_(parameters, self.spec.optim.grad_clip, norms[-1])
        total: Tensor = torch.stack(norms).norm()
        return total


class Averaged:
    """Exponential moving average of a network: its parameters and BatchNorm's statistics.

    Whole numbers (batch counts, the cluster-to-class map) are copied. With decay 0 the average is
    the network itself. What is frozen stays equal, and is left out. The decay at each step is
    `schedules.ema_decay`.
    """

    def __init__(self, network: nn.Module, decay: float, steps: int) -> None:
        self.decay, self.steps = (decay if ema_decay(decay, steps, steps) else 0.0), steps
        self.network = copy.deepcopy(network).requires_grad_(False) if self.decay else network
        kept, still = _tensors(self.network), _frozen(network)
        both = [
            (kept[name], current.detach())
            for name, current in _tensors(network).items()
            if name not in still
        ]
        self._floats = [pair for pair in both if pair[0].is_floating_point()]
        self._others = [pair for pair in both if not pair[0].is_floating_point()]

    def update(self, step: int) -> None:
        """average += (1 - decay) x (network - average), after the optimizer's step number `step`, from 1."""
        self._move(1 - ema_decay(self.decay, self.steps, step))

    def copy(self) -> None:
        """Be the network as it is."""
        self._move(1.0)

    @torch.no_grad()
    def _move(self, weight: float) -> None:
        if not self.decay:
            return
        if self._floats:
            old, new = zip(*self._floats, strict=True)
            torch._foreach_lerp_(old, new, weight)
        if self._others:
            old, new = zip(*self._others, strict=True)
            torch._foreach_copy_(old, new)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _frozen(network: nn.Module) -> set[str]:
    """The names of frozen parameters, and of the statistics of frozen modules in eval mode."""
    still = {name for name, p in network.named_parameters() if not p.requires_grad}
    for name, module in network.named_modules():
        own = [*module.parameters(recurse=False)]
        if own and not module.training and not any(p.requires_grad for p in own):
            still |= {f"{name}.{inner}" for inner, _ in module.named_buffers(recurse=False)}
    return still


def split(batch: Batch, parts: int) -> list[Batch]:
    """`parts` batches of equal size, in order; sizes must divide."""
    if parts == 1:
        return [batch]

    def cut(images: Tensor) -> tuple[Tensor, ...]:
        return images.tensor_split(parts)

    labeled, unlabeled = (
        list(zip(*map(cut, views), strict=True)) or [()] * parts
        for views in (batch.labeled, batch.unlabeled)
    )
    labels, hidden = cut(batch.labels_N), cut(batch.hidden_labels_U)
    ids = (None,) * parts if batch.ids_U is None else cut(batch.ids_U)
    return [
        batch._replace(labeled=own, labels_N=of, unlabeled=other, hidden_labels_U=under, ids_U=at)
        for own, of, other, under, at in zip(labeled, labels, unlabeled, hidden, ids, strict=True)
    ]


def to_channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
