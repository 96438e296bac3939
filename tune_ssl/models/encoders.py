"""Encoders: images (N, C, H, W) to features (N, encoder.out_dim).

Every encoder takes any number of channels. A `small` stem keeps the resolution (3x3 convolution, no
pooling, He et al. 2016 section 4.2); a `large` stem reduces it at once by 4.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from tune_ssl.base.errors import Problem, UserError
from tune_ssl.models import TIMM, check_encoder


def build_encoder(name: str, channels: int, stem: str, size: tuple[int, int]) -> nn.Module:
    """The encoder of that name for images of `size` (height, width), with random weights.

    UserError for an unknown name, or a timm model that takes no such images.
    """
    check_encoder(name)
    if name.startswith(TIMM):
        return _timm(name.removeprefix(TIMM), channels, size)
    if name == "pixels":
        return Pixels(channels * size[0] * size[1])
    build = {
        "small_cnn": SmallCNN,
        "keras_cnn": KerasCNN,
        "resnet18": _resnet18,
        "resnet50": _resnet50,
        "wrn_28_2": WideResNet,
    }[name]
    return build(channels, stem)


def layer_groups(encoder: nn.Module) -> list[list[str]]:
    """The names of the encoder's parameters in groups, from the image on; each name once.

    A group is a stage of a ResNet or WRN, a convolution of a small CNN with its normalisation, and of a timm model
    what timm's `group_matcher(coarse=True)` says: a stem, stages or transformer blocks, and what comes after them.
    """
    if hasattr(encoder, "group_matcher"):
        from timm.models import group_parameters

        matcher: Any = encoder.group_matcher
        named = group_parameters(encoder, matcher(coarse=True))
        return [named[group] for group in sorted(named)]
    groups: list[list[str]] = []
    for name, module in encoder.named_children():
        whole = [f"{name}.{inner}" for inner, _ in module.named_parameters()]
        if isinstance(encoder, WideResNet) and module is encoder.groups:
            size = encoder.blocks_per_stage
            for start in range(0, len(encoder.groups), size):
                blocks = {str(i) for i in range(start, start + size)}
                groups.append([n for n in whole if n.split(".")[1] in blocks])
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and groups:
            groups[-1] += whole  # it belongs to the convolution before it
        elif whole:
            groups.append(whole)
    return groups


def freeze(encoder: nn.Module, how: str | int, name: str) -> list[nn.Module]:
    """Stop the training of all of the encoder, or of its first groups; the modules that must stay in eval mode.

    `how` is "none", "all" or a number of groups; UserError if `name` has fewer.
    """
    if how == "none":
        return []
    if how == "all":
        encoder.requires_grad_(False)
        return [encoder]
    groups = layer_groups(encoder)
    assert isinstance(how, int)
    if how > len(groups):
        text = f"is {how}, but {name} has {len(groups)} groups of layers"
        raise UserError(Problem(text, "model.freeze"))
    frozen = {inner for group in groups[:how] for inner in group}
    for inner, parameter in encoder.named_parameters():
        if inner in frozen:
            parameter.requires_grad_(False)
    return [
        module
        for module in encoder.modules()
        if (within := [*module.parameters()]) and not any(p.requires_grad for p in within)
    ]


class Pixels(nn.Flatten):
    """The image as it is, (N, C x H x W): what a classical method has where nothing is pretrained."""

    def __init__(self, out_dim: int) -> None:
        super().__init__()
        self.out_dim = out_dim


class SmallCNN(nn.Sequential):
    """Three blocks of 3x3 convolution, BatchNorm and ReLU, strided instead of pooled; fast on a CPU.

    `width`, twice and four times `width` channels.
    """

    def __init__(self, channels: int, stem: str, width: int = 32) -> None:
        layers: list[nn.Module] = []
        for i in range(3):
            stride = 1 if i == 0 and stem == "small" else 2
            layers += [
                nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels, width = width, 2 * width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.out_dim = channels


class KerasCNN(nn.Sequential):
    """Four 3x3 convolutions of width 128 and stride 2, flattened.

    Source: the Keras example "semisupervised SimCLR". Stride 1 in the last two under a small stem,
    so that an 8 px image is not reduced to nothing.
    """

    def __init__(self, channels: int, stem: str, width: int = 128) -> None:
        layers: list[nn.Module] = []
        for i in range(4):
            stride = 1 if stem == "small" and i >= 2 else 2
            layers += [nn.Conv2d(channels, width, 3, stride, padding=1), nn.ReLU(inplace=True)]
            channels = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.out_dim = width * 4


def _resnet18(channels: int, stem: str) -> nn.Module:
    from torchvision.models import resnet18

    return _with_stem(resnet18(weights=None), channels, stem)


def _resnet50(channels: int, stem: str) -> nn.Module:
    from torchvision.models import resnet50

    return _with_stem(resnet50(weights=None), channels, stem)


def _with_stem(network: Any, channels: int, stem: str) -> nn.Module:
    width = network.conv1.out_channels
    if stem == "small":
        network.conv1 = nn.Conv2d(channels, width, 3, 1, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
    network.out_dim = network.fc.in_features
    network.fc = nn.Identity()
    return cast(nn.Module, network)


class WideResNet(nn.Module):
    """WRN-28-2 (arXiv 1605.07146) as FixMatch's own code has it: pre-activation, leaky ReLU 0.1, He's initial weights.

    Only the first block's shortcut reads activated maps. BatchNorm's momentum is torch's.
    """

    def __init__(self, channels: int, stem: str, depth: int = 28, widen: int = 2) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        first = 2 if stem == "large" else 1
        self.conv = nn.Conv2d(channels, widths[0], 3, first, padding=1, bias=False)
        self.groups = nn.Sequential(
            *(
                _WideBlock(
                    widths[g] if b == 0 else widths[g + 1],
                    widths[g + 1],
                    stride=2 if b == 0 and (g > 0 or stem == "large") else 1,
                    activated=g == 0,
                )
                for g in range(3)
                for b in range(blocks)
            )
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.out_dim = widths[-1]
        self.blocks_per_stage = blocks
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # deviation sqrt(2 / (k x k x filters))
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        maps = nn.functional.leaky_relu(self.norm(self.groups(self.conv(images))), 0.1)
        return maps.mean(dim=(2, 3))


class _WideBlock(nn.Module):
    """Where the shape changes, a convolution is the shortcut: of the input, or, if `activated`, of what conv1 reads."""

    def __init__(self, before: int, after: int, stride: int, activated: bool) -> None:
        super().__init__()
        self.activated = activated
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, padding=1, bias=False)
        same = before == after and stride == 1
        self.shortcut = None if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        active = nn.functional.leaky_relu(self.norm1(maps), 0.1)
        residual = maps
        if self.shortcut is not None:
            residual = self.shortcut(active if self.activated else maps)
        out: Tensor = self.conv2(nn.functional.leaky_relu(self.norm2(self.conv1(active)), 0.1))
        return out + residual


def _timm(name: str, channels: int, size: tuple[int, int]) -> nn.Module:
    import timm

    options = {"pretrained": False, "in_chans": channels, "num_classes": 0}
    try:
        network: nn.Module = timm.create_model(name, img_size=size, **options)
    except TypeError as error:  # it takes images of any size
        if "img_size" not in str(error):
            raise
        network = timm.create_model(name, **options)
    network.out_dim = network.head_hidden_size
    return network
