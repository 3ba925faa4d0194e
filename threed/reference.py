"""What a picture asks of a scene that its camera sees: colours, outline, and, where they are known, depth and normals.

Pictures are of H x W pixels, channels last, display sRGB times alpha, as `Render` has them. The light of a photograph
stays in the colours that it asks for. All terms are means over pixels, without unit, and 0 where nothing is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from threed.recipes import Reference
from threed.renderers.camera import Cameras
from threed.renderers.volume import Render

OBJECT = 0.5  # alpha of the picture above which a pixel has a depth and a normal
FLAT = 1e-6  # square metres, or the square of whatever a depth is counted in: a variance below it tells nothing


@dataclass(frozen=True)
class Target:
    """What one camera is to see: a square picture, as it would have taken it."""

    camera: Cameras  # one
    rgb: Float[Tensor, "S S 3"]  # display sRGB in [0, 1] times alpha
    alpha: Float[Tensor, "S S 1"]
    depth: Float[Tensor, "S S 1"] | None = None  # growing away from the camera, in any unit
    normal: Float[Tensor, "S S 3"] | None = None  # camera space, unit

    def at(self, size: int) -> Target:
        """With so many pixels a side, by the mean over areas."""
        if size == len(self.alpha):
            return self
        depth, normal = (None if each is None else _resized(each, size) for each in (self.depth, self.normal))
        return Target(self.camera, _resized(self.rgb, size), _resized(self.alpha, size), depth, normal)

    def to(self, device: torch.device | str) -> Target:
        """The same in this device's memory."""
        depth, normal = (None if each is None else each.to(device) for each in (self.depth, self.normal))
        return Target(self.camera.to(device), self.rgb.to(device), self.alpha.to(device), depth, normal)


def reference_terms(weights: Reference, render: Render, target: Target, progress: float) -> dict[str, Tensor]:
    """The weighted terms that a stage asks for by now, of a render of the target's camera at the target's size.

    Depth and normals are asked for only where the target knows them.
    """
    alpha = target.alpha
    asked = {
        "reference_rgb": (weights.rgb(progress), lambda: photometric(render.albedo[0], target.rgb)),
        "reference_mask": (weights.mask(progress), lambda: outline(render.alpha[0], alpha)),
    }
    if (depth := target.depth) is not None:
        asked["reference_depth"] = (weights.depth(progress), lambda: relative_depth(_distance(render), depth, alpha))
    if (normal := target.normal) is not None:
        asked["reference_normal"] = (weights.normal(progress), lambda: facing(render.normal[0], normal, alpha))
    return {name: weight * term() for name, (weight, term) in asked.items() if weight}


def _resized(picture: Float[Tensor, "S S C"], size: int) -> Float[Tensor, "T T C"]:
    channels = picture.movedim(-1, 0)[None]
    return functional.interpolate(channels, (size, size), mode="bilinear", antialias=True)[0].movedim(0, -1)


def _distance(render: Render) -> Float[Tensor, "H W 1"]:
    """Metres to what is seen, where enough is."""
    return render.depth[0] / render.alpha[0].clamp(min=OBJECT)


def photometric(shown: Float[Tensor, "H W 3"], wanted: Float[Tensor, "H W 3"]) -> Float[Tensor, ""]:
    """Mean squared difference of colours times alpha, over all pixels and channels (RealFusion, arXiv 2302.10663)."""
    return functional.mse_loss(shown, wanted)


def outline(alpha: Float[Tensor, "H W 1"], wanted: Float[Tensor, "H W 1"]) -> Float[Tensor, ""]:
    """Mean squared difference of alpha (RealFusion, arXiv 2302.10663)."""
    return functional.mse_loss(alpha, wanted)


def relative_depth(
    depth: Float[Tensor, "H W 1"], wanted: Float[Tensor, "H W 1"], alpha: Float[Tensor, "H W 1"]
) -> Float[Tensor, ""]:
    """1 less Pearson's correlation over the picture's object, 0 to 2: neither scale nor offset of a depth is known.

    Magic123's (Qian et al. 2023, arXiv 2306.17843, section 3.1). Depth that is flat, or wanted so, correlates with
    nothing: 1, without a gradient.
    """
    there = alpha[..., 0] > OBJECT
    x, y = (each[..., 0][there] for each in (depth, wanted))
    if len(x) < 2:
        return depth.sum() * 0
    x, y = x - x.mean(), y - y.mean()
    variances = x.square().mean(), y.square().mean()
    if min(variances) < FLAT:
        return 1 + depth.sum() * 0
    return 1 - (x * y).mean() / (variances[0] * variances[1]).sqrt()


def facing(
    normal: Float[Tensor, "H W 3"], wanted: Float[Tensor, "H W 3"], alpha: Float[Tensor, "H W 1"]
) -> Float[Tensor, ""]:
    """Mean of 1 - n . n* over the picture's object, 0 to 2; n is the direction of the normal that is seen.

    Where nothing is seen, the cosine is 0 (Long et al. 2023, Wonder3D, arXiv 2310.15008, equation 8, without weights).
    """
    there = alpha[..., 0] > OBJECT
    cosine = (functional.normalize(normal[there], dim=-1, eps=1e-4) * wanted[there]).sum(-1)
    return (1 - cosine).sum() / max(len(cosine), 1)
