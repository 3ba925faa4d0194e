"""The lift: a volume out of one picture whose camera is known, in one go.

Every voxel looks up what a two-dimensional network says of the pixel that it is seen in, and what it says of the one
that its reflection in the middle plane is seen in, for most things are alike on their left and on their right; a
three-dimensional network makes a volume of that (pixel-aligned features, Saito et al. 2019, arXiv 1905.05172, on a
lattice as in Sun et al. 2021, arXiv 2104.00681). It is a regression: what the picture leaves open it answers with what
is in the middle of all that may be.

The lattice belongs to the picture and not to the object, whose size and place nobody knows: it stands before a camera
that looks at its middle, at the azimuth and elevation that are told, and the object's outline is `EXTENT` of the frame.
Volumes are those of `distill/start.py`: signed distances over TRUNCATION, then colours in [-1, 1], axes x, y, z.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from threed.distill import start
from threed.distill.embedded import compute_dtype
from threed.distill.folder import readable, restore
from threed.distill.upsampler import CELLS, CHANNELS, kept, unfolded
from threed.renderers.camera import Cameras
from threed.renderers.voxels import TRUNCATION, Voxels, span

EXTENT = 0.78  # of the frame's side, the longer side of the object's outline
ROOM = 1.35  # of that side, a side of the lattice
FOV = math.radians(40)  # of the camera, which sees the lattice's middle at the right size


@dataclass(frozen=True)
class LiftConfig:
    """The shape of the network; what config.json beside its weights says."""

    resolution: int = 32  # voxels a side
    size: int = 64  # pixels a side of the picture; a multiple of 8
    flat: tuple[int, ...] = (32, 48, 96, 96)  # channels in two dimensions: at the picture's pixels, and at halves
    told: int = 32  # numbers that a pixel tells to its voxels
    solid: tuple[int, ...] = (48, 96, 96)  # channels in three: at half the volume's voxels a side, and at halves


class Lift(nn.Module):
    """Volumes out of pictures, RGB in [-1, 1] times alpha and alpha, and cameras, as `before` has them."""

    def __init__(self, config: LiftConfig) -> None:
        super().__init__()
        self.config = config
        pixels, voxels = config.flat, config.solid
        self.begin = nn.Conv2d(CHANNELS, pixels[0], 3, padding=1)
        self.down = nn.ModuleList(map(flat, pixels))
        self.shrink = nn.ModuleList([nn.Conv2d(w, next, 2, stride=2) for w, next in pairwise(pixels)])
        self.grow = nn.ModuleList(
            [nn.ConvTranspose2d(next, w, 2, stride=2) for w, next in reversed([*pairwise(pixels)])]
        )
        self.up = nn.ModuleList(map(flat, pixels[-2::-1]))
        self.tell = nn.Conv2d(pixels[0], config.told, 1)
        self.whole = nn.Linear(pixels[-1], voxels[-1])
        self.read = kept(nn.Conv3d(2 * config.told + 4, voxels[0], 1))
        self.levels = nn.ModuleList([solid(voxels[0], 1), *map(solid, voxels[1:])])
        self.fold = nn.ModuleList([kept(nn.Conv3d(w, next, 2, stride=2)) for w, next in pairwise(voxels)])
        self.open = nn.ModuleList(
            [kept(nn.ConvTranspose3d(next, w, 2, stride=2)) for w, next in reversed([*pairwise(voxels)])]
        )
        self.after = nn.ModuleList([*map(solid, voxels[-2:0:-1]), solid(voxels[0], 1)])
        self.norm = nn.GroupNorm(8, voxels[0])
        self.write = kept(nn.Conv3d(voxels[0], CHANNELS * CELLS, 3, padding=1))
        with torch.no_grad():
            self.write.weight.mul_(0.1)

    def forward(self, picture: Float[Tensor, "B 4 S S"], cameras: Cameras) -> Float[Tensor, "B 4 G G G"]:
        x, seen = self.begin(picture), list[Tensor]()
        for level, shrink in zip(self.down, self.shrink, strict=False):
            seen.append(level(x))
            x = shrink(seen[-1])
        x = self.down[-1](x)
        whole = self.whole(x.mean((2, 3)))
        for grow, level in zip(self.grow, self.up, strict=True):
            x = level(grow(x) + seen.pop())
        x = self.read(self.unprojected(self.tell(functional.silu(x)), cameras))
        solids = list[Tensor]()
        for level, fold in zip(self.levels, self.fold, strict=False):
            solids.append(level(x))
            x = fold(solids[-1])
        x = self.levels[-1](x + whole[:, :, None, None, None])
        for unfold, level in zip(self.open, self.after, strict=True):
            x = level(unfold(x) + solids.pop())
        return unfolded(self.write(functional.silu(self.norm(x))))

    def unprojected(self, told: Float[Tensor, "B C S S"], cameras: Cameras) -> Float[Tensor, "B D G G G"]:
        """What the pixels tell to voxels and to their reflections, how deep these lie, and where."""
        places = lattice(self.config.resolution // 2).to(told.device)
        where, depth = projected(places, cameras)
        mirrored = places * places.new_tensor([-1.0, 1.0, 1.0])
        there, _ = projected(mirrored, cameras)
        side, g = len(places), self.config.resolution // 2
        grid = torch.cat([where, there], dim=1)[:, :, None].to(told)
        found = functional.grid_sample(told, grid, padding_mode="border", align_corners=False)[..., 0]
        here, across = found.split(side, dim=2)
        own = places.T.to(told).expand(len(told), 3, -1)
        return torch.cat([here, across, depth[:, None].to(told), own], dim=1).view(len(told), -1, g, g, g)


class Residual(nn.Module):
    """Two convolutions, in two or three dimensions, that add a little to what there is."""

    def __init__(self, width: int, convolution: type[nn.Conv2d | nn.Conv3d]) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(8, width) for _ in range(2)])
        self.convolutions = nn.ModuleList([convolution(width, width, 3, padding=1) for _ in range(2)])

    def forward(self, x: Float[Tensor, "B C *S"]) -> Float[Tensor, "B C *S"]:
        change = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            change = convolution(functional.silu(norm(change)))
        return x + change


def flat(width: int) -> Residual:
    return Residual(width, nn.Conv2d)


def solid(width: int, blocks: int = 2) -> nn.Sequential:
    return nn.Sequential(*[Residual(width, nn.Conv3d) for _ in range(blocks)])


def lattice(resolution: int) -> Float[Tensor, "V 3"]:
    """The voxels' middles, x slowest, from -1 to 1."""
    axis = (torch.arange(resolution) + 0.5) * (2 / resolution) - 1
    return torch.cartesian_prod(axis, axis, axis)


def before(azimuth: Float[Tensor, "B"], elevation: Float[Tensor, "B"]) -> Cameras:
    """The cameras before the lattice, half a side of which is 1; in radians."""
    distance = 1 / (ROOM * EXTENT * math.tan(FOV / 2))
    return Cameras(azimuth, elevation, torch.full_like(azimuth, distance), torch.full_like(azimuth, FOV))


def projected(places: Float[Tensor, "V 3"], cameras: Cameras) -> tuple[Float[Tensor, "B V 2"], Float[Tensor, "B V"]]:
    """Right and down in half sides of the frame, and how far toward the camera from the middle."""
    x, y, z = (places @ cameras.rotation).unbind(-1)
    half = (cameras.distance[:, None] - z) * (cameras.fov_y / 2).tan()[:, None]
    return torch.stack([x / half, -y / half], dim=-1), z


def load(folder: Path, device: torch.device | str = "cpu") -> Lift:
    """That of a prior's folder, compressed or not; raises UnreadablePrior when it is at fault."""
    config, model = folder / "lift" / "config.json", folder / "lift" / "model.safetensors"
    with readable(config):
        told = json.loads(config.read_text(encoding="utf-8"))
        lift = Lift(LiftConfig(**told | {name: tuple(told[name]) for name in ("flat", "solid")}))
    with readable(model):
        lift.load_state_dict(restore(load_file(model)))
    return laid_out(lift).eval().requires_grad_(False).to(device)


def laid_out(lift: Lift) -> Lift:
    """Its memory laid out for speed."""
    for module in lift.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return lift


@torch.no_grad()
def lifted(lift: Lift, picture: Float[Tensor, "4 S S"], azimuth: float, elevation: float) -> Float[Tensor, "4 G G G"]:
    """What stands in the lattice before the camera, the mean of what the picture and its mirror image say; radians."""
    small = functional.adaptive_avg_pool2d(picture, lift.config.size)
    there = torch.tensor([azimuth, -azimuth]), torch.tensor([elevation, elevation])
    with torch.autocast("cpu", torch.bfloat16, compute_dtype(torch.device("cpu")) == torch.bfloat16):
        found = lift(torch.stack([small, small.flip(2)]), before(*there)).float()
    return (found[0] + found[1].flip(1)) / 2


def voxels_of(volume: Float[Tensor, "4 G G G"], resolution: int) -> Voxels:
    """The object on a lattice of its own (`renderers/voxels.py`). Raises ValueError where nothing is solid."""
    side = volume.shape[-1]
    mesh = start.voxels_of(volume).mesh()  # at the pitch of voxels
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    size = float((high - low).max())
    axis = (torch.arange(resolution) - (resolution - 1) / 2) / span(resolution)
    places = torch.cartesian_prod(axis, axis, axis) * size + (low + high) / 2  # in the frame of the first mesh
    grid = (places * (2 * span(side) / side)).flip(-1)[None, None, None]
    found = functional.grid_sample(volume[None], grid, padding_mode="border", align_corners=False)[0, :, 0, 0]
    distance = found[0] * TRUNCATION * span(resolution) / (span(side) * size)
    colour = (found[1:].T.clamp(-1, 1) + 1) / 2
    shape = (resolution,) * 3
    return Voxels(distance.clamp(-TRUNCATION, TRUNCATION).view(shape), colour.reshape(*shape, 3))
