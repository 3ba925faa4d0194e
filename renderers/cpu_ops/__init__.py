"""The primitives for the CPU: numba, as many threads as PyTorch uses, the same bytes every run."""

from threed.renderers.cpu_ops.antialias import antialias
from threed.renderers.cpu_ops.balls import draw_balls, likeness
from threed.renderers.cpu_ops.hashgrid import hash_encode, hash_gradient
from threed.renderers.cpu_ops.packed import composite, march, transmittance
from threed.renderers.cpu_ops.raster import Fragments, interpolate, rasterize, screen_derivatives
from threed.renderers.cpu_ops.texture import Mipmap, mipmap, texture
from threed.renderers.topology import Edges, edges
from threed.renderers.torch_ops.texture import level_of_detail

__all__ = [
    "Edges",
    "Fragments",
    "Mipmap",
    "antialias",
    "composite",
    "draw_balls",
    "edges",
    "hash_encode",
    "hash_gradient",
    "interpolate",
    "level_of_detail",
    "likeness",
    "march",
    "mipmap",
    "rasterize",
    "screen_derivatives",
    "texture",
    "transmittance",
]
