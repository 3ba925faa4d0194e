"""The first scene of a USDZ, by OpenUSD (the package usd-core), in a process of its own: see `usd`.

    python -m threed.renderers.usd_scene FILE

writes to stdout, as an npz, the arrays of every part and, as JSON, what else is told of them and of their materials. A
scene is one layer here: what it refers to, in itself or elsewhere, is not followed but refused, so that nothing outside
the archive is opened and a short file cannot stand for a long one.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from threed.renderers.document import MOST_FACES, MOST_PRIMITIVES, share

ARCS = ("references", "payload", "inheritPaths", "specializes", "clips")  # by which a scene is made of others
Z_UP = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float)  # what is +Z there is +Y here
PER_POINT = ("vertex", "varying")
INPUTS = {"diffuseColor": (0.18, 0.18, 0.18), "roughness": 0.5, "metallic": 0.0, "normal": None, "occlusion": None}
TRANSFORMS = 8  # between a texture and its UVs, at most
ROOM = 8 * 2**30  # bytes of address space that OpenUSD may take, where the system can hold it to that

Told = dict[str, Any]


def main() -> None:
    with suppress(ImportError, OSError, ValueError):  # Windows has no limits, macOS does not know this one
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
    try:
        told, arrays = found(Path(sys.argv[1]))
    except Exception as error:  # whatever a malformed file makes OpenUSD trip over
        told, arrays = {"problem": str(error)}, {}
    content = io.BytesIO()
    np.savez(content, told=np.frombuffer(json.dumps(told).encode(), np.uint8), **arrays)
    sys.stdout.buffer.write(content.getvalue())


def found(path: Path) -> tuple[Told, dict[str, Any]]:
    """`name`, `skins` by their number, and `parts`, whose arrays are called NUMBER_vertices and so on."""
    reader = _Reader(composed(path))
    root = reader.stage.GetDefaultPrim()
    parts, arrays = list[Told](), dict[str, Any]()
    for part, given in reader.parts():
        arrays |= {f"{len(parts)}_{key}": values for key, values in given.items() if values is not None}
        parts.append(part)
    name = root.GetDisplayName() if root else ""
    return {"name": name, "skins": reader.skins, "parts": parts}, arrays


def composed(path: Path) -> Any:
    """The stage of the archive's first scene. Raises ValueError for one that is made of others, or of itself twice."""
    from pxr import Sdf, Tf, Usd

    try:
        layer = Sdf.Layer.OpenAsAnonymous(str(path))
    except Tf.ErrorException as error:
        raise ValueError(" ".join(error.args[0].commentary.replace(str(path), "").split())) from error

    def look(at: Any) -> None:
        spec = layer.GetPrimAtPath(at)  # of a variant too
        if spec and any(spec.HasInfo(arc) for arc in ARCS):
            raise ValueError(f"{at} is made of what stands elsewhere; flatten it with usdcat")

    if layer.subLayerPaths:
        raise ValueError("its scene is made of several; flatten it with usdcat")
    layer.Traverse(Sdf.Path.absoluteRootPath, look)
    return Usd.Stage.Open(layer)


@dataclass(frozen=True)
class Triangles:
    """Those of a mesh, whose polygons have lists of corners, one after the other."""

    points: Float[np.ndarray, "V 3"]
    indices: Int[np.ndarray, "K"]  # of each corner, its point
    corners: Int[np.ndarray, "F 3"]  # of each triangle, the places of its corners in `indices`
    polygon: Int[np.ndarray, "F"]  # of which it is
    whole: bool = True  # whether these are all

    def some(self, own: Bool[np.ndarray, "F"]) -> Triangles:
        return replace(self, corners=self.corners[own], polygon=self.polygon[own], whole=False)

    def apart(self) -> Triangles:
        """The same with three points each."""
        places = self.corners.reshape(-1)
        own = np.arange(len(places))
        return replace(self, points=self.points[self.indices[places]], indices=own, corners=own.reshape(-1, 3))

    def spread(self, values: Float[np.ndarray, "N C"], over: str) -> Float[np.ndarray, "V C"]:
        """For each point of `apart` the value that it has (UsdGeomPrimvar, interpolation)."""
        places = self.corners.reshape(-1)
        if over in PER_POINT:
            return values[self.indices[places]]
        return values[{"faceVarying": places, "uniform": self.polygon.repeat(3)}.get(over, np.zeros_like(places))]


class _Reader:
    """A stage and what has been looked up in it, each thing once."""

    def __init__(self, stage: Any) -> None:
        from pxr import Usd, UsdGeom, UsdShade

        self.geometry, self.shading, self.stage = UsdGeom, UsdShade, stage
        self.begin = Usd.TimeCode.EarliestTime()
        self.places = UsdGeom.XformCache(self.begin)
        self.world = np.eye(4)
        self.world[:3, :3] = Z_UP if UsdGeom.GetStageUpAxis(stage) == "Z" else np.eye(3)
        self.world[:3] *= UsdGeom.GetStageMetersPerUnit(stage)
        self.faces, self.left = MOST_FACES, MOST_PRIMITIVES
        self.skins, self.skin = list[Told](), cache(self._skin)

    def parts(self) -> Iterator[tuple[Told, Told]]:
        """Of all meshes that are to be seen, one for each material that its faces have: what is told, and arrays."""
        for prim in self.stage.Traverse():
            mesh = self.geometry.Mesh(prim)
            if mesh and mesh.ComputeVisibility(self.begin) != "invisible" and mesh.ComputePurpose() != "guide":
                yield from self.mesh(mesh)

    def mesh(self, mesh: Any) -> Iterator[tuple[Told, Told]]:
        counts = self.array(mesh.GetFaceVertexCountsAttr(), np.int64)
        indices = self.array(mesh.GetFaceVertexIndicesAttr(), np.int64)
        points = self.array(mesh.GetPointsAttr(), float).reshape(-1, 3)
        if (counts < 3).any() or counts.sum() != len(indices):
            raise ValueError(f"{mesh.GetPath()} has {len(indices)} corners, and polygons of {counts.sum()}")
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(points):
            raise ValueError(f"{mesh.GetPath()} has polygons between points that it does not have")
        self.faces -= int((counts - 2).sum())
        if self.faces < 0:
            raise ValueError(f"it has more than {MOST_FACES} triangles; simplify it")
        corners, polygon = fans(counts)
        turned = corners[:, ::-1] if mesh.GetOrientationAttr().Get(self.begin) == "leftHanded" else corners
        triangles = Triangles(points, indices, turned, polygon)
        matrix = self.world @ np.array(self.places.GetLocalToWorldTransform(mesh.GetPrim())).T
        owner, materials = self.materials(mesh, len(counts))
        for number, material in enumerate(materials):
            self.left -= 1
            if self.left < 0:
                raise ValueError(f"it has more than {MOST_PRIMITIVES} parts; join them")
            own = owner[polygon] == number
            if own.any():
                skin, layout = self.skin(material)
                some = triangles if own.all() else triangles.some(own)
                told = {"name": mesh.GetPrim().GetName(), "skin": skin, "matrix": matrix.tolist()}
                yield told, self.arrays(mesh, some, layout, colours=not material)

    def materials(self, mesh: Any, polygons: int) -> tuple[Int[np.ndarray, "N"], list[str]]:
        """For each polygon the number of its material, and the materials' paths; of one that has none it is empty."""
        binding = self.shading.MaterialBindingAPI(mesh)
        owner, found = np.zeros(polygons, np.int64), [binding]
        for subset in binding.GetMaterialBindSubsets():
            own = self.array(subset.GetIndicesAttr(), np.int64)
            if len(own) and not 0 <= own.min() <= own.max() < polygons:
                raise ValueError(f"{subset.GetPath()} has polygons that its mesh does not have")
            owner[own] = len(found)
            found.append(self.shading.MaterialBindingAPI(subset))
        bound = [each.ComputeBoundMaterial()[0] for each in found]
        return owner, [str(each.GetPath()) if each else "" for each in bound]

    def arrays(self, mesh: Any, triangles: Triangles, layout: str, colours: bool) -> Told:
        """Vertices, faces and what is spread over them, None where there is none; v counts from the lower edge."""
        found = {"uvs": self.variable(mesh, layout), "normals": self.variable(mesh, "normals")}
        if found["normals"] is None and mesh.GetNormalsAttr().HasAuthoredValue():
            normals = self.array(mesh.GetNormalsAttr(), float).reshape(-1, 3)
            found["normals"] = normals, mesh.GetNormalsInterpolation()
        found["colours"] = self.variable(mesh, "displayColor") if colours else None
        if not triangles.whole or any(each and each[1] not in PER_POINT for each in found.values()):
            found = {key: each and (triangles.spread(*each), "vertex") for key, each in found.items()}
            triangles = triangles.apart()
        given = {key: each and each[0] for key, each in found.items()}
        return {"vertices": triangles.points, "faces": triangles.indices[triangles.corners]} | given

    def variable(self, mesh: Any, name: str) -> tuple[Float[np.ndarray, "N C"], str] | None:
        """A primvar's values, and over what they are spread."""
        found = self.geometry.PrimvarsAPI(mesh).FindPrimvarWithInheritance(name)
        values = found.ComputeFlattened(self.begin) if found else None
        return None if not values else (np.array(values, float).reshape(len(values), -1), found.GetInterpolation())

    def array(self, attribute: Any, kind: type) -> Any:
        values = attribute.Get(self.begin)
        return np.array([] if values is None else values, kind)

    def _skin(self, material: str) -> tuple[int | None, str]:
        """The number of what a material's surface shows, and the name of its UVs."""
        found = self.shading.Material(self.stage.GetPrimAtPath(material)) if material else None
        surface = found.ComputeSurfaceSource()[0] if found else None
        if not surface or surface.GetShaderId() != "UsdPreviewSurface":
            return None, "st"
        textures = {name: found for name in INPUTS if (found := self.texture(surface, name))}
        plain = {name: self.value(surface, name, value) for name, value in INPUTS.items() if name not in textures}
        numbers = {name: np.array(value, float).tolist() for name, value in plain.items() if value is not None}
        self.skins.append({"textures": textures, "numbers": numbers})
        return len(self.skins) - 1, next((each["layout"] for each in textures.values()), "st")

    def texture(self, shader: Any, name: str) -> Told | None:
        """What is connected to an input, where that is a picture: its `file`, `output`, `scale` and `layout`."""
        source = self.source(shader, name)
        if source is None or (reader := self.shading.Shader(source.GetPrim())).GetShaderId() != "UsdUVTexture":
            return None
        # As it is written: a stage would look for it where it pleases.
        file = self.source(reader, "file")
        written = [spec.default.path for spec in file.GetPropertyStack() if spec.default] if file else []
        if not written:
            return None
        layout, steps = self.source(reader, "st"), 0
        while layout and (at := self.shading.Shader(layout.GetPrim())).GetShaderId() == "UsdTransform2d":
            layout, steps = self.source(at, "in"), steps + 1
            if steps > TRANSFORMS:
                raise ValueError(f"{at.GetPath()} moves a texture more than {TRANSFORMS} times")
        return {
            "file": written[0],
            "output": source.GetBaseName(),
            "scale": [share(each) for each in self.value(reader, "scale", (1, 1, 1, 1))],
            "layout": str(self.value(self.shading.Shader(layout.GetPrim()), "varname", "st")) if layout else "st",
        }

    def source(self, shader: Any, name: str) -> Any:
        """The attribute that an input has its value from, its own or another's; None without one."""
        found = shader.GetInput(name)
        return next(iter(found.GetValueProducingAttributes()), None) if found else None

    def value(self, shader: Any, name: str, otherwise: Any) -> Any:
        source = self.source(shader, name)
        found = source.Get(self.begin) if source else None
        return otherwise if found is None else found


def fans(counts: Int[np.ndarray, "N"]) -> tuple[Int[np.ndarray, "F 3"], Int[np.ndarray, "F"]]:
    """The triangles of polygons of so many corners, as places in the list of all corners, and of which each is."""
    polygon = np.repeat(np.arange(len(counts)), counts - 2)
    first = (np.cumsum(counts) - counts)[polygon]
    step = np.arange(len(polygon)) - (np.cumsum(counts - 2) - (counts - 2))[polygon]
    return np.stack([first, first + step + 1, first + step + 2], axis=1), polygon


if __name__ == "__main__":
    main()
