"""Pictures and volumes of a few solids, as caches of a training have them."""

from collections.abc import Sequence

import torch

from threed.renderers.camera import Cameras
from threed.renderers.surface import Render
from threed.renderers.voxels import TRUNCATION, Voxels
from threed.training.pairs import Pairs
from threed.training.views_cache import Cache
from threed.training.volumes import Volumes


def pairs(solids: Sequence[Voxels], seen: Sequence[Render], cameras: Cameras) -> Pairs:
    """Of every solid its voxels, and what the same cameras see of it."""

    def bytes_of(pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        return (torch.stack(list(pictures)).movedim(-1, 2) * 255).round().byte()

    count = len(solids)
    captions = (("a thing",),) * count
    angles = torch.stack([cameras.azimuth, cameras.elevation, cameras.distance, cameras.fov_y], dim=1)
    cache = Cache(
        captions,
        bytes_of([each.albedo for each in seen]),
        bytes_of([(each.normal + each.alpha) / 2 for each in seen]),
        bytes_of([each.alpha for each in seen])[:, :, 0],
        torch.zeros(count, 4, 3, dtype=torch.uint8),
        angles.expand(count, -1, -1),
        {},
    )
    volumes = Volumes(
        captions,
        torch.stack([(each.distance * (127 / TRUNCATION)).round().char() for each in solids]),
        torch.stack([(each.colour * 255).round().byte() for each in solids]),
        {},
    )
    return Pairs(volumes, cache, torch.arange(count)[:, None].expand(-1, 2).numpy())
