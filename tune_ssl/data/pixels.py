"""What happens to the pixels: image operations on a batch, every parameter given per image.

Nothing here is random; `ops.py` draws the parameters. The results are those of
`torchvision.transforms.v2.functional` for the same image and parameter, except that one call
serves a whole batch; `translate_zoom` and `color_matrix` are Keras's. Inputs are never written to.

Shapes: N images, C channels, H rows, W columns. `images_NCHW` is uint8; a parameter
`x_N` is a tensor on the same device as the images. On other than three channels `color`, `hue` and `grayscale`
change nothing, as in PIL on one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MID_GREY = 127


def _per_image(x_N: Tensor) -> Tensor:
    return x_N.view(-1, 1, 1, 1)


def _to_uint8(x_NCHW: Tensor) -> Tensor:
    """Clip and truncate: the rule of torchvision's blends."""
    return x_NCHW.clamp_(0, 255).to(torch.uint8)


# ---- geometry: which source pixel goes where ----------------------------------------------------


def _gather(images_NCHW: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Pixel (rows, cols) of each image; both broadcast to (N, H, W)."""
    n, c, h, w = images_NCHW.shape
    index = (rows * w + cols).view(n, 1, h * w).expand(n, c, h * w)
    return images_NCHW.flatten(2).gather(2, index).view(n, c, h, w)


def _bilinear(images_NCHW: Tensor, y_NH: Tensor, x_NW: Tensor, outside: str) -> Tensor:
    """Each image at rows y and columns x, both in pixels; `outside` is grid_sample's padding."""
    _, _, h, w = images_NCHW.shape
    grid_y = ((2 * y_NH + 1) / h - 1)[:, :, None].expand(-1, h, w)
    grid_x = ((2 * x_NW + 1) / w - 1)[:, None, :].expand(-1, h, w)
    grid_NHW2 = torch.stack((grid_x, grid_y), dim=-1)
    sampled = F.grid_sample(
        images_NCHW.float(), grid_NHW2, padding_mode=outside, align_corners=False
    )
    return _to_uint8(sampled.round_())


def flip(images_NCHW: Tensor, flipped_N: Tensor) -> Tensor:
    """Mirror left and right the images whose flag is True."""
    return torch.where(_per_image(flipped_N), images_NCHW.flip(-1), images_NCHW)


def shift_reflect(images_NCHW: Tensor, dy_N: Tensor, dx_N: Tensor) -> Tensor:
    """Reflect-pad, then crop at the integer offset (dy, dx): the padded crop of CIFAR recipes.

    An offset of (0, 0) is the identity; |dy| must be below H and |dx| below W.
    """
    _, _, h, w = images_NCHW.shape
    rows_NH = (torch.arange(h, device=dy_N.device) + dy_N[:, None]).abs()
    cols_NW = (torch.arange(w, device=dx_N.device) + dx_N[:, None]).abs()
    rows_NH = h - 1 - (h - 1 - rows_NH).abs()
    cols_NW = w - 1 - (w - 1 - cols_NW).abs()
    return _gather(images_NCHW, rows_NH[:, :, None], cols_NW[:, None, :])


def affine(images_NCHW: Tensor, matrix_N23: Tensor, fill: int = 0) -> Tensor:
    """Output pixel (x, y) shows source pixel `matrix @ (x, y, 1)`, nearest neighbour.

    Coordinates count from the image centre in pixels, y downwards. Nearest and black outside are
    the defaults of torchvision's and of PIL's RandAugment.
    """
    n, _, h, w = images_NCHW.shape
    x_W = torch.arange(w, device=matrix_N23.device) + (0.5 - w / 2)
    y_H1 = torch.arange(h, device=matrix_N23.device)[:, None] + (0.5 - h / 2)
    one = torch.ones_like(y_H1)
    grid_3P = torch.stack(torch.broadcast_tensors(x_W, y_H1, one)).view(3, h * w)
    cols, rows = (matrix_N23 @ grid_3P).view(n, 2, h, w).unbind(1)
    cols = cols.add_(w / 2 - 0.5).round_().long()
    rows = rows.add_(h / 2 - 0.5).round_().long()
    outside = (cols < 0) | (cols >= w) | (rows < 0) | (rows >= h)
    moved = _gather(images_NCHW, rows.clamp_(0, h - 1), cols.clamp_(0, w - 1))
    return moved.masked_fill_(outside[:, None], fill)


def _matrix(x_N: Tensor, *entries: Tensor | float) -> Tensor:
    """(N, 2, 3) from six entries, row by row."""
    matrix_N6 = x_N.new_empty(len(x_N), 6)
    for k, entry in enumerate(entries):
        matrix_N6[:, k] = entry
    return matrix_N6.view(-1, 2, 3)


def rotate(images_NCHW: Tensor, degrees_N: Tensor) -> Tensor:
    """Rotate counter-clockwise about the centre."""
    angle_N = torch.deg2rad(degrees_N)
    cos_N, sin_N = angle_N.cos(), angle_N.sin()
    return affine(images_NCHW, _matrix(degrees_N, cos_N, -sin_N, 0.0, sin_N, cos_N, 0.0))


def shear_x(images_NCHW: Tensor, slope_N: Tensor) -> Tensor:
    """Slide each row by slope * y; the top edge stays, as in AutoAugment."""
    offset_N = slope_N * (images_NCHW.shape[-2] / 2)
    return affine(images_NCHW, _matrix(slope_N, 1.0, slope_N, offset_N, 0.0, 1.0, 0.0))


def shear_y(images_NCHW: Tensor, slope_N: Tensor) -> Tensor:
    """Slide each column by slope * x; the left edge stays, as in AutoAugment."""
    offset_N = slope_N * (images_NCHW.shape[-1] / 2)
    return affine(images_NCHW, _matrix(slope_N, 1.0, 0.0, 0.0, slope_N, 1.0, offset_N))


def translate_x(images_NCHW: Tensor, fraction_N: Tensor) -> Tensor:
    """Move right by a fraction of the width, truncated to whole pixels."""
    pixels_N = (fraction_N * images_NCHW.shape[-1]).trunc()
    return affine(images_NCHW, _matrix(fraction_N, 1.0, 0.0, -pixels_N, 0.0, 1.0, 0.0))


def translate_y(images_NCHW: Tensor, fraction_N: Tensor) -> Tensor:
    """Move down by a fraction of the height, truncated to whole pixels."""
    pixels_N = (fraction_N * images_NCHW.shape[-2]).trunc()
    return affine(images_NCHW, _matrix(fraction_N, 1.0, 0.0, 0.0, 0.0, 1.0, -pixels_N))


def zoom(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """Enlarge (factor > 1) or shrink (factor < 1) about the centre."""
    step_N = factor_N.reciprocal()
    return affine(images_NCHW, _matrix(factor_N, step_N, 0.0, 0.0, 0.0, step_N, 0.0))


def resized_crop(
    images_NCHW: Tensor, box_N4: Tensor, size: tuple[int, int] | None = None
) -> Tensor:
    """Crop each image to its (top, left, height, width) and resize to `size`, or back to H x W: bilinear, antialiased.

    Pixels beyond the crop's border do not bleed in. Back to H x W a crop is never made smaller, so that it needs no
    filter, which is two to four times slower.
    """
    _, _, h, w = images_NCHW.shape
    rows, columns = size or (h, w)
    if (rows, columns) == (h, w):
        top, left, height, width = box_N4.float().view(-1, 4, 1).unbind(1)
        i_H = torch.arange(h, device=box_N4.device) + 0.5
        j_W = torch.arange(w, device=box_N4.device) + 0.5
        y_NH = top + (i_H * (height / h) - 0.5).clamp_(min=0).minimum(height - 1)
        x_NW = left + (j_W * (width / w) - 0.5).clamp_(min=0).minimum(width - 1)
        return _bilinear(images_NCHW, y_NH, x_NW, "border")
    top, left, height, width = box_N4.float().unbind(1)
    down_NRH, right_NCW = _filter(top, height, rows, h), _filter(left, width, columns, w)
    scaled = down_NRH[:, None] @ images_NCHW.float() @ right_NCW[:, None].mT
    return _to_uint8(scaled.round_())


def resize(images_NCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """All of each image with `size` (height, width) pixels: bilinear, antialiased."""
    if images_NCHW.shape[-2:] == size:
        return images_NCHW
    scaled = F.interpolate(images_NCHW.float(), size, mode="bilinear", antialias=True)
    return _to_uint8(scaled.round_())


def _filter(start_N: Tensor, length_N: Tensor, out: int, of: int) -> Tensor:
    """(N, out, of): how much each pixel of a line counts in each pixel of its part, drawn `out` pixels long.

    The triangle of Pillow and torchvision: as wide as a drawn pixel, at least as a pixel, cut at the part's ends.
    """
    scale_N11 = (length_N / out)[:, None, None]
    first_N11, last_N11 = start_N[:, None, None], (start_N + length_N)[:, None, None]
    center_NO1 = first_N11 + (torch.arange(out, device=start_N.device) + 0.5)[:, None] * scale_N11
    at_L = torch.arange(of, device=start_N.device) + 0.5
    weight = (1 - (at_L - center_NO1).abs() / scale_N11.clamp(min=1)).clamp_(min=0)
    weight *= (at_L > first_N11) & (at_L < last_N11)
    return weight / weight.sum(dim=2, keepdim=True)


def translate_zoom(images_NCHW: Tensor, shift_N2: Tensor, part_N2: Tensor) -> Tensor:
    """Move by `shift` of each side, then enlarge the middle `part` of each; (down, right), bilinear.

    Outside, the image is mirrored with its border pixels repeated. It is `RandomTranslation` and
    then `RandomZoom` of Keras, as one resampling: a zoom in shows only what the move left in view.
    """
    _, _, h, w = images_NCHW.shape
    (down, right), (part_y, part_x) = shift_N2.T[..., None], part_N2.T[..., None]
    i_H = torch.arange(h, device=shift_N2.device) + (0.5 - h / 2)
    j_W = torch.arange(w, device=shift_N2.device) + (0.5 - w / 2)
    y_NH = part_y * i_H - down * h + (h / 2 - 0.5)
    x_NW = part_x * j_W - right * w + (w / 2 - 0.5)
    return _bilinear(images_NCHW, y_NH, x_NW, "reflection")


def fill_box(images_NCHW: Tensor, box_N4: Tensor, value: int) -> Tensor:
    """Paint `value` into each image's (top, left, height, width); clipped at the border."""
    _, _, h, w = images_NCHW.shape
    top, left, height, width = box_N4.view(-1, 4, 1).unbind(1)
    i_H = torch.arange(h, device=box_N4.device)
    j_W = torch.arange(w, device=box_N4.device)
    rows_NH = (i_H >= top) & (i_H < top + height)
    cols_NW = (j_W >= left) & (j_W < left + width)
    return images_NCHW.masked_fill((rows_NH[:, :, None] & cols_NW[:, None, :])[:, None], value)


# ---- colour -------------------------------------------------------------------------------------


def _luma(images_NCHW: Tensor) -> Tensor:
    """Grey level (N, 1, H, W), float32, whole numbers."""
    if images_NCHW.shape[1] != 3:
        return images_NCHW.float().mean(1, keepdim=True)
    r, g, b = images_NCHW.unbind(1)
    return r.mul(0.2989).add_(g, alpha=0.587).add_(b, alpha=0.114).floor_().unsqueeze(1)


def _blend(images_NCHW: Tensor, other: Tensor, factor_N: Tensor) -> Tensor:
    """factor * images + (1 - factor) * other; factor 1 is the identity."""
    factor = _per_image(factor_N)
    return _to_uint8(images_NCHW * factor + other * (1 - factor))


def brightness(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """Blend with black; factor 0 is black."""
    return _to_uint8(images_NCHW * _per_image(factor_N))


def contrast(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """Blend with the image's mean grey; factor 0 is that grey."""
    return _blend(images_NCHW, _luma(images_NCHW).mean((1, 2, 3), keepdim=True), factor_N)


def color(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """Saturation: blend with the grey image; factor 0 is grey."""
    if images_NCHW.shape[1] != 3:
        return images_NCHW
    return _blend(images_NCHW, _luma(images_NCHW), factor_N)


def sharpness(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """Blend with the image smoothed by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13; the border stays."""
    if min(images_NCHW.shape[-2:]) <= 2:
        return images_NCHW
    image = images_NCHW.float()
    rows = image[:, :, :-2] + image[:, :, 1:-1] + image[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = image.clone()
    smooth[:, :, 1:-1, 1:-1] = box.add_(image[:, :, 1:-1, 1:-1], alpha=4).div_(13).round_()
    return _blend(images_NCHW, smooth, factor_N)


def hue(images_NCHW: Tensor, turn_N: Tensor) -> Tensor:
    """Rotate the hue by a part of the circle, -0.5 to 0.5; value and saturation stay."""
    if images_NCHW.shape[1] != 3:
        return images_NCHW
    r, g, b = images_NCHW.float().unbind(1)
    high, low = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    chroma = high - low
    # The hue's place on the circle of six sectors: red 0, green 2, blue 4; any for grey.
    from_g, from_b = (b - r).add_(2 * chroma), (r - g).add_(4 * chroma)
    sector = torch.where(high == r, g - b, torch.where(high == g, from_g, from_b))
    sector = sector.div_(chroma.clamp(min=1)).add_(6 * turn_N.view(-1, 1, 1)).remainder_(6)
    share = torch.stack(
        ((sector - 3).abs_() - 1, 2 - (sector - 2).abs_(), 2 - (sector - 4).abs_()), dim=1
    ).clamp_(0, 1)
    return _to_uint8(share.mul_(chroma[:, None]).add_(low[:, None]).round_())


def color_matrix(images_NCHW: Tensor, matrix_NCC: Tensor) -> Tensor:
    """Each pixel's channels, as a row, times the image's matrix; rounded and clipped."""
    mixed_NCP = matrix_NCC.mT @ images_NCHW.flatten(2).float()
    return _to_uint8(mixed_NCP.view(images_NCHW.shape).round_())


def grayscale(images_NCHW: Tensor) -> Tensor:
    """Grey with the same number of channels."""
    if images_NCHW.shape[1] != 3:
        return images_NCHW
    return _luma(images_NCHW).to(torch.uint8).expand_as(images_NCHW)


def autocontrast(images_NCHW: Tensor) -> Tensor:
    """Stretch each channel to 0..255; one of a single value stays."""
    image = images_NCHW.float()
    low = image.amin((2, 3), keepdim=True)
    step = (image.amax((2, 3), keepdim=True) - low).mul_(1 / 255)
    flat = step == 0
    return _to_uint8(image.sub_(low.masked_fill_(flat, 0)).div_(step.masked_fill_(flat, 1)))


def equalize(images_NCHW: Tensor) -> Tensor:
    """Flatten each channel's histogram. As in PIL, below about 256 pixels nothing changes."""
    pixels_NCP = images_NCHW.flatten(2).long()
    count = pixels_NCP.new_zeros(*images_NCHW.shape[:2], 256, dtype=torch.int32)
    count.scatter_add_(2, pixels_NCP, count.new_ones(1).expand_as(pixels_NCP))
    brightest = count.gather(2, pixels_NCP.amax(2, keepdim=True))
    step = (pixels_NCP.shape[2] - brightest) // 255
    darker = count.cumsum(2).sub_(count)
    levels = darker.add_(step // 2).floor_divide_(step.clamp(min=1)).clamp_(max=255)
    equalized = levels.to(torch.uint8).gather(2, pixels_NCP).view_as(images_NCHW)
    return torch.where(step[..., None] > 0, equalized, images_NCHW)


def posterize(images_NCHW: Tensor, bits_N: Tensor) -> Tensor:
    """Keep the `bits` (1..8) high bits; a fraction is dropped."""
    dropped_N = 8 - bits_N.long().clamp(1, 8)
    low_N = torch.bitwise_left_shift(torch.ones_like(dropped_N), dropped_N) - 1
    return images_NCHW & _per_image((255 - low_N).to(torch.uint8))


def solarize(images_NCHW: Tensor, threshold_N: Tensor) -> Tensor:
    """Invert the pixels at or above the threshold, 0..256 (256 is the identity)."""
    return torch.where(images_NCHW >= _per_image(threshold_N), 255 - images_NCHW, images_NCHW)


# ---- filters and noise --------------------------------------------------------------------------


def blur(images_NCHW: Tensor, sigma_N: Tensor, kernel: int) -> Tensor:
    """Gaussian blur with an odd `kernel`, reflected border; sigma in pixels, above 0."""
    n, c, h, w = images_NCHW.shape
    half = kernel // 2
    offset_K = torch.arange(-half, half + 1, device=sigma_N.device)
    weight_NK = torch.softmax(-((offset_K / sigma_N[:, None]) ** 2) / 2, dim=1)
    weight = weight_NK.repeat_interleave(c, dim=0)[:, None]
    # Every plane is a group of its own, so one convolution serves N kernels.
    planes = F.pad(images_NCHW.float(), (half,) * 4, mode="reflect").flatten(0, 1)[None]
    planes = F.conv2d(planes, weight[..., None], groups=n * c)
    planes = F.conv2d(planes, weight[:, :, None], groups=n * c)
    return _to_uint8(planes.view(n, c, h, w).round_())


def add(images_NCHW: Tensor, noise_NCHW: Tensor) -> Tensor:
    """Add noise in units of 0..255, rounded and clipped."""
    return _to_uint8((images_NCHW + noise_NCHW).round_())
