"""The primitives in plain PyTorch, for any device: the reference that every other backend is compared with."""

from threed.renderers.topology import Edges, edges
from threed.renderers.torch_ops.antialias import antialias
from threed.renderers.torch_ops.balls import draw_balls, likeness
from threed.renderers.torch_ops.hashgrid import hash_encode, hash_gradient
from threed.renderers.torch_ops.packed import composite, march, transmittance
from threed.renderers.torch_ops.raster import Fragments, interpolate, rasterize, screen_derivatives
from threed.renderers.torch_ops.texture import Mipmap, level_of_detail, mipmap, texture

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
