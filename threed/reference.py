"""What a picture asks of a scene that its camera sees: colours, outline, and, where they are known, depth and normals.

Pictures are of H x W pixels, channels last, display sRGB times alpha, as `Render` has them. The light of a photograph
stays in the colours that it asks for. All terms are means over pixels, without unit, and 0 where nothing is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from threed.recipe import Reference
from threed.renderers.camera import Cameras
from threed.renderers.volume import Render

OBJECT = 0.5  # alpha of the picture above which a pixel has a depth and a normal
GRAZING = -0.05  # cosine of a ray with a normal above which the surface is seen too much at a slant, or from behind
FLAT = 1e-6  # square metres, or the square of whatever a depth is counted in: a variance below it tells nothing


@dataclass(frozen=True)
class Target:
    """What one camera is to see: a square picture, as it would have taken it."""

    camera: Cameras  # one
    rgb: Float[Tensor, "S S 3"]  # display sRGB in [0, 1] times alpha
    alpha: Float[Tensor, "S S 1"]
    depth: Float[Tensor, "S S 1"] | None = None  # growing away from the camera, in any unit
    normal: Float[Tensor, "S S 3"] | None = None  # camera space, unit
    belief: Float[Tensor, "S S 1"] | None = None  # how much each of these normals counts; all alike without it
    weight: float = 1.0  # how much it counts among others

    def at(self, size: int) -> Target:
        """With so many pixels a side, by the mean over areas."""
        return self if size == len(self.alpha) else self._each(lambda picture: _resized(picture, size))

    def to(self, device: torch.device | str) -> Target:
        """The same in this device's memory."""
        return replace(self._each(lambda picture: picture.to(device)), camera=self.camera.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Target:
        """With all of its pictures changed."""
        depth, normal, belief = (x if x is None else change(x) for x in (self.depth, self.normal, self.belief))
        rgb, alpha = change(self.rgb), change(self.alpha)
        return Target(self.camera, rgb, alpha, depth, normal, belief, self.weight)


def reference_terms(
    weights: Reference, render: Render, targets: Sequence[Target], progress: float
) -> dict[str, Tensor]:
    """The weighted terms that a stage asks for by now, of a render of all the targets' cameras at the targets' size.

    Each is the mean over the targets by their weights, of sum 1 where each of them is 1. Depth and normals are asked
    for only where a target knows them.
    """
    found: dict[str, list[Tensor]] = {}
    for one, target in enumerate(targets):
        for name, term in _terms(weights, render, one, target).items():
            if weight := getattr(weights, name)(progress):
                found.setdefault(f"reference_{name}", []).append(weight * (target.weight * term()))
    return {name: torch.stack(terms).sum() / len(targets) for name, terms in found.items()}


def _terms(weights: Reference, render: Render, one: int, target: Target) -> dict[str, Callable[[], Tensor]]:
    """What a target may ask of this one of the render's pictures."""
    alpha, depth, normal = target.alpha, target.depth, target.normal
    terms = {
        "rgb": lambda: photometric(render.albedo[one], target.rgb),
        "mask": lambda: outline(render.alpha[one], alpha),
    }
    if depth is not None:
        terms["depth"] = lambda: relative_depth(_distance(render, one), depth, alpha)
    if normal is not None:
        terms["normal"] = lambda: facing(render.normal[one], normal, alpha, target.belief, weights.dropped)
    return terms


def belief(normal: Float[Tensor, "B S S 3"], cameras: Cameras) -> Float[Tensor, "B S S 1"]:
    """How much normals that a prior has drawn count, in camera space: exp |v . n|, and 0 where they do not face v.

    v is the ray from the camera (Long et al. 2023, Wonder3D, arXiv 2310.15008, equation 9; its threshold "close to
    zero" is GRAZING here).
    """
    size = normal.shape[1]
    directions = torch.einsum("bij,bhwi->bhwj", cameras.rotation, cameras.rays(size, size)[1])
    cosine = (directions * normal).sum(-1, keepdim=True)
    return torch.where(cosine < GRAZING, cosine.abs().exp(), 0.0)


def _resized(picture: Float[Tensor, "S S C"], size: int) -> Float[Tensor, "T T C"]:
    channels = picture.movedim(-1, 0)[None]
    return functional.interpolate(channels, (size, size), mode="bilinear", antialias=True)[0].movedim(0, -1)


def _distance(render: Render, one: int) -> Float[Tensor, "H W 1"]:
    """Metres to what is seen, where enough is."""
    return render.depth[one] / render.alpha[one].clamp(min=OBJECT)


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
    normal: Float[Tensor, "H W 3"],
    wanted: Float[Tensor, "H W 3"],
    alpha: Float[Tensor, "H W 1"],
    belief: Float[Tensor, "H W 1"] | None = None,
    dropped: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean of 1 - n . n* over the picture's object, 0 to 2, by `belief`; n is the direction of the normal that is seen.

    Where nothing is seen, the cosine is 0. The `dropped` share of what counts, the farthest off, is left out (Long et
    al. 2023, Wonder3D, arXiv 2310.15008, equation 8 and section 4.3).
    """
    there = alpha[..., 0] > OBJECT
    apart = 1 - (functional.normalize(normal[there], dim=-1, eps=1e-4) * wanted[there]).sum(-1)
    if belief is None and not dropped:
        return apart.sum() / max(len(apart), 1)
    counts = torch.ones_like(apart) if belief is None else belief[there][:, 0]
    apart, counts = apart[counts > 0], counts[counts > 0]
    kept = apart.detach().argsort(stable=True)[: math.ceil((1 - dropped) * len(apart))]
    return (counts[kept] * apart[kept]).sum() / counts[kept].sum().clamp(min=1e-6)
