"""Ablation variants: what each row changes of a frozen reference, from the study file or generated."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.base.spec import OptimSpec, digest
from tune_ssl.methods import find_method
from tune_ssl.study.trial import TrialSpec, override

RETUNE = "retune"  # in a variant's mapping: the searched keys that are tuned again for it
JOIN = "+"
MOST_SWITCHES = 5  # 32 rows
LONGEST = 150  # a row's name is part of a folder's


@dataclass(frozen=True)
class Variant:
    """One row: `changes` (dotted keys) of the reference, and the searched keys tuned again for it.

    `switches` names the factors that are on, where the row belongs to a factorial design.
    """

    name: str
    changes: Mapping[str, Any]
    retune: tuple[str, ...] = ()
    switches: tuple[str, ...] | None = None


def variants_from_file(section: Mapping[str, Mapping[str, Any]]) -> list[Variant]:
    """The variants of a study's checked `ablate` section."""
    return [
        Variant(
            name,
            {key: value for key, value in values.items() if key != RETUNE},
            tuple(values.get(RETUNE, ())),
        )
        for name, values in section.items()
    ]


def generated_variants(spec: TrialSpec) -> list[Variant]:
    """What can be taken out of any method: each loss term, all others, ramp-ups, the method itself.

    Terms are switched off within their stage; a stage with one term keeps it. What changes nothing
    of `spec` is left out. Turned off by its weight, a term's images still reach BatchNorm: that is
    not the supervised baseline, which is a row of its own.
    """
    return [v for v in _candidates(spec) if override(spec, v.changes) != spec]


def _candidates(spec: TrialSpec) -> Iterator[Variant]:
    losses = dict(spec.losses.items())
    stages = [s.loss_terms for s in spec.stages() if len(s.loss_terms) > 1]
    for term in dict.fromkeys(itertools.chain(*stages)):
        yield Variant(f"no_{term}", {f"losses.{term}.weight": 0.0})
    for terms in stages:
        for term in terms if len(terms) > 2 else ():  # of two, it is the other one's absence
            off = {f"losses.{other}.weight": 0.0 for other in terms if other != term}
            yield Variant(f"only_{term}", off)
    ramps = {f"losses.{name}.ramp_up": 0.0 for name, loss in losses.items() if loss.ramp_up}
    if ramps:
        yield Variant("no_ramp_up", ramps)
    ways = {"matched": "raw", "raw": "matched"}
    now = getattr(spec.method, "cluster_to_class", None)
    if now in ways:
        yield Variant(f"{ways[now]}_clusters", {"method.cluster_to_class": ways[now]})
    if spec.method.name != "supervised" and not all(stage.fits for stage in spec.stages()):
        yield Variant("supervised_only", _supervised(spec))


def _supervised(spec: TrialSpec) -> dict[str, Any]:
    """The supervised baseline with the same optimizer, batches, labeled view and number of steps."""
    method = {"name": "supervised"}
    if view := getattr(spec.method, "labeled_view", None):
        method["labeled_view"] = view
    steps = spec.stage_steps()
    changes: dict[str, Any] = {"method": method, "losses": {}}
    if set(type(spec.optim).model_fields) > set(OptimSpec.model_fields):  # parts of its own
        last = spec.optim.of(list(steps)[-1])
        changes["optim"] = last.model_dump(include=set(OptimSpec.model_fields))
    nested = spec.model_dump()
    for key in find_method(spec.method.name).defaults:  # which are not the baseline's
        section, _, name = key.partition(".")
        if section not in changes:
            changes[key] = nested[section][name]
    if not isinstance(spec.budget.steps, int) or len(steps) > 1:
        changes["budget.steps"] = sum(steps.values())
    return changes


def factorial_variants(variants: Sequence[Variant], names: Sequence[str]) -> list[Variant]:
    """The full factorial design over the named variants: every combination but the empty one.

    A combination's name has them in the order of `variants`, however they were asked for.

    Raises:
        UserError: fewer than two names, too many or too long ones, or two that set one key to
            different values.
    """
    if not 2 <= len(names) <= MOST_SWITCHES or len(set(names)) < len(names):
        text = f"is {','.join(names)}, but must name 2 to {MOST_SWITCHES} different variants"
        raise UserError(Problem(text, "--factorial"))
    by_name = {variant.name: variant for variant in variants}
    names = [name for name in by_name if name in names]
    if len(JOIN.join(names)) > LONGEST:
        text = f"makes a name of {len(JOIN.join(names))} characters, but at most {LONGEST} fit"
        raise UserError(Problem(text, "--factorial"))
    rows = []
    for size in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, size):
            parts = [by_name[name] for name in chosen]
            changes: dict[str, Any] = {}
            for part in parts:
                if clash := [k for k, v in part.changes.items() if changes.get(k, v) != v]:
                    text = f"combines {', '.join(chosen)}, which set {clash[0]} to different values"
                    raise UserError(Problem(text, "--factorial"))
                changes |= part.changes
            retune = tuple(dict.fromkeys(key for part in parts for key in part.retune))
            rows.append(Variant(JOIN.join(chosen), changes, retune, chosen))
    return rows


def changed_config(
    config: Mapping[str, Any], changes: Mapping[str, Any], method: str
) -> dict[str, Any]:
    """The reference's config with a variant's changes: flat, as `override` and a command line take it.

    What a change replaces goes, and with another method than `method` whatever only that one knows.
    """
    whole = changes.get("method")
    name = whole.get("name") if isinstance(whole, Mapping) else changes.get("method.name", method)
    kept = {
        key: value
        for key, value in config.items()
        if not any(f"{key}.".startswith(f"{change}.") for change in changes)
        and (name == method or not _of_method(key))
    }
    return {**kept, **changes}


def _of_method(key: str) -> bool:
    first, *rest = key.split(".")
    shared = rest[:1] in (["encoder"], ["head"])  # parts of every method's network
    return first in ("method", "losses") or (first == "optim" and len(rest) > 1 and not shared)


def distinct_variants(
    spec: TrialSpec, config: Mapping[str, Any], variants: Iterable[Variant]
) -> Iterator[tuple[Variant, dict[str, Any], str]]:
    """(variant, its config, why it is left out or ""): it changes nothing, or is another one again.

    `spec` is a condition's fixed part and `config` the reference's values in it. UserError where a
    variant does not fit.
    """
    reference = override(spec, config)
    seen = {digest(reference): "the reference"}
    for variant in variants:
        values = changed_config(config, variant.changes, reference.method.name)
        built = digest(override(spec, values))
        same = None if variant.retune else seen.get(built)
        yield variant, values, f"is the same as {same}" if same else ""
        if not variant.retune:
            seen.setdefault(built, variant.name)
