"""The primitives of surface rendering at 50,000 triangles and 512 x 512 pixels: ours, the reference, a software OpenGL.

    python benchmarks/surfaces.py [cuda]     # pip install moderngl for the rows of OpenGL

numba, or CUDA, against the PyTorch reference, forward and back; what a rasterizer writes, written and read once without
any work ("floor"); and Mesa's llvmpipe through moderngl, which draws the same triangles' numbers and depths on the
processor and reads them back. The reference tests every pixel against every triangle: it draws SHARE of the pixels, and
its row is that time over SHARE. Writes benchmarks/results/surfaces.json.
"""

from __future__ import annotations

import math
import os
import sys

os.environ |= {"LIBGL_ALWAYS_SOFTWARE": "1"}  # before any OpenGL is loaded

import numpy as np
import torch
import trimesh
from timing import Task, kept, timed, told
from torch.nn import functional

from threed.machine import set_threads
from threed.renderers import torch_ops
from threed.renderers.camera import orbit
from threed.renderers.mesh import Mesh
from threed.renderers.ops import ops

SIZE, ROUNDS, CHANNELS, TEXTURE = 512, 9, 6, 1024
SMALL = SIZE // 32  # pixels a side of what the reference draws
SHARE = (SMALL / SIZE) ** 2
DEVICE = torch.device(*sys.argv[1:2] or ["cpu"])
OURS = ops(DEVICE)
NAME = "cuda" if DEVICE.type == "cuda" else "numba"
NAMES = {OURS: NAME, torch_ops: "torch"}
SHADERS = {
    "vertex_shader": "#version 330\nin vec4 clip; void main() { gl_Position = clip; }",
    "fragment_shader": "#version 330\nout int id; void main() { id = gl_PrimitiveID; }",
}


def ball() -> Mesh:
    """A sphere of 50,000 triangles, twisted a little so that no two are alike."""
    angles = np.linspace(0, math.pi, 161)
    outline = np.stack([np.sin(angles), np.cos(angles)], axis=1) * (1 + 0.1 * np.sin(9 * angles))[:, None]
    made = trimesh.creation.revolve(outline, sections=157)
    return Mesh(torch.tensor(made.vertices).float().to(DEVICE) * 0.9, torch.tensor(made.faces).to(DEVICE))


def rasterizers(mesh: Mesh, clip: torch.Tensor) -> dict[str, Task]:
    numbers = torch.zeros(SIZE, SIZE, 4, device=DEVICE)

    def floor() -> object:
        numbers.fill_(1)
        return numbers.sum()

    tasks: dict[str, Task] = {"rasterize / floor": floor}
    tasks[f"rasterize / {NAME}"] = lambda: OURS.rasterize(clip, mesh.faces, SIZE, SIZE)
    try:
        tasks["rasterize / llvmpipe"] = opengl(mesh, clip)
    except Exception as error:  # whatever keeps OpenGL away, the other rows stand
        print(f"no rows of OpenGL: {error}")
    # After them: PyTorch's threads stay busy for a while after their work, and would take it from OpenGL's.
    tasks["rasterize / torch"] = lambda: torch_ops.rasterize(clip, mesh.faces, SMALL, SMALL)
    return tasks


def opengl(mesh: Mesh, clip: torch.Tensor) -> Task:
    import moderngl

    context = moderngl.create_standalone_context(backend="egl")
    print("OpenGL:", context.info["GL_RENDERER"])
    program = context.program(**SHADERS)
    vertices = context.buffer(clip[0].cpu().numpy().astype("f4").tobytes())
    triangles = context.buffer(mesh.faces.cpu().numpy().astype("i4").tobytes())
    drawn = context.vertex_array(program, [(vertices, "4f", "clip")], triangles)
    target = context.texture((SIZE, SIZE), 1, dtype="i4")
    picture = context.framebuffer([target], context.depth_texture((SIZE, SIZE)))
    picture.use()
    context.enable(moderngl.DEPTH_TEST)

    def draw() -> object:
        picture.clear(depth=1.0)
        drawn.render()
        return picture.read(components=1, dtype="i4"), picture.read(attachment=-1, components=1, dtype="f4")

    return draw


def shading(mesh: Mesh, clip: torch.Tensor, generator: torch.Generator) -> dict[str, Task]:
    """What follows the rasterizer, with its gradient."""
    fragments, edges = OURS.rasterize(clip, mesh.faces, SIZE, SIZE), OURS.edges(mesh.faces)
    attribute = torch.rand(len(mesh.vertices), CHANNELS, generator=generator).to(DEVICE).requires_grad_()
    colour = torch.rand(1, SIZE, SIZE, 3, generator=generator).to(DEVICE).requires_grad_()
    picture = torch.rand(TEXTURE, TEXTURE, 3, generator=generator).to(DEVICE).requires_grad_()
    uv, lod = (torch.rand(SIZE * SIZE, *shape, generator=generator).to(DEVICE) for shape in ((2,), ()))
    moved = clip.clone().requires_grad_()

    def interpolate(backend: object) -> Task:
        return lambda: backend.interpolate(attribute, mesh.faces, fragments).sum().backward()

    def antialias(backend: object) -> Task:
        return lambda: backend.antialias(colour, moved, fragments, edges).square().sum().backward()

    def texture(backend: object) -> Task:
        return lambda: backend.texture(picture, uv, lod=2 * lod).sum().backward()

    return {
        f"{what.__name__} / {name}": what(backend)
        for what in (interpolate, antialias, texture)
        for backend, name in NAMES.items()
    }


def main() -> None:
    set_threads()
    mesh = ball()
    clip = functional.pad(mesh.vertices, (0, 1), value=1.0) @ orbit(1).to(DEVICE).clip_from_world().mT
    tasks = rasterizers(mesh, clip) | shading(mesh, clip, torch.Generator().manual_seed(0))
    seconds = timed(tasks, ROUNDS)
    seconds["rasterize / torch"] = [each / SHARE for each in seconds["rasterize / torch"]]
    title = f"{len(mesh.faces)} triangles, {SIZE} x {SIZE} pixels, {ROUNDS} rounds"
    rows = told(seconds, lambda name: f"{name.split(' / ')[0]} / {NAME}", title)
    kept(
        "surfaces" if DEVICE.type == "cpu" else f"surfaces-{DEVICE.type}",
        {"triangles": len(mesh.faces), "size": SIZE, "rounds": ROUNDS, "seconds": rows},
    )


if __name__ == "__main__":
    main()
