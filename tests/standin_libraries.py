"""What tinycudann, nerfacc and nvdiffrast document of the functions that are called, by the reference primitives.

They work on any device and refuse what the libraries refuse, so that what an adapter turns round on the way in and back
on the way out is seen without a GPU.
"""

from __future__ import annotations

from itertools import pairwise, product
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from threed.renderers import torch_ops
from threed.renderers.ops import Packed
from threed.renderers.torch_ops import Fragments, Mipmap


class Encoding(nn.Module):
    """tinycudann's: one vector of parameters, each level padded to eight entries, its rule written out."""

    def __init__(self, n_input_dims: int, encoding_config: dict[str, Any], seed: int = 1337, dtype: Any = None) -> None:
        super().__init__()
        assert n_input_dims == 3
        assert dtype == torch.float32, "its default is half precision"
        assert encoding_config["otype"] == "HashGrid"
        assert encoding_config["n_features_per_level"] in (1, 2, 4, 8)
        self.config = encoding_config
        count = sum(size for _, _, size in self.levels())
        self.params = nn.Parameter(torch.zeros(count * encoding_config["n_features_per_level"], dtype=dtype))

    def levels(self) -> list[tuple[float, int, int]]:
        """Scale, vertices along an axis and entries of each level."""
        found = []
        for level in range(self.config["n_levels"]):
            scale = self.config["base_resolution"] * self.config["per_level_scale"] ** level - 1
            side = int(-(-scale // 1)) + 1
            found.append((scale, side, min((side**3 + 7) // 8 * 8, 2 ** self.config["log2_hashmap_size"])))
        return found

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == self.params.dtype == torch.float32
        entries, out = self.params.view(-1, self.config["n_features_per_level"]), []
        for scale, side, size in self.levels():
            own, entries = entries[:size], entries[size:]
            place = x * scale + 0.5
            cell = place.detach().floor()
            total = torch.zeros(len(x), own.shape[1])
            for corner in product((0, 1), repeat=3):
                i, j, k = (cell.long() + torch.tensor(corner)).unbind(1)
                share = torch.where(torch.tensor(corner) == 1, place - cell, 1 - place + cell).prod(1)
                dense = side**3 <= size
                entry = i + side * (j + side * k) if dense else i ^ (j * 2654435761) ^ (k * 805459861)
                total = total + share[:, None] * own[entry % size]
            out.append(total)
        return torch.cat(out, dim=1)


def traverse_grids(
    rays_o: Tensor,
    rays_d: Tensor,
    binaries: Tensor,
    aabbs: Tensor,
    near_planes: Tensor | None = None,
    far_planes: Tensor | None = None,
    step_size: float = 1e-3,
) -> tuple[object, object, Tensor]:
    """nerfacc's: whole steps from the near planes on, those whose middle lies in an occupied cell of the box."""
    assert len(binaries) == len(aabbs) == 1
    assert binaries.dtype == torch.bool
    assert near_planes is not None
    assert far_planes is None
    low, high = aabbs[0, :3], aabbs[0, 3:]
    farthest = (rays_o.norm(dim=-1).max() + high.norm() - near_planes.min()) / step_size
    middle = near_planes[:, None] + (torch.arange(int(farthest) + 2) + 0.5) * step_size
    cell = ((rays_o[:, None] + middle[..., None] * rays_d[:, None] - low) / (high - low) * len(binaries[0])).floor()
    inside = ((cell >= 0) & (cell < len(binaries[0]))).all(-1)
    i, j, k = cell.long().clamp(0, len(binaries[0]) - 1).unbind(-1)
    ray, piece = (inside & binaries[0, i, j, k]).nonzero(as_tuple=True)
    return None, SimpleNamespace(vals=middle[ray, piece], ray_indices=ray), near_planes


def _packed(t_starts: Tensor, t_ends: Tensor, packed_info: Tensor) -> Packed:
    counts = packed_info[:, 1]
    assert torch.equal(packed_info[:, 0], counts.cumsum(0) - counts)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Packed(starts, torch.arange(len(counts)).repeat_interleave(counts), t_starts, t_ends)


def render_transmittance_from_density(
    t_starts: Tensor, t_ends: Tensor, sigmas: Tensor, packed_info: Tensor
) -> tuple[Tensor, Tensor]:
    packed = _packed(t_starts, t_ends, packed_info)
    return torch_ops.packed._transmittance(sigmas, packed), torch_ops.packed.opacity(sigmas, packed)


def render_weight_from_density(
    t_starts: Tensor, t_ends: Tensor, sigmas: Tensor, packed_info: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    reaching, alpha = render_transmittance_from_density(t_starts, t_ends, sigmas, packed_info)
    return reaching * alpha, reaching, alpha


def accumulate_along_rays(weights: Tensor, values: Tensor, ray_indices: Tensor, n_rays: int) -> Tensor:
    assert ray_indices.dtype == torch.int64
    return values.new_zeros(n_rays, values.shape[1]).index_add(0, ray_indices, weights[:, None] * values)


class RasterizeCudaContext:
    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device


def rasterize(
    glctx: RasterizeCudaContext, pos: Tensor, tri: Tensor, resolution: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """nvdiffrast's: u, v, z/w and the number of the triangle from 1 on, the bottom row first."""
    assert isinstance(glctx, RasterizeCudaContext)
    assert pos.dtype == torch.float32
    assert tri.dtype == torch.int32
    assert pos.dim() == 3
    seen = torch_ops.rasterize(pos, tri.long(), *resolution)
    covered = (seen.face >= 0)[..., None]
    out = torch.cat([seen.barycentric, seen.depth[..., None], (seen.face + 1.0)[..., None]], dim=-1)
    out = torch.where(covered, out, 0).flip(1)
    return out, torch.zeros_like(out)


def interpolate(attr: Tensor, rast: Tensor, tri: Tensor) -> tuple[Tensor, Tensor]:
    assert tri.dtype == torch.int32
    assert attr.dim() == 3, "two dimensions are another mode"
    assert len(attr) in (1, len(rast))
    face = rast[..., 3].detach().int() - 1
    fragments = Fragments(face, rast[..., :2], rast[..., 2])
    return torch_ops.interpolate(attr.expand(len(rast), -1, -1), tri.long(), fragments), rast[..., :0]


def texture(
    tex: Tensor,
    uv: Tensor,
    mip_level_bias: Tensor | None = None,
    mip: list[Tensor] | None = None,
    filter_mode: str = "auto",
    boundary_mode: str = "wrap",
) -> Tensor:
    """Of a batch of one, to the texels of every level."""
    assert len(tex) == len(uv) == 1
    wrap = {"wrap": "repeat", "clamp": "clamp"}[boundary_mode]
    levels = [each[0] for each in (tex, *(mip or []))]
    for finer, coarser in pairwise(levels):
        assert coarser.shape[:2] == tuple(max(1, side // 2) for side in finer.shape[:2])
        assert all(side == 1 or side % 2 == 0 for side in finer.shape[:2])
    if filter_mode == "linear":
        assert mip is mip_level_bias is None
        return torch_ops.texture(levels[0], uv[0], wrap)[None]
    assert filter_mode == "linear-mipmap-linear"
    whole = Mipmap(
        torch.cat([each.flatten(0, 1) for each in levels]), tuple((each.shape[0], each.shape[1]) for each in levels)
    )
    return torch_ops.texture(whole, uv[0], wrap, mip_level_bias[0])[None]


def modules() -> dict[str, ModuleType]:
    """By the names under which they are imported."""
    made = {name: ModuleType(name) for name in ("tinycudann", "nerfacc", "nvdiffrast", "nvdiffrast.torch")}
    has = {
        "tinycudann": (Encoding,),
        "nerfacc": (
            traverse_grids,
            render_weight_from_density,
            render_transmittance_from_density,
            accumulate_along_rays,
        ),
        "nvdiffrast.torch": (RasterizeCudaContext, rasterize, interpolate, texture),
    }
    for name, parts in has.items():
        vars(made[name]).update({part.__name__: part for part in parts})
    made["nvdiffrast"].torch = made["nvdiffrast.torch"]  # type: ignore[attr-defined]
    return made
