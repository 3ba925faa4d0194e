"""The primitives for the CPU: numba, as many threads as PyTorch uses, the same bytes every run."""

from threed.renderers.cpu_ops.antialias import Edges, antialias
from threed.renderers.cpu_ops.hashgrid import hash_encode, hash_gradient
from threed.renderers.cpu_ops.packed import composite, march, transmittance
from threed.renderers.cpu_ops.raster import Fragments, interpolate, rasterize, texture
from threed.renderers.torch_ops.antialias import edges

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
