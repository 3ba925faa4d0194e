"""What the network of a views prior is told, in its own numbers: shared by those who train it and those who ask it.

Input channels: the noised picture (3), then a reference picture of the same object, RGB in [-1, 1] times alpha and
alpha (4), then, where a prior takes it, the geometry: camera-space normals in [-1, 1] times the mask and the mask (4);
all of them `patch` x `patch`-unshuffled. What is not given is zero.
Class labels: 32 numbers of the view, then the mean of the text. With harm(d) = [sin d .. sin 4d, cos d .. cos 4d], the
view is [known, known harm(azimuth), sin e, cos e, sin 2e, cos 2e, given, given harm(azimuth - reference azimuth),
given sin(reference e), given cos(reference e), one-hot kind, 3 (distance - 3.1), background in [-1, 1], 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, pixel_unshuffle

from threed.renderers.camera import Cameras

CAMERA_FEATURES = 32
REFERENCE_CHANNELS = 4  # RGB and alpha
GEOMETRY_CHANNELS = 4  # normal and mask


@dataclass(frozen=True)
class Seen:
    """From where the reference pictures of P pictures were taken."""

    azimuth: Float[Tensor, "P"]  # radians
    elevation: Float[Tensor, "P"]
    given: Float[Tensor, "P"]  # 1 where there is a reference, 0 where there is none


def view_features(
    cameras: Cameras,  # P of them
    kind: Float[Tensor, "P kinds"],  # one-hot
    background: Float[Tensor, "P 3"],  # display sRGB in [0, 1]
    known: Float[Tensor, "P"] | None = None,  # 1 where the azimuth is told, which it is without this
    seen: Seen | None = None,
) -> Float[Tensor, "P 32"]:
    """What the network is told about each picture."""
    elevation, one = cameras.elevation[:, None], torch.ones_like(cameras.elevation)[:, None]
    told = one if known is None else known[:, None]
    tilt = [f(k * elevation) for k in (1, 2) for f in (torch.sin, torch.cos)]
    if seen is None:
        reference = torch.zeros_like(one).expand(-1, 11)
    else:
        turn, e = harmonics(cameras.azimuth - seen.azimuth), seen.elevation[:, None]
        reference = seen.given[:, None] * torch.cat([one, turn, e.sin(), e.cos()], dim=1)
    distance = 3 * (cameras.distance[:, None] - 3.1)
    return torch.cat(
        [told, told * harmonics(cameras.azimuth), *tilt, reference, kind, distance, 2 * background - 1, one], dim=1
    )


def harmonics(angle: Float[Tensor, "P"]) -> Float[Tensor, "P 8"]:
    multiples = angle[:, None] * torch.arange(1, 5).to(angle)
    return torch.cat([multiples.sin(), multiples.cos()], dim=1)


def network_input(
    z_t: Float[Tensor, "P 3 H W"],
    reference: Float[Tensor, "P 4 H W"] | None,
    geometry: Float[Tensor, "P 4 H W"] | None,
    patch: int,
    takes_geometry: bool,
) -> Float[Tensor, "P C h w"]:
    """What the network sees. Raises ValueError for geometry where the network has no channels for it."""
    if geometry is not None and not takes_geometry:
        raise ValueError('this prior was trained without geometry; leave it out, or use a prior with "geometry": true')
    count, _, height, width = z_t.shape
    seen = [z_t.new_zeros(count, REFERENCE_CHANNELS, height, width) if reference is None else reference]
    if takes_geometry:
        seen.append(z_t.new_zeros(count, GEOMETRY_CHANNELS, height, width) if geometry is None else geometry)
    return pixel_unshuffle(torch.cat([z_t, *seen], dim=1), patch)


def reference_picture(rgb: Float[Tensor, "P 3 H W"], alpha: Float[Tensor, "P 1 H W"]) -> Float[Tensor, "P 4 H W"]:
    """A picture as networks are shown it, out of its display sRGB in [0, 1] times alpha."""
    return torch.cat([2 * rgb - alpha, alpha], dim=1)


def geometry_picture(normal: Float[Tensor, "P 3 H W"], alpha: Float[Tensor, "P 1 H W"]) -> Float[Tensor, "P 4 H W"]:
    """Normals and mask as networks are shown them, out of camera-space normals of any length."""
    return torch.cat([normalize(normal, dim=1, eps=1e-4) * alpha, alpha], dim=1)


def before(background: Float[Tensor, "P 3"], reference: Float[Tensor, "P 4 H W"]) -> Float[Tensor, "P 3 H W"]:
    """The latents of reference pictures before plain backgrounds, which are display sRGB in [0, 1]."""
    return reference[:, :3] + (1 - reference[:, 3:]) * (2 * background - 1)[:, :, None, None]
