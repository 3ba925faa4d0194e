"""InstructPix2Pix: what there is, changed as a sentence says (Brooks et al. 2023, arXiv 2211.09800).

Its network sees the picture that is to be changed beside z_t, in channels of its own, as the unscaled mode of the
autoencoder's posterior. There are two scales of guidance (eq. 3): of the picture, away from no picture and no text, and
of the text, which is that of any loss:

    bare + s_I (null - bare) + s_T (positive - null),        all but `bare` with the picture.

As in Instruct-NeRF2NeRF (Haque et al. 2023, arXiv 2303.12789, section 3.2), every view of a scene is changed beside the
same view of the original, which stays as it was, so that changes do not add up. There a few pictures at a time are
replaced; here the prior's answer is a gradient, as of any other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from threed.distill.hub.steered import SHOWN, showing
from threed.distill.hub.text_to_image import TextToImage
from threed.distill.prior import Conditions, Pictures, pixels
from threed.renderers import surface
from threed.renderers.mesh import Asset, Material, Mesh

SUPERSAMPLE = 2  # samples along a side of a pixel of the original, as of scenes that are painted


@dataclass(frozen=True)
class Original:
    """What an asset was, as what a checkpoint is shown; make one with `of`."""

    asset: Asset  # at radius 1
    scale: float = 1.5  # s_I; the original's

    @staticmethod
    def of(asset: Asset, device: torch.device | str) -> Original:
        """In its plain colours, on this device."""
        mesh = Mesh(asset.mesh.vertices.to(device), asset.mesh.faces.to(device))
        colours = Material(asset.material.base_color.to(device))
        return Original(Asset(asset.name, mesh, asset.uvs.to(device), asset.uv_faces.to(device), colours))

    def conditions(self, prior: TextToImage, pictures: Pictures, told: Conditions) -> Conditions:
        """With the original's pictures of the same kinds, by the same cameras, before the same background."""
        assert prior.autoencoder
        side = prior.image_size
        drawn = pictures.of(surface.render(self.asset, pictures.cameras, side, side, SUPERSAMPLE))
        shown = prior.autoencoder.mode(pixels(drawn))
        told = showing(told, shown)
        null = told.null if told.negative is None else told.negative
        return replace(told, bare=(null | {SHOWN: torch.zeros_like(shown)}, self.scale))

    def seeing(self, network: Any, shown: Float[Tensor, "P C h w"]) -> Beside:
        return Beside(network, shown)


@dataclass(frozen=True)
class Beside:
    """A UNet with a picture beside what it denoises, called as one without."""

    network: Any
    shown: Float[Tensor, "P C h w"]

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    def __call__(self, z_t: Float[Tensor, "P C h w"], timestep: Float[Tensor, "P"], **told: Any) -> Any:
        return self.network(torch.cat([z_t, self.shown.to(z_t.dtype)], dim=1), timestep, **told)
