"""Solids that are like no other, and their pictures: what a lift may know by heart."""

import torch

from threed.carved import coloured
from threed.distill.conditions import reference_picture
from threed.renderers.voxels import TRUNCATION, Voxels
from threed.training.angles import framed
from threed.viewpoint import Viewpoint

SIDE = 32
BOXES = (  # a letter F with a foot in front, a chair, a stair, a table
    (((-4, -13, -3), (0, 13, 3)), ((0, 7, -3), (8, 13, 3)), ((0, -2, -3), (5, 3, 3)), ((-4, -13, 3), (0, -9, 10))),
    (((-7, -13, -7), (7, 0, 7)), ((-7, 0, -7), (7, 13, -3))),
    (((-13, -8, -6), (-4, 8, 6)), ((-4, -8, -6), (5, 2, 6)), ((5, -8, -6), (13, -4, 6))),
    (((-13, 4, -9), (13, 8, 9)), ((-11, -8, -7), (-7, 4, -3)), ((7, -8, 3), (11, 4, 7))),
)
COLOURS = (0.8, 0.2, 0.2), (0.3, 0.6, 0.3), (0.3, 0.3, 0.8), (0.7, 0.6, 0.2)


def solid(boxes, colour):
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    distance = torch.full((SIDE,) * 3, TRUNCATION)
    for low, high in boxes:
        middle, half = (torch.tensor(high) + torch.tensor(low)) / 2, (torch.tensor(high) - torch.tensor(low)) / 2
        apart = (points - middle).abs() - half
        away = apart.clamp(min=0).norm(dim=-1) + apart.amax(-1).clamp(max=0)
        distance = torch.minimum(distance, away)
    return Voxels(distance.clamp(-TRUNCATION, TRUNCATION), torch.tensor(colour).expand(SIDE, SIDE, SIDE, 3))


def picture(voxels, azimuth, elevation):
    look = Viewpoint(azimuth, elevation).of(coloured(voxels), 128)
    shown = framed(torch.cat([look.albedo[0], look.alpha[0]], dim=-1).movedim(-1, 0)[None])
    return reference_picture(*shown.split([3, 1], dim=1))[0]
