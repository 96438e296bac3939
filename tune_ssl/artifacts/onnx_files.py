"""`tune-ssl export --onnx`: a saved network as one ONNX file, from pixels to probabilities.

The exporter is torch's older one, which traces (`dynamo=False`): it needs only onnx, and exports a network in
0.1 to 3 s. The newer one (`dynamo=True`) needs onnxscript and onnx-ir too, and took 5 to 40 s for the same ones.

Shapes: N images, C channels, K classes; M features' rows, D features, B rows of a bank.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tune_ssl.artifacts.model_files import Card, Model
from tune_ssl.base.errors import Problem, UserError, first_line
from tune_ssl.base.lazy import LazyModule

if TYPE_CHECKING:
    import onnx
    import onnxruntime  # type: ignore[import-untyped]
    import torch
    from torch import Tensor, nn

    from tune_ssl.models import fitted
else:
    onnx = LazyModule("onnx")
    onnxruntime = LazyModule("onnxruntime")
    torch = LazyModule("torch")
    fitted = LazyModule("tune_ssl.models.fitted")

ONNX = "model.onnx"
OPSET = 17  # onnxruntime 1.12 of 2022 and later read it
LARGEST = 2**31 - 1  # bytes of one ONNX file
TOLERANCE = 1e-4  # of a probability
CHECKED = [1, 3]  # images in the batches that are compared
POOL = 64  # random images that these are taken of
TIE = 1e-5  # two distances that differ by no more of themselves are one
TRACED = 2  # neither of them, and not 1, which a trace could take for a constant

Classify = Callable[["Tensor"], tuple["Tensor", "Tensor"]]


def check_installed() -> None:
    """UserError unless onnx and onnxruntime are there; loads neither."""
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        what = f"package{'s' if len(missing) > 1 else ''} {' and '.join(missing)}"
        verb = "are" if len(missing) > 1 else "is"
        raise UserError(f"the {what} {verb} not installed; pip install 'tune-ssl[onnx]'")


def write_onnx(model: Model, path: Path) -> float:
    """Write the network of a model on the CPU to `path`, after a comparison with its own predictions.

    The file's input is `images`, uint8 (N, C, H, W) for any N; its outputs are `probabilities` (N, K), whose
    rows sum to 1, and `logits` (N, K), both float32. Its metadata has `classes`, `mean` and `std` as JSON lists,
    and `tune_ssl`, `trial` and `condition` as texts.

    Returns the largest difference of a probability, at most TOLERANCE, on random images in batches of 1 and 3.

    Raises:
        UserError: a package is missing, the network has no classes, its probabilities are not finite, it cannot
            be exported, or a probability differs by more than TOLERANCE.
        OSError: the file cannot be written.
    """
    check_installed()
    card = model.card
    classify = _classifier(model)
    batches = _without_ties(model, classify, _random_images(card, POOL)).split(CHECKED)
    own = [_probabilities(model, classify, images) for images in batches]
    content = _exported(model, classify)
    difference = 0.0
    for images, own_NK in zip(batches, own, strict=True):
        got_NK = _run(card, content, images)
        if got_NK.shape != own_NK.shape:
            text = (
                f"gives probabilities of shape {got_NK.shape} as ONNX, but must give {own_NK.shape}"
            )
            raise UserError(Problem(text, card.trial))
        difference = float(np.maximum(difference, np.abs(got_NK - own_NK).max()))  # keeps NaN
    if not difference <= TOLERANCE:
        text = f"gives other probabilities as ONNX: one differs by {difference:.2g}, at most {TOLERANCE:g} may be"
        raise UserError(Problem(text, card.trial))
    path.write_bytes(content)
    return difference


def usage(card: Card, difference: float) -> list[str]:
    """Lines of Markdown: how to use the file without tune-ssl, and the difference that was measured."""
    width = card.image_width or card.image_size
    grey = card.channels == 1
    mode, array = (
        ("L", "pixels[None, None]") if grey else ("RGB", "pixels.transpose(2, 0, 1)[None]")
    )
    how = card.decoding or {}
    kind = {"pad": "pad", "squash": "squash"}.get(how.get("resize", "crop"), "fit")
    size = f"({width}, {card.image_size})"
    upright = f'ImageOps.exif_transpose(Image.open("photo.png")).convert("{mode}")'
    scaled = {
        "fit": f"ImageOps.fit({upright}, {size}, Image.Resampling.BILINEAR)",
        "pad": f'ImageOps.pad({upright}, {size}, Image.Resampling.BILINEAR, "{how.get("background")}")',
        "squash": f"{upright}.resize({size}, Image.Resampling.BILINEAR)",
    }[kind]
    deep = how.get("ranges")
    about = [
        f"Values of images of more than 8 bits a channel become 0 to 255 between {deep} (one pair for all channels, or "
        "one for each), which this example does not do."
    ]
    return [
        "## How to use it without tune-ssl",
        "",
        f"`{ONNX}` takes `images`, uint8 ({card.channels} x {card.image_size} x {width}, any number of images), and "
        "gives `probabilities`",
        f"and `logits`, one for each of {len(card.classes)} classes. Pixels are normalised inside it. "
        "It needs onnxruntime, numpy and, here, Pillow:",
        "",
        "    import json, numpy, onnxruntime",
        "    from PIL import Image, ImageOps",
        f'    session = onnxruntime.InferenceSession("{ONNX}")',
        f"    pixels = numpy.asarray({scaled})",
        f'    probabilities, logits = session.run(None, {{"images": {array}}})',
        '    print(json.loads(session.get_modelmeta().custom_metadata_map["classes"])'
        "[probabilities[0].argmax()])",
        "",
        f"Its probabilities differ from those of `tune-ssl predict` by at most {difference:.1e}, measured on random "
        "images of this size.",
        "An image of another size is scaled by Pillow here, nearly but not exactly as `tune-ssl predict` scales it.",
        *(about if deep else ()),
        "",
    ]


def _classifier(model: Model) -> Classify:
    """uint8 images (N, C, H, W) -> probabilities (N, K) and logits (N, K), as `predict` computes them."""
    from tune_ssl.data.loading import Normalizer

    normalizer = Normalizer(model.card.mean, model.card.std, model.device)

    def classify(images: Tensor) -> tuple[Tensor, Tensor]:
        logits_NK = model.stage.predict(model.network, normalizer.normalize(images)).logits_NK
        if logits_NK is None:
            text = f"has no classes: its last stage, {model.card.stage}, gives features only"
            raise UserError(Problem(text, model.card.trial))
        return logits_NK.float().softmax(dim=1), logits_NK.float()

    return classify


def _random_images(card: Card, size: int) -> Tensor:
    shape = (size, card.channels, card.image_size, card.image_width or card.image_size)
    pixels = np.random.default_rng(size).integers(0, 256, shape, dtype=np.uint8)
    return torch.from_numpy(pixels)


def _without_ties(model: Model, classify: Classify, images: Tensor) -> Tensor:
    """As many of the images as are checked; of nearest neighbours those where no two rows are equally near.

    Which of two rows that are equally far counts as the k-th is left to rounding, here as in onnxruntime.
    """
    clear_N = torch.ones(len(images), dtype=torch.bool)

    def look(head: fitted.Neighbors, inputs: tuple[Tensor]) -> None:
        if head.k < len(head.bank_BD):
            distances_NB = torch.cdist(inputs[0].double(), head.bank_BD.double())
            near_Nk = distances_NB.topk(head.k + 1, largest=False).values
            clear_N.logical_and_(near_Nk[:, -1] - near_Nk[:, -2] > TIE * near_Nk[:, -1])

    heads = [child for child in model.network.modules() if isinstance(child, fitted.Neighbors)]
    if heads:
        hooks = [head.register_forward_pre_hook(look) for head in heads]
        try:
            with torch.no_grad():
                classify(images)
        finally:
            for hook in hooks:
                hook.remove()
    clear_first = clear_N.int().argsort(descending=True, stable=True)
    return images[clear_first[: sum(CHECKED)]]


def _probabilities(model: Model, classify: Classify, images: Tensor) -> NDArray[np.float32]:
    with torch.no_grad():
        found: NDArray[np.float32] = classify(images)[0].numpy()
    if not np.isfinite(found).all():
        raise UserError(Problem("gives probabilities that are not finite", model.card.trial))
    return found


def _exported(model: Model, classify: Classify) -> bytes:
    """The whole ONNX file."""
    card = model.card
    if sum(value.nbytes for value in model.network.state_dict().values()) > LARGEST:
        text = "cannot be exported as ONNX: its weights are larger than 2 GiB, all that one file can hold"
        raise UserError(Problem(text, card.trial))

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model.network  # so that its weights are the file's

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            # torch.onnx.export turns this on, and then prints the graph where it cannot go on
            if hasattr(torch._C, "_jit_set_onnx_log_enabled"):
                torch._C._jit_set_onnx_log_enabled(False)
            return classify(images)

    outputs = ["probabilities", "logits"]
    file = io.BytesIO()
    try:
        with _neighbors_as_onnx(model.network), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a trace cannot follow shows in the comparison
            torch.onnx.export(
                Whole().eval(),
                (_random_images(card, TRACED),),
                file,  # type: ignore[arg-type]  # the tracing exporter takes a file, too
                dynamo=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=outputs,
                dynamic_axes={name: {0: "N"} for name in ("images", *outputs)},
                do_constant_folding=False,  # it would write a bank a second time, in double precision
            )
        graph = onnx.load_model_from_string(file.getvalue())
        onnx.helper.set_model_props(
            graph,
            {
                "classes": json.dumps(card.classes),
                "mean": json.dumps(card.mean),
                "std": json.dumps(card.std),
                "tune_ssl": card.tune_ssl,
                "trial": card.trial,
                "condition": card.condition,
            },
        )
        return bytes(graph.SerializeToString())
    except UserError:
        raise
    except Exception as error:  # of the exporter, which has many, or of the network that it traces
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(Problem(f"cannot be exported as ONNX: {reason}", card.trial)) from error


def _run(card: Card, content: bytes, images: Tensor) -> NDArray[np.float32]:
    """The probabilities that onnxruntime computes on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised
    try:
        session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        found: NDArray[np.float32] = session.run(["probabilities"], {"images": images.numpy()})[0]
    except Exception as error:  # its types are its own, and have no common one
        text = f"cannot be run by onnxruntime {onnxruntime.__version__}: {first_line(error)}"
        raise UserError(Problem(text, card.trial)) from error
    return found


@contextlib.contextmanager
def _neighbors_as_onnx(network: nn.Module) -> Iterator[None]:
    """In the block, nearest neighbours are computed in a way that ONNX can do with little memory."""
    swapped = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, fitted.Neighbors)
    ]
    for parent, name, child in swapped:
        setattr(parent, name, _ranked(child))
    try:
        yield
    finally:
        for parent, name, child in swapped:
            setattr(parent, name, child)


def _ranked(head: fitted.Neighbors) -> nn.Module:
    """The same neighbours and votes as `head`, without its chunks and without a difference to every row.

    The nearest rows are found by |b|^2 - 2 a.b in double precision, which loses nothing that counts; only
    their distances are then computed as `head` does, so that a row which is the image itself is at distance 0.
    """

    class Ranked(torch.nn.Module):
        bank_BD: Tensor
        shares_BK: Tensor
        squares_B: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("bank_BD", head.bank_BD)
            self.register_buffer("shares_BK", head.shares_BK)
            self.register_buffer("squares_B", head.bank_BD.double().square().sum(dim=1))

        def forward(self, features_MD: Tensor) -> Any:
            features_MD = features_MD.float()
            products_MB = features_MD.double() @ self.bank_BD.double().T
            ranks_MB = self.squares_B - 2 * products_MB
            rows_Mk = ranks_MB.topk(min(head.k, len(head.bank_BD)), largest=False).indices
            apart_MkD = features_MD[:, None] - self.bank_BD[rows_Mk]
            near_Mk = apart_MkD.square().sum(dim=2).sqrt()
            votes_Mk = torch.ones_like(near_Mk)
            if head.weights == "distance":
                at_Mk = (near_Mk == 0).float()
                at_M1 = at_Mk.sum(dim=1, keepdim=True) > 0
                votes_Mk = torch.where(at_M1, at_Mk, 1 / near_Mk.clamp(min=1e-30))
            sums_MK = (votes_Mk[:, None] @ self.shares_BK[rows_Mk])[:, 0]
            shares_MK = sums_MK / sums_MK.sum(dim=1, keepdim=True).clamp(min=1e-30)
            return shares_MK.clamp(min=1e-12).log()

    return Ranked()
