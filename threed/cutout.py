"""The object in a picture: which pixels are it, and the square that shows it as a start was shown objects.

A mask comes from a file, from the picture's own alpha, or from `grabcut`, which learns the colours of object and
background from first guesses: background looks like the picture's border, or lies around its middle. Masks are alpha
in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import binary_fill_holes, binary_opening, gaussian_filter, label
from torch import Tensor
from torch.nn import functional

from threed.errors import Mistake
from threed.grabcut import divided, refined
from threed.photograph import Photograph
from threed.renderers.nearest import tree

EXTENT = 0.78  # of the frame's side, the longer side of the object: the mean over the pictures starts are trained with
LARGEST = 512  # pixels a side of what goes onto the texture
TRANSPARENT = 0.005  # share of a picture; an alpha channel that leaves less of it out says nothing
SPECK, SECOND = 0.05, 0.35  # of the largest part: smaller ones are dropped; of what size a second is an object as well
SMALLEST = 0.002  # share of the picture
WHOLE = 0.98  # share of the picture above which nothing stands out
CUT = 0.2  # share of the object's width, or height, along which it may touch the picture's border
SOLVE = 256  # pixels of the longer side while the background is found
STRIP = 0.015  # of that side: what surely is background
LIKE = 0.08  # how near in display sRGB a colour is to one of the border's to look like background
MIDDLE = 0.9  # of half of either side
ROUNDS = 5  # of the border's slide of colours
FEATHER = 0.7  # pixels, of an outline that was found
GIVE = "give a mask with --mask (white is the object)"


@dataclass(frozen=True)
class Cutout:
    """A square picture of an object, centred."""

    rgb: Float[Tensor, "S S 3"]  # display sRGB in [0, 1] times alpha
    alpha: Float[Tensor, "S S 1"]

    def unlit(self, light: float) -> Cutout:
        """In the colours that the object has, where the picture shows so much of them; white at most."""
        return Cutout((self.rgb / light).minimum(self.alpha), self.alpha)


def masked(photograph: Photograph, mask: Photograph | None, remove: bool) -> tuple[Float[Tensor, "H W"], str]:
    """The object's alpha in a picture, and how it was found: mask, alpha, colours or whole.

    Without `remove` the whole picture is the object. Raises Mistake where no single object lies within the picture.
    """
    alpha = photograph.alpha[..., 0]
    if not remove:
        return torch.ones_like(alpha), "whole"
    if mask:
        found, how = fitted(mask, photograph.size), "mask"
    elif says(alpha):
        found, how = alpha, "alpha"
    else:
        found, how = torch.from_numpy(found_by_colours(photograph.rgb.numpy())), "colours"
    return checked(found, how), how


def says(alpha: Float[Tensor, "H W"]) -> bool:
    """Whether an alpha channel leaves anything out."""
    return bool((alpha < 0.5).float().mean() >= TRANSPARENT)


def fitted(mask: Photograph, size: tuple[int, int]) -> Float[Tensor, "H W"]:
    """A mask, light where the object is or cut out, at the picture's size. Raises Mistake for one of another shape."""
    (h, w), (height, width) = mask.size, size
    if abs(h * width - w * height) > max(h * width, w * height) * 0.01 + max(height, width):
        raise Mistake(f"--mask is {w} x {h} pixels and the picture {width} x {height}; give a mask of the same shape")
    alpha = mask.alpha[..., 0]
    light = alpha if says(alpha) else mask.rgb.mean(-1)
    return functional.interpolate(light[None, None], size, mode="bilinear", antialias=True)[0, 0].clamp(0, 1)


def checked(mask: Float[Tensor, "H W"], how: str) -> Float[Tensor, "H W"]:
    """Without specks. Raises Mistake for none or several objects, and for one that the picture's border cuts.

    What was found by its colours may be no object: the message then says so too.
    """
    inside = (mask > 0.5).numpy()
    parts, count = label(inside, np.ones((3, 3)))
    areas = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    if not count or areas.sum() < max(SMALLEST * inside.size, 4):
        raise Mistake(f"no object was found in the picture; use one in front of a plain background, or {GIVE}")
    if count > 1 and np.sort(areas)[-2] > SECOND * areas.max():
        raise Mistake(
            f"several objects were found in the picture; crop it to one, or say which: {GIVE}; "
            "if it is one object, join its parts in the mask"
        )
    kept = np.flatnonzero(areas >= SPECK * areas.max()) + 1
    inside = np.isin(parts, kept)
    if side := cut_off(inside):
        if how == "colours":
            raise Mistake(
                f"what stands out from the background reaches over the {side} border of the picture: if that is the "
                f"object, use a picture with all of it and a margin around it; if it is background, {GIVE}"
            )
        raise Mistake(
            f"the {side} border of the picture cuts the object; use a picture with the whole object in it, "
            "or, if it is whole, put a margin around it"
        )
    near = torch.from_numpy(np.isin(parts, kept) | (parts == 0))  # soft outlines stay, specks go
    return torch.where(near, mask, 0.0)


def cut_off(inside: Bool[np.ndarray, "H W"]) -> str | None:
    """The side of the picture that cuts what is inside, the most if several do."""
    high, wide = inside.any(1).sum(), inside.any(0).sum()
    touching = {
        "top": inside[0].sum() / wide,
        "bottom": inside[-1].sum() / wide,
        "left": inside[:, 0].sum() / high,
        "right": inside[:, -1].sum() / high,
    }
    side = max(touching, key=lambda side: touching[side])
    trimmed = min(touching.values()) > 0  # to the object's own bounds, as programs that cut out do
    return side if touching[side] > CUT and not trimmed else None


def found_by_colours(rgb: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
    """What does not look like the border of the picture: the same every time. Raises Mistake where all does."""
    height, width = rgb.shape[:2]
    scale = min(1.0, SOLVE / max(height, width))
    small = resized(rgb, (max(1, round(height * scale)), max(1, round(width * scale))))
    guess, sure, strip = first_guess(small)
    division = divided(small, [guess, ellipse(guess.shape)], sure)
    if division is None:
        raise Mistake(f"no object stands out from the picture's background; {GIVE}")
    object_ = cleaned(division.inside)
    if object_[strip:-strip, strip:-strip].mean() > WHOLE:
        raise Mistake(f"no object stands out from the picture's background; {GIVE}, or use --no-remove-background")
    # What reaches the strip that was taken for background goes on to the picture's border: it is cut there.
    object_ = np.pad(object_[strip:-strip, strip:-strip], strip, mode="edge")
    if scale < 1:
        level = resized(object_[..., None].astype(np.float32), (height, width))[..., 0]
        object_ = cleaned(refined(rgb, level > 0.5, (level > 0) & (level < 1), division))
    return gaussian_filter(object_.astype(np.float32), FEATHER, mode="nearest").clip(0, 1)


def resized(picture: Float[np.ndarray, "H W C"], size: tuple[int, int]) -> Float[np.ndarray, "h w C"]:
    """Bilinear where it becomes larger, and means over areas where it becomes smaller."""
    channels = torch.from_numpy(picture).movedim(-1, 0)[None]
    found = functional.interpolate(channels, size, mode="bilinear", antialias=True)
    return np.ascontiguousarray(found[0].movedim(0, -1).numpy())


def ellipse(shape: tuple[int, ...]) -> Bool[np.ndarray, "H W"]:
    """The middle of a picture, where objects mostly are."""
    y, x = (np.linspace(-1, 1, side) for side in shape)
    return y[:, None] ** 2 + x**2 < MIDDLE**2


def first_guess(rgb: Float[np.ndarray, "H W 3"]) -> tuple[Bool[np.ndarray, "H W"], Bool[np.ndarray, "H W"], int]:
    """What may be the object, what surely is not, and how many pixels wide the border is that was looked at.

    Raises Mistake for a picture of one colour.
    """
    height, width = rgb.shape[:2]
    strip = max(2, round(STRIP * max(height, width)))
    sure = np.ones((height, width), bool)
    sure[strip:-strip, strip:-strip] = False
    if min(height, width) <= 4 * strip:
        raise Mistake(f"the picture is only {width} x {height} pixels; use a larger one")
    if np.ptp(rgb, axis=(0, 1)).max() < 1 / 255:
        raise Mistake("no object was found in the picture: it is all one colour; use another picture")
    sure &= ~intruding(rgb, sure)
    border = np.unique((rgb[sure] * 63).round(), axis=0) / 63
    away, _ = tree(border).query(rgb.reshape(-1, 3), distance_upper_bound=LIKE)
    guess = np.isinf(away).reshape(height, width) & ~sure
    if guess.mean() < 4 * SMALLEST:  # the border has all colours: begin with the rectangle within it
        guess = ~sure
    return guess, sure, strip


def intruding(rgb: Float[np.ndarray, "H W 3"], strip: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Where an object reaches over one side of the border: its colour jumps out of what slides along all of it.

    What takes a corner, too, is a floor or a wall.
    """
    rows, columns = np.nonzero(strip)
    height, width = strip.shape
    x, y = 2 * columns / width - 1, 2 * rows / height - 1
    terms, colour = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1), rgb[strip].astype(np.float64)
    weight = np.ones((len(x), 1))
    for _ in range(ROUNDS):  # least absolute deviations
        slide, *_ = np.linalg.lstsq(terms * weight, colour * weight, rcond=None)
        away = np.linalg.norm(colour - terms @ slide, axis=1)
        weight = (1 / np.sqrt(away + 1e-3))[:, None]
    out = np.zeros_like(strip)
    out[strip] = away > LIKE + 4 * np.median(away)
    runs, _ = label(out, np.ones((3, 3)))
    corners = np.unique(runs[[0, 0, -1, -1], [0, -1, 0, -1]])
    return out & ~np.isin(runs, corners)


def cleaned(inside: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Without hairs, small holes and specks."""
    opened = binary_opening(inside, np.ones((3, 3)))
    inside = opened if opened.any() else inside
    holes, count = label(binary_fill_holes(inside) & ~inside)
    areas = np.bincount(holes.ravel(), minlength=count + 1)
    small = areas < 0.002 * inside.sum()
    small[0] = False
    inside = inside | small[holes]
    parts, count = label(inside, np.ones((3, 3)))
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    areas[0] = 0
    return np.isin(parts, np.flatnonzero((areas >= SPECK * areas.max()) & (areas > 0)))


def framed(photograph: Photograph, mask: Float[Tensor, "H W"], size: int | None = None) -> Cutout:
    """The object in the middle of a square picture of `size` pixels; None for as many as the picture has."""
    rows, columns = (torch.nonzero((mask > 0.5).any(axis)).flatten() for axis in (1, 0))
    low = torch.stack([rows[0], columns[0]])
    high = torch.stack([rows[-1], columns[-1]]) + 1
    side = max(2, round(float((high - low).max()) / EXTENT))
    top, left = ((low + high - side).float() / 2).floor().long().tolist()
    height, width = mask.shape
    picture = torch.cat([photograph.rgb * mask[..., None], mask[..., None]], dim=-1).movedim(-1, 0)[None]
    square = functional.pad(picture, (-left, left + side - width, -top, top + side - height))
    size = size or min(side, LARGEST)
    if side != size:
        square = functional.interpolate(square, (size, size), mode="bilinear", antialias=True)
    rgb, alpha = square[0].clamp(0, 1).movedim(0, -1).split([3, 1], dim=-1)
    return Cutout(rgb.minimum(alpha), alpha)
