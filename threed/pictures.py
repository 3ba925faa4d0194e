"""Pictures for people, and how far two renders agree.

Pictures are display sRGB in [0, 1], channels last, row 0 on top; files are 8-bit.
"""

from __future__ import annotations

import io
import math
from dataclasses import replace

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from threed.renderers import surface
from threed.renderers.camera import Cameras, orbit
from threed.renderers.mesh import Asset, Mesh
from threed.renderers.ops import ops
from threed.renderers.read import normalised
from threed.renderers.volume import Render

SKY, FLOOR = (0.97, 0.97, 0.965), (0.885, 0.885, 0.875)  # the backdrop, from top to bottom
SHADOW = 0.5  # the share of light that contact with the floor takes away
REACH = 0.25  # metres above the floor at which the shadow has faded to 1/e
GROUND = 2.0  # metres, half the side of the floor
OPAQUE = 0.97  # alpha above which a pixel shows nothing of what is behind


def image(picture: Float[Tensor, "H W 3"]) -> Image.Image:
    """Eight bits a channel, rounded to nearest."""
    return Image.fromarray((picture.detach().cpu().clamp(0, 1) * 255).round().byte().numpy())


def sheet(pictures: Float[Tensor, "N H W 3"], columns: int, gap: int = 8) -> Image.Image:
    """Pictures in rows on white, `gap` pixels apart."""
    count, height, width, _ = pictures.shape
    rows = math.ceil(count / columns)
    paper = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        paper.paste(image(picture), (gap + column * (width + gap), gap + row * (height + gap)))
    return paper


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def preview(asset: Asset, size: int = 256, smooth: bool = True) -> Image.Image:
    """Eight views, an eighth of a turn apart from the front on, in two rows of pictures of `size` pixels."""
    return sheet(portraits(asset, orbit(8), size, smooth), columns=4)


def turntable(asset: Asset, frames: int = 40, size: int = 256, smooth: bool = True) -> bytes:
    """An animated WebP file that turns once in about three seconds, for ever."""
    first, *rest = (image(picture) for picture in portraits(asset, orbit(frames), size, smooth))
    stream = io.BytesIO()
    first.save(stream, "WEBP", save_all=True, append_images=rest, duration=3000 // frames, loop=0, quality=80, method=2)
    return stream.getvalue()


def portraits(asset: Asset, cameras: Cameras, size: int, smooth: bool = True) -> Float[Tensor, "B H W 3"]:
    """The asset, brought to radius 1, in front of a light backdrop and with a soft shadow under it."""
    asset = replace(asset, mesh=normalised(asset.mesh))
    render = surface.render(asset, cameras, size, size, smooth=smooth)
    down = torch.linspace(0, 1, size).to(render.rgb)[:, None, None]
    backdrop = render.rgb.new_tensor(SKY) * (1 - down) + render.rgb.new_tensor(FLOOR) * down
    backdrop = backdrop * (1 - _shadow(asset.mesh, cameras, size))
    return render.rgb + (1 - render.alpha) * backdrop


def agreement(a: Render, b: Render) -> tuple[float, float]:
    """How far two renders of the same views agree: `psnr` of the albedo on white, and `silhouette_iou`."""
    first, second = (render.albedo + 1 - render.alpha for render in (a, b))
    return psnr(first, second), silhouette_iou(a.alpha, b.alpha)


def colour_psnr(a: Render, b: Render) -> float:
    """The same of the albedo alone, over the pixels that both renders cover; infinite where there are none.

    Outlines do not count here, which are most of what `agreement` sees between a mesh and a soft volume.
    """
    both = ((a.alpha > OPAQUE) & (b.alpha > OPAQUE))[..., 0]
    first, second = ((render.albedo / render.alpha.clamp(min=OPAQUE))[both] for render in (a, b))
    return psnr(first, second) if both.any() else math.inf


def psnr(a: Float[Tensor, "*P 3"], b: Float[Tensor, "*P 3"]) -> float:
    """-10 log10 of the mean squared error over all pixels, channels and pictures, in dB; infinite without any."""
    return -10 * functional.mse_loss(a, b).log10().item()


def silhouette_iou(a: Float[Tensor, "B H W 1"], b: Float[Tensor, "B H W 1"]) -> float:
    """The mean over views of intersection over union of alpha > 1/2; two empty silhouettes agree."""
    a, b = (a > 0.5).flatten(1), (b > 0.5).flatten(1)
    shared, either = (a & b).sum(1), (a | b).sum(1)
    return torch.where(either > 0, shared / either.clamp(min=1), 1.0).mean().item()


def _shadow(mesh: Mesh, cameras: Cameras, size: int) -> Float[Tensor, "B H W 1"]:
    """The share of light that the object keeps from the floor below it, as the cameras see it."""
    cells = 128
    floor = mesh.vertices[:, 1].min()
    height = mesh.vertices[:, 1] - floor
    # Seen from below, so that the nearest surface is the lowest one; columns run along x and rows along z.
    below = torch.stack([mesh.vertices[:, 0], -mesh.vertices[:, 2], height - 1, torch.ones_like(height)], dim=-1)
    below = below / below.new_tensor([GROUND, GROUND, 2, 1])
    fragments = ops(below.device).rasterize(below[None], mesh.faces, cells, cells)
    lowest = 2 * fragments.depth + 1
    dark = torch.where(fragments.face >= 0, (-lowest / REACH).exp(), 0.0)
    for _ in range(3):  # three boxes make a smooth bell
        dark = functional.avg_pool2d(dark, 9, stride=1, padding=4)

    origin, direction = cameras.rays(size, size)
    metres = (floor - origin[..., 1]) / direction[..., 1].clamp(max=-1e-6)
    hit = (origin + metres[..., None] * direction)[..., [0, 2]]
    shade = ops(hit.device).texture(dark[0, ..., None], hit / (2 * GROUND) + 0.5)
    return SHADOW * shade * (direction[..., 1:2] < 0)
