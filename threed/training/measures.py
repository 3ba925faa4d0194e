"""How good is it? Every figure of an evaluation is one function here, of pictures, features or volumes alone.

Pictures are display sRGB in [0, 1], channels last; volumes are lattices of voxels, indexed [x, y, z]. PSNR is in dB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn import functional

from threed.nerf import NeRF, NeRFConfig
from threed.pictures import psnr
from threed.renderers.camera import Cameras
from threed.renderers.nearest import tree
from threed.training.recolour import colour_of, name_of, oklab_from_srgb

HUE = math.radians(30)  # by so much a colour may differ from the one that was asked for
GREY = 0.02  # OKLab chroma; colours with less have no hue
WHOLE = 0.9  # of a volume, that has to hang together


def r_precision(similarity: Float[Tensor, "N M"], relevant: Bool[Tensor, "N M"]) -> float:
    """The share of N pictures to which a caption of their own is the most similar of M (Park et al. 2021, NeurIPS
    Datasets and Benchmarks, "Benchmark for Compositional Text-to-Image Synthesis"; Jain et al. 2022, arXiv 2112.01455).

    A picture that another caption fits as well, or that has none of its own, counts as missed.
    """
    own = similarity.masked_fill(~relevant, -torch.inf).amax(1)
    others = similarity.masked_fill(relevant, -torch.inf).amax(1)
    return (own > others).float().mean().item()


def frechet_distance(a: Float[Tensor, "N F"], b: Float[Tensor, "M F"]) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), m and C the mean and covariance of features
    (Dowson and Landau 1982; as a distance between sets of pictures Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    The finite sets bias it upward: compare figures of equally many pictures alone. Raises ValueError below two of them.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} pictures have no covariance; use at least 2 of each")
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    # C_a C_b has the eigenvalues of the symmetric C_a^(1/2) C_b C_a^(1/2), which are found reliably.
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * mixed).clamp(min=0).item()


def ssim(a: Float[Tensor, "B H W 3"], b: Float[Tensor, "B H W 3"]) -> float:
    """Structural similarity, mean over pictures, by a Gaussian window of 1.5 pixels (Wang et al. 2004, eq. 13)."""
    each = [
        structural_similarity(
            x.numpy(),
            y.numpy(),
            channel_axis=-1,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for x, y in zip(a, b, strict=True)
    ]
    return float(np.mean(each))


def mask_of_normals(normal: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B H W 1"]:
    """Where pictures of normals on white show an object, whatever its colour: 1 there, 0 elsewhere.

    A unit normal has length 1, white is a "normal" of length sqrt(3); half of each, facing the viewer, has sqrt(1.5).
    """
    return ((2 * normal - 1).square().sum(-1, keepdim=True) < 1.5).float()


def consistency(
    views: Float[Tensor, "B H H 3"], cameras: Cameras, generator: torch.Generator, steps: int
) -> tuple[float, NeRF]:
    """PSNR between B views on white and what one solid shows of them: the NeRF that is fitted to them, returned too.

    Adam on the squared error of one view a step, in turn (Mildenhall et al. 2020, arXiv 2003.08934, eq. 6).
    """
    nerf, size = NeRF(NeRFConfig(), generator), views.shape[1]
    optimizer = torch.optim.Adam(nerf.param_groups(), betas=(0.9, 0.99), eps=1e-15)
    for step in range(steps):
        place = step % len(views)
        render = nerf.render(cameras[place : place + 1], size, generator)
        loss = functional.mse_loss(render.over(torch.ones(3))[0], views[place])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        nerf.after_step(step, generator)
    with torch.no_grad():
        return psnr(nerf.render(cameras, size).over(torch.ones(3)), views), nerf


def volume_iou(a: Bool[Tensor, "G G G"], b: Bool[Tensor, "G G G"]) -> float:
    """Intersection over union of what is inside; two empty volumes agree."""
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 1.0


def distances(
    a: Float[Tensor, "N 3"], b: Float[Tensor, "M 3"]
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "M"]]:
    """From each point of two surfaces to the nearest of the other."""
    away, _ = tree(b.numpy()).query(a.numpy())
    back, _ = tree(a.numpy()).query(b.numpy())
    return away, back


def chamfer(away: Float[np.ndarray, "N"], back: Float[np.ndarray, "M"]) -> float:
    """The mean of the two mean distances between surfaces."""
    return float(away.mean() + back.mean()) / 2


def f_score(away: Float[np.ndarray, "N"], back: Float[np.ndarray, "M"], near: float) -> float:
    """The harmonic mean of precision and recall, the shares of either surface that are so near to the other
    (Knapitsch et al. 2017, "Tanks and Temples", section 4.2)."""
    precision, recall = (away < near).mean(), (back < near).mean()
    return float(2 * precision * recall / max(precision + recall, 1e-12))


def colour_error(a: Float[Tensor, "N 3"], b: Float[Tensor, "N 3"]) -> float:
    """Mean distance in OKLab (black to white is 1); not a number where there is nothing to compare."""
    return (oklab_from_srgb(a) - oklab_from_srgb(b)).norm(dim=-1).mean().item()


def is_whole(occupied: Bool[Tensor, "G G G"]) -> bool:
    """Whether nearly all of a volume hangs together, over faces, edges and corners of voxels; an empty one does not."""
    parts, count = ndimage.label(occupied.numpy(), np.ones((3, 3, 3)))
    return count > 0 and int(np.bincount(parts.ravel())[1:].max()) >= WHOLE * int(occupied.sum())


def shows(found: Float[Tensor, "3"], name: str) -> bool:
    """Whether a colour, display sRGB, is the one of this name in `recolour.NAMED`: within 30 degrees of its hue.

    The hue is the angle of OKLab's (a, b). Names without a hue, white, grey and black, are those that are nearest.
    """
    hues, chromas = [], []
    for colour in (found, found.new_tensor(colour_of(name))):
        _, a, b = oklab_from_srgb(colour).tolist()
        hues.append(math.atan2(b, a))
        chromas.append(math.hypot(a, b))
    if chromas[1] < GREY:
        return name_of(found) == name
    return chromas[0] >= GREY and abs(math.remainder(hues[0] - hues[1], 2 * math.pi)) <= HUE


def mean(values: Sequence[float]) -> float:
    """Of those that are numbers; not a number where none is."""
    real = [value for value in values if not math.isnan(value)]
    return sum(real) / len(real) if real else math.nan
