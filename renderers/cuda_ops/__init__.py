"""The primitives for CUDA devices: CUDA C, compiled at first use by NVRTC, on PyTorch's stream."""

from threed.renderers.cuda_ops.antialias import antialias
from threed.renderers.cuda_ops.hashgrid import hash_encode, hash_gradient
from threed.renderers.cuda_ops.packed import composite, march, transmittance
from threed.renderers.cuda_ops.raster import Fragments, interpolate, rasterize, screen_derivatives
from threed.renderers.cuda_ops.texture import Mipmap, mipmap, texture
from threed.renderers.topology import Edges, edges
from threed.renderers.torch_ops.balls import draw_balls, likeness
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
