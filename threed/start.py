"""What an optimisation begins from: a volume out of a text, or a user's mesh, in the place of a soft ball.

A start is a field like any other. It can be meshed as it is, or handed to a NeRF, which then goes on from there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional

from threed.distill import embedded, start, upsampler
from threed.distill.consensus import consensus
from threed.distill.symmetry import Symmetry, symmetrised
from threed.errors import Failure, Mistake
from threed.kept import kept
from threed.nerf import NeRF
from threed.renderers import volume
from threed.renderers.bilateral import bilateral, within
from threed.renderers.camera import Cameras
from threed.renderers.occupancy import Occupancy
from threed.renderers.read import read
from threed.renderers.volume import Field, Render, Sample
from threed.renderers.voxels import Voxels, voxelise
from threed.train import seeded

SMOOTHING, GROWTH = 0.4, 0.1  # voxels
FLAT_REACH, FLAT_SIGMA, FLAT_STEPS = 2.0, 0.15, 20  # voxels from the surface; how far colours are apart, in sRGB
CANDIDATES = 8  # volumes of the same text
RESOLUTION = 32  # voxels a side of a user's mesh
STEEPNESS = 5.0  # fall of the density's logit, per voxel
PEAK, BIAS = 60.0, -3.0  # sigma = PEAK * softplus(logit + BIAS), per metre: hardly any haze before the surface
SAMPLES, SIZE, CELLS = 96, 64, 48  # steps a side, pixels a side, cells of the occupancy grid a side
IMITATION_STEPS, IMITATION_POINTS, IMITATION_RATE = 150, 1 << 14, 0.05


class VoxelField(nn.Module):
    """Voxels as a density and an albedo in the cube [-1, 1]^3 metres, the farthest point of the object at radius 1."""

    bound = 1.0

    def __init__(self, voxels: Voxels) -> None:
        """Raises ValueError where nothing is solid."""
        super().__init__()
        self.voxels = voxels
        self.slope = torch.stack(torch.gradient(voxels.distance), dim=-1)
        self.radius = voxels.mesh().vertices.norm(dim=-1).max()  # where the longest side is 1
        self.occupancy = Occupancy(CELLS, self.bound)
        self.occupancy.update(self.density, torch.Generator().manual_seed(0))

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The density, per metre, where the distance is 0."""
        return (float(density_of(torch.zeros(1))),)

    def forward(self, x: Float[Tensor, "N 3"]) -> Sample:
        distance, colour = self.voxels.at(x * self.radius)
        normal = functional.normalize(self.voxels.between(self.slope, x * self.radius), dim=-1, eps=1e-6)
        return Sample(density_of(distance), colour, normal)

    def density(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        return density_of(self.voxels.at(x * self.radius)[0])

    @torch.no_grad()
    def render(self, cameras: Cameras, size: int = SIZE, generator: torch.Generator | None = None) -> Render:
        return volume.render(self, cameras, size, size, self.occupancy, 2 * self.bound / SAMPLES, generator)


def density_of(distance: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Per metre, of a signed distance in voxels."""
    return PEAK * functional.softplus(BIAS - STEEPNESS * distance)


def begin(
    name: str,
    prompt: str,
    seed: int,
    prior: Path,
    negative: str = "",
    picture: Float[Tensor, "4 S S"] | None = None,
    device: str = "cpu",
) -> VoxelField | None:
    """What this start looks like; None for a soft ball.

    Raises Mistake for a mesh of no use, Failure for a text, or a picture as `distill/start.py` has it, of no use.
    """
    if name == "sphere":
        return None
    if name == "volume":
        try:
            return VoxelField(imagined(prompt, seed, prior, negative, picture, device))
        except ValueError as error:
            what, remedy = repr(prompt), "other words, or --recipe dreamfusion"
            if picture is not None:
                what, remedy = "the picture", "--prompt with a few words about it, or another picture"
            raise Failure(f"no volume came out of {what} ({error}); try another --seed, {remedy}") from error
    try:
        return VoxelField(voxelise(read(name), RESOLUTION))
    except ValueError as error:
        raise Mistake(f"cannot start from {name!r}: {error}") from error


def imagined(
    prompt: str,
    seed: int,
    prior: Path,
    negative: str = "",
    picture: Float[Tensor, "4 S S"] | None = None,
    device: str = "cpu",
) -> Voxels:
    """A volume of this text, and of this picture, led away from the negative text, by the start in a prior's folder.

    It is as fine as that is.
    """
    encode = kept(embedded.text_reader)(prior)
    words, network = (encode([prompt]), encode([negative])), kept(start.load)(prior, device)
    candidates = start.sample(network, *words, CANDIDATES, seeded(seed), picture=picture).cpu()
    volume, symmetry = consensus(candidates)
    return smoothed(upsampled(flattened(start.voxels_of(volume)), prior, symmetry))


def flattened(voxels: Voxels) -> Voxels:
    """With patches of nearly one colour in one colour, at the surface: what was sampled is blotchy, and things are not.

    On 32 captions that takes 5 % off the colour error in OKLab.
    """
    near = voxels.distance.abs() < FLAT_REACH
    around = within(near.nonzero().numpy(), 1.8)  # all 26 neighbours
    colour = voxels.colour.double().numpy()
    colour[near.numpy()] = bilateral(colour[near.numpy()], around, FLAT_SIGMA, FLAT_STEPS)
    return replace(voxels, colour=torch.from_numpy(colour).float())


@torch.no_grad()
def upsampled(voxels: Voxels, prior: Path, symmetry: Symmetry | None = None) -> Voxels:
    """In twice the resolution where the prior's folder has an upsampler, and as symmetric; as they are elsewhere."""
    if not (prior / "upsampler").is_dir():
        return voxels
    fine = kept(upsampler.load)(prior)(start.volume_of(voxels)[None])[0].clamp(-1, 1)
    return start.voxels_of(symmetrised(fine, symmetry) if symmetry else fine)


def smoothed(voxels: Voxels) -> Voxels:
    """Without faint twigs; what that takes off the edges is given back."""
    distance = gaussian_filter(voxels.distance.numpy(), SMOOTHING, mode="nearest") - GROWTH
    inner = np.pad(np.ones([side - 2 for side in distance.shape], bool), 1)
    # Objects keep a margin from the lattice's border: what a sample has there is noise, and would be cut off flat.
    return replace(voxels, distance=torch.from_numpy(np.where(inner, distance, distance.clip(min=1))))


def imitate(nerf: NeRF, field: Field, generator: torch.Generator) -> None:
    """Fit the NeRF to a field, point by point: what distillation then begins from."""
    optimizer = torch.optim.Adam(nerf.parameters(), lr=IMITATION_RATE, betas=(0.9, 0.99))
    for _ in range(IMITATION_STEPS):
        x = (2 * torch.rand(IMITATION_POINTS, 3, generator=generator) - 1) * nerf.bound
        with torch.no_grad():
            wanted = field(x)
        sample = nerf(x)
        shape = (sample.density.log1p() - wanted.density.log1p()).square().mean()
        colour = (sample.albedo - wanted.albedo).square().mean()
        optimizer.zero_grad(set_to_none=True)
        (shape + colour).backward()
        optimizer.step()
    nerf.occupancy.update(nerf.density, generator)
