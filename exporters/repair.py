"""Mesh care that keeps the texture: what is broken about an asset's faces is mended or left out, and said."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from threed.exporters import defects
from threed.renderers.mesh import Asset, Mesh
from threed.renderers.topology import edges


def repaired(asset: Asset) -> tuple[Asset, list[str]]:
    """Without triangles that are there twice or have no area, all facing outward; and what was done, in words.

    A closed surface keeps its lines of no area: they are what closes it. Raises ValueError when nothing is left.
    """
    done: list[str] = []
    found = asset
    steps = [("lay on another one", defects.repeated)]
    if not asset.mesh.is_watertight:
        steps = [("had no area", lambda mesh: defects.thinness(mesh) < defects.NO_AREA), *steps]
    for what, judge in steps:
        wrong = judge(found.mesh)
        if wrong.any():
            done.append(f"dropped {int(wrong.sum())} triangles that {what}")
            found = _kept(found, ~wrong)
    if len(found.mesh.faces) == 0:
        raise ValueError(f"{asset.name!r} has no triangle with an area; export a triangle mesh")
    wrong = defects.turned(found.mesh, edges(found.mesh.faces))
    if wrong.any():
        done.append(f"reversed {int(wrong.sum())} triangles that faced inward")
        flip = wrong[:, None]
        found = replace(
            found,
            mesh=Mesh(found.mesh.vertices, torch.where(flip, found.mesh.faces.flip(1), found.mesh.faces)),
            uv_faces=torch.where(flip, found.uv_faces.flip(1), found.uv_faces),
        )
    return _referenced(found), done


def _kept(asset: Asset, wanted: Bool[Tensor, "F"]) -> Asset:
    return replace(asset, mesh=Mesh(asset.mesh.vertices, asset.mesh.faces[wanted]), uv_faces=asset.uv_faces[wanted])


def _referenced(asset: Asset) -> Asset:
    """Without vertices and UVs that no face uses."""
    used, faces = asset.mesh.faces.unique(return_inverse=True)
    flat, uv_faces = asset.uv_faces.unique(return_inverse=True)
    return replace(asset, mesh=Mesh(asset.mesh.vertices[used], faces), uvs=asset.uvs[flat], uv_faces=uv_faces)
