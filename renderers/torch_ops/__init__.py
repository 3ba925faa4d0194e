"""The primitives in plain PyTorch, for any device: the reference that every other backend is compared with."""

from threed.renderers.torch_ops.antialias import Edges, antialias, edges
from threed.renderers.torch_ops.hashgrid import hash_encode, hash_gradient
from threed.renderers.torch_ops.packed import composite, march, transmittance
from threed.renderers.torch_ops.raster import Fragments, interpolate, rasterize, texture

__all__ = [
    "Edges",
    "Fragments",
    "antialias",
    "composite",
    "edges",
    "hash_encode",
    "hash_gradient",
    "interpolate",
    "march",
    "rasterize",
    "texture",
    "transmittance",
]
