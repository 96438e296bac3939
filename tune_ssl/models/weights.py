"""Weights that an encoder starts from: `model.weights` found, pinned by its content, checked and loaded.

    none                    random
    pretrained              timm's own for the encoder's name and tag, fetched once; pinned as pretrained:TAG
    timm:NAME.TAG           the same, by timm's name of them
    FILE                    safetensors, or what torch.save wrote of tensors alone
    RUN or RUN:CONDITION    the encoder of a run's saved model; so is the folder of an exported model

A file is pinned as PATH#DIGEST, so that the spec's digest has its content, and another file in its place is
refused. No file can run code. Only the encoder is taken: what is left over is a head, and stays behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_ssl.base.errors import Problem, UserError, first_line, nearest
from tune_ssl.base.lazy import LazyModule
from tune_ssl.base.network import probe
from tune_ssl.base.spec import ModelSpec
from tune_ssl.base.yaml_file import read_yaml
from tune_ssl.models import TIMM
from tune_ssl.records import log

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

KEY = "model.weights"
NONE, PRETRAINED = "none", "pretrained"
RUNS = Path("runs")
SHOWN = 10  # names that do not fit
PINNED = re.compile(r"(.+)#([0-9a-f]{12})")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # torchvision's normalisation
WITHIN = ("state_dict", "model_state_dict", "model", "network", "encoder", "teacher")

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def pinned(model: ModelSpec) -> ModelSpec:
    """The spec with `weights` as it is pinned: two equal results mean equal weights.

    Raises:
        UserError: nothing of that name, a file that is another one now, or an encoder without weights in timm.
    """
    text = model.weights
    if text == NONE:
        return model
    if text.startswith(TIMM):  # timm:NAME.TAG, as timm itself calls them
        name, _, tag = text.removeprefix(TIMM).partition(".")
        if model.encoder.removeprefix(TIMM).partition(".")[0] != name:
            raise UserError(Problem(f"is {text!r}, but model.encoder is {model.encoder}", KEY))
        text = f"{PRETRAINED}:{tag}" if tag else PRETRAINED
        model = model.model_copy(update={"weights": text})
    if text == PRETRAINED or text.startswith(f"{PRETRAINED}:"):
        return model.model_copy(update={"weights": f"{PRETRAINED}:{_tag(model)}"})
    found = PINNED.fullmatch(text)
    path = Path(found[1]) if found else _file(text)
    digest = _digest_of(path)
    if found and digest != found[2]:
        now = f"has digest {digest} now" if digest else "is gone"
        text = f"is {path}, which began with digest {found[2]} and {now}: another file is another study"
        raise UserError(Problem(text, KEY))
    return model.model_copy(update={"weights": f"{path}#{digest}"})


def load_weights(encoder: nn.Module, model: ModelSpec, channels: int) -> None:
    """Load what a pinned `model.weights` names into `encoder`, whole or not at all.

    Weights of a first layer for 3 channels are summed for 1 and repeated for others, position embeddings interpolated
    where timm can.

    Raises:
        UserError: it cannot be fetched or read, would run code, or is of another network.
    """
    if model.weights == NONE:
        return
    if model.weights.startswith(PRETRAINED):
        state = _fetched(f"{model.encoder.removeprefix(TIMM).partition('.')[0]}.{_tag(model)}")
        shown = f"{model.encoder}'s own"
    else:
        path = _path(model.weights)
        state, shown = read_tensors(path), str(path)
    fitting = fitted(state, encoder, channels)
    wrong = [
        f"{name} is missing"
        if name not in fitting
        else f"{name} is {_shape(fitting[name])}, not {_shape(own)}"
        for name, own in encoder.state_dict().items()
        if name not in fitting or fitting[name].shape != own.shape
    ]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        text = f"is {shown}, which does not fit {model.encoder}: {'; '.join(wrong[:SHOWN])}{more}"
        raise UserError(Problem(text, KEY))
    encoder.load_state_dict({name: fitting[name] for name in encoder.state_dict()})


def statistics(model: ModelSpec, channels: int) -> Statistics | None:
    """(mean, deviation) of each channel, in 0..1, that the weights were trained with; None: the data's own.

    `model.mean` and `model.std` go first, then what lies beside a saved model, then what timm says of the encoder.
    Images with other channels than 3 take the mean over those of the weights for each channel.
    """
    if model.mean is not None and model.std is not None:
        found: Statistics = (tuple(model.mean), tuple(model.std))
    elif model.weights == NONE:
        return None
    else:
        found = _of_saved(model.weights) or _of_timm(model) or IMAGENET
    mean, std = found
    if len(mean) == channels:
        return found
    if len(mean) == 1:
        return mean * channels, std * channels
    if channels == 1 or (channels != 3 and model.mean is None):
        return (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    text = f"has {len(mean)} channels, but the images have {channels}"
    raise UserError(Problem(text, "model.mean"))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """name -> tensor of a safetensors file, or of what torch.save wrote, whatever its suffix.

    Raises:
        UserError: it cannot be read, is torn, holds no tensors, or would run code.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise UserError(
            Problem(f"is {path}, which cannot be read: {first_line(error)}", KEY)
        ) from None
    try:
        if head[8:9] == b"{":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, EOFError, OSError):
        raise UserError(Problem(f"is {path}, which is torn", KEY)) from None
    except Exception as error:
        says, is_pickle = str(error), head[:1] == b"\x80" or head[:2] == b"PK"
        if is_pickle and ("Unsupported" in says or "GLOBAL" in says):
            text = f"is {path}, which would run code when it is loaded: save its tensors alone, as safetensors"
        else:
            text = f"is {path}, which is torn, or neither safetensors nor a file of torch.save"
        raise UserError(Problem(text, KEY)) from None
    for name in WITHIN:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    state = {
        str(name): value
        for name, value in (found.items() if isinstance(found, Mapping) else ())
        if isinstance(value, torch.Tensor)
    }
    if not state:
        raise UserError(Problem(f"is {path}, which holds no named tensors", KEY))
    return state


def fitted(state: Mapping[str, Tensor], encoder: nn.Module, channels: int) -> dict[str, Tensor]:
    """The tensors of `state` under the encoder's names, as far as they have a counterpart.

    Names are the encoder's own, with one prefix before all of them (module., encoder., backbone.), or those that timm's
    own filter of the architecture makes of them. Strange names are taken in order, where number and shapes agree,
    and each name that is the encoder's own is in its place.
    """
    own = encoder.state_dict()
    prefix = _prefix(state, own)
    bare = {key.removeprefix(prefix): value for key, value in state.items()}
    named = {name: state[prefix + name] for name in own if prefix + name in state}
    found = named
    if len(found) < len(own) or any(found[n].shape != own[n].shape for n in found):
        found = _by_timm(bare, encoder) or found
    if len(found) < len(own):
        ordered = _in_order(state, own, channels)
        if ordered and all(ordered[name] is value for name, value in named.items()):
            found = ordered
    for name, value in found.items():
        if value.shape != own[name].shape and _adaptable(value, own[name], channels):
            from timm.models import adapt_input_conv

            found[name] = adapt_input_conv(channels, value)
    return found


def _adaptable(given: Tensor, own: Tensor, channels: int) -> bool:
    """Whether they have one shape, but for a first layer that is for 3 channels where the images have others."""
    if given.ndim == own.ndim == 4 and (given.shape[1], own.shape[1]) == (3, channels):
        return given[:, 0].shape == own[:, 0].shape
    return given.shape == own.shape


def _prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What stands before the encoder's own names in `state`: what most of them agree on."""
    first = next(iter(own))
    prefixes = {key[: -len(first)] for key in state if key == first or key.endswith(f".{first}")}
    return max(sorted(prefixes), key=lambda p: sum(p + name in state for name in own), default="")


def _by_timm(state: Mapping[str, Tensor], encoder: nn.Module) -> dict[str, Tensor]:
    """What timm's filter of the encoder's architecture makes of the names; empty where it has none, or cannot."""
    filter_names = getattr(sys.modules[type(encoder).__module__], "checkpoint_filter_fn", None)
    if not type(encoder).__module__.startswith("timm.") or filter_names is None:
        return {}
    try:
        made: dict[str, Tensor] = filter_names(dict(state), encoder)
    except Exception:  # made for the architecture's own files: of another network it says nothing
        return {}
    own = encoder.state_dict()
    return {name: made[name] for name in own if name in made}


def _in_order(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], channels: int
) -> dict[str, Tensor]:
    """Pairs in order, where the encoder's shapes are those of the first tensors of `state`."""
    counted = [name for name, value in own.items() if not _is_count(value)]
    given = [value for value in state.values() if not _is_count(value)]
    found = dict(zip(counted, given, strict=False))
    if len(given) < len(counted) or not all(
        _adaptable(v, own[n], channels) for n, v in found.items()
    ):
        return {}
    return {name: found.get(name, value) for name, value in own.items()}


def _is_count(tensor: Tensor) -> bool:
    """Whether it is one whole number: how many batches a BatchNorm has seen, which not every file has."""
    return tensor.ndim == 0 and not tensor.is_floating_point()


def _file(text: str) -> Path:
    """The weights' file that the user means."""
    path = Path(text).expanduser()
    if path.is_file():
        return path.resolve()
    if (path / log.WEIGHTS).is_file():
        return (path / log.WEIGHTS).resolve()
    name, _, condition = text.partition(":")
    for run in (Path(name).expanduser(), RUNS / name):
        if (run / log.STUDY).is_file():
            return _of_run(run, condition)
    known = [NONE, PRETRAINED, *(run.parent.name for run in RUNS.glob(f"[!.]*/{log.STUDY}"))]
    text = (
        f"is {text!r}, but must be none, pretrained, a weights file, a saved model's folder, RUN or "
        f"RUN:CONDITION{nearest(text, known)}"
    )
    raise UserError(Problem(text, KEY))


def _of_run(run: Path, condition: str) -> Path:
    listed = read_yaml(run / log.STUDY).data.get("conditions") or []
    known = [str(entry.get("id")) for entry in listed if isinstance(entry, dict)]
    if condition and condition not in known:
        hint = f"{nearest(condition, known)} (known: {', '.join(known)})"
        raise UserError(
            Problem(f"is {run}:{condition}, but {run} has no such condition{hint}", KEY)
        )
    wanted = [condition] if condition else known
    files = [run / log.MODELS / str(known.index(name)) / log.WEIGHTS for name in wanted]
    there = [file for file in files if file.is_file()]
    if not there:
        of = f" of condition {condition}" if condition else ""
        text = f"is {run}, which has no saved model{of}: the first fresh seed of a confirmation saves it"
        raise UserError(Problem(text, KEY))
    return there[0].resolve()


def _path(text: str) -> Path:
    found = PINNED.fullmatch(text)
    return Path(found[1]) if found else _file(text)


def _digest_of(path: Path) -> str:
    """12 hex digits of the SHA-256 of a file's content; empty where there is none. UserError where it is unreadable."""
    try:
        status = path.stat()
        return _digest(path, status.st_size, status.st_mtime_ns)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UserError(
            Problem(f"is {path}, which cannot be read: {first_line(error)}", KEY)
        ) from None


@lru_cache(maxsize=64)  # by what tells two contents of a path apart
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _tag(model: ModelSpec) -> str:
    """The tag of timm's weights: that of the encoder's name, else of `pretrained:TAG`, else timm's first one."""
    if not model.encoder.startswith(TIMM):
        text = (
            f"is {PRETRAINED!r}, which timm's encoders have, but {model.encoder} is none; give a weights file, or "
            "an encoder such as timm:resnet18"
        )
        raise UserError(Problem(text, KEY))
    import timm

    name, _, own = model.encoder.removeprefix(TIMM).partition(".")
    asked = model.weights.partition(":")[2]
    tags = [found.partition(".")[2] for found in timm.list_models(f"{name}.*", pretrained=True)]
    tags += [""] * bool(not tags and timm.is_model_pretrained(name))
    if own and asked and own != asked:
        text = f"is {model.weights!r}, but model.encoder is {model.encoder}"
        raise UserError(Problem(text, KEY))
    if not tags:
        raise UserError(Problem(f"is {PRETRAINED!r}, but timm has no weights of {name}", KEY))
    if (tag := own or asked) and tag not in tags:
        hint = f"{nearest(tag, tags)} (known: {', '.join(tags)})"
        raise UserError(Problem(f"has no weights {name}.{tag}{hint}", KEY))
    default = timm.get_pretrained_cfg(name)
    return tag or (default.tag if default is not None and default.tag in tags else tags[0])


def _fetched(name: str) -> dict[str, Tensor]:
    """timm's own weights of that name and tag, from its cache or the network."""
    import timm

    with _offline_at_once():
        try:
            network = timm.create_model(name.rstrip("."), pretrained=True, num_classes=0)
        except Exception as error:
            why = first_line(error).partition(". ")[0][:160].rstrip(".")
            text = (
                f"is {PRETRAINED!r}, but {name} cannot be fetched: {why}. On a machine with a "
                f"network, python -c \"import timm; timm.create_model('{name}', pretrained=True)\" brings it into "
                "the cache that HF_HOME names; or give a file: model.weights=FILE"
            )
            raise UserError(Problem(text, KEY)) from None
    return dict(network.state_dict())


@contextlib.contextmanager
def _offline_at_once() -> Iterator[None]:
    """Without a network the hub's client would try again for a minute: then only its cache is looked at."""
    from huggingface_hub import constants

    host = constants.ENDPOINT.partition("://")[2].partition("/")[0]
    address = host if ":" in host else f"{host}:443"
    reachable = bool(urllib.request.getproxies()) or probe(address, 5) is None
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _of_saved(text: str) -> Statistics | None:
    """What the description beside a saved model says of its channels."""
    if text.startswith(PRETRAINED):
        return None
    try:
        card: Any = json.loads((_path(text).parent / log.MODEL).read_text(encoding="utf-8"))
        return tuple(map(float, card["mean"])), tuple(map(float, card["std"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of_timm(model: ModelSpec) -> Statistics | None:
    if not model.encoder.startswith(TIMM):
        return None
    import timm

    name = model.encoder.removeprefix(TIMM)
    if model.weights.startswith(PRETRAINED):
        name = f"{name.partition('.')[0]}.{_tag(model)}".rstrip(".")
    config = timm.get_pretrained_cfg(name)
    return None if config is None else (tuple(config.mean), tuple(config.std))


def _shape(tensor: Any) -> str:
    return str(tuple(tensor.shape))
