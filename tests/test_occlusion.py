"""Occlusion against closed forms: under a wall, in a corner, in the open; and its way into a glTF and back."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from threed.exporters import export, glb
from threed.exporters.occlusion import occlusion, shaded, sphere
from threed.exporters.unwrap import unwrap
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.read import read

UP = torch.tensor([0.0, 1, 0])


def quads(*corners):
    """Rectangles, each by three corners; either side of them occludes."""
    vertices, faces = [], []
    for a, b, c in corners:
        a, b, c = (torch.tensor(x, dtype=torch.float32) for x in (a, b, c))
        faces += [[len(vertices) + i for i in f] for f in ((0, 1, 2), (0, 2, 3))]
        vertices += [a, b, b + c - a, c]
    return Mesh(torch.stack(vertices), torch.tensor(faces))


def test_directions_are_even():
    directions = sphere(256)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(256).double())
    assert directions.mean(0).abs().max() < 0.01
    torch.testing.assert_close(directions.T @ directions / 256, torch.eye(3).double() / 3, atol=0.01, rtol=0)


def test_a_ball_in_the_open_is_not_occluded():
    shape = trimesh.creation.icosphere(4)
    mesh = Mesh(torch.tensor(shape.vertices).float(), torch.tensor(np.array(shape.faces)))
    assert occlusion(mesh, mesh.vertices, mesh.vertex_normals).min() > 0.99


def test_under_a_wall_it_is_the_form_factor_of_a_long_strip():
    """A wall of height h at distance x covers (1 - x / sqrt(x^2 + h^2)) / 2 of what the ground sees."""
    length, height = 10.0, 1.0
    floor = ([-length, 0, -0.1], [length, 0, -0.1], [-length, 0, 3])
    mesh = quads(floor, ([-length, 0, 0], [length, 0, 0], [-length, height, 0]))
    x = torch.tensor([0.1, 0.3, 0.6, 1.0, 2.0])
    points = torch.stack([torch.zeros(5), torch.zeros(5), x], dim=-1)
    found = occlusion(mesh, points, UP.expand(5, 3), directions=1024)
    expected = 1 - (1 - x / (x**2 + height**2).sqrt()) / 2
    torch.testing.assert_close(found, expected, atol=0.04, rtol=0)


def test_in_the_corner_of_a_room_a_quarter_is_left_and_along_a_wall_a_half():
    room = quads(
        ([0, 0, 0], [9, 0, 0], [0, 0, 9]), ([0, 0, 0], [9, 0, 0], [0, 9, 0]), ([0, 0, 0], [0, 9, 0], [0, 0, 9])
    )
    points = torch.tensor([[0.05, 0, 0.05], [4.5, 0, 0.05]])
    found = occlusion(room, points, UP.expand(2, 3))
    assert found[0].item() == pytest.approx(0.25, abs=0.03)
    aside = occlusion(Mesh(room.vertices, room.faces[:4]), points, UP.expand(2, 3))
    assert aside[1].item() == pytest.approx(0.5, abs=0.03)


def test_inside_a_closed_box_nothing_is_left():
    box = trimesh.creation.box()
    mesh = Mesh(torch.tensor(np.array(box.vertices)).float(), torch.tensor(np.array(box.faces)).flip(1))
    inside = torch.tensor([[0.0, -0.5, 0], [0.3, -0.5, 0.2]])
    assert occlusion(mesh, inside, UP.expand(2, 3)).max() < 0.01


@pytest.fixture(scope="module")
def pot():
    """Two balls that touch: dark around the waist."""
    shapes = [trimesh.creation.icosphere(3).apply_translation([0, y, 0]) for y in (0, 1.6)]
    shape = trimesh.util.concatenate(shapes)
    mesh = Mesh(torch.tensor(np.array(shape.vertices)).float(), torch.tensor(np.array(shape.faces)))
    return Asset("pot", mesh, *unwrap(mesh, 128), Material(torch.rand(128, 128, 3)))


@pytest.mark.parametrize("shines", [False, True])
def test_gltf_holds_it_in_red_and_gives_it_back(pot, shines, tmp_path):
    shine = torch.rand(128, 128, 2) if shines else None
    asset = shaded(replace(pot, material=replace(pot.material, roughness_metallic=shine)))
    found = asset.material.occlusion
    assert found.shape == (128, 128, 1)
    assert found.min() < 0.5
    assert found.max() > 0.99
    content = glb.encode(asset)
    tree = json.loads(content[20 : 20 + struct.unpack("<I", content[12:16])[0]])
    (material,) = tree["materials"]
    where = material["occlusionTexture"]["index"]
    if shines:
        assert where == material["pbrMetallicRoughness"]["metallicRoughnessTexture"]["index"]
    assert len(tree["images"]) == 2
    export(asset, tmp_path / "pot.glb")
    again = read(tmp_path / "pot.glb")
    assert torch.equal((again.material.occlusion * 255).round(), (found * 255).round())
    assert glb.encode(again) == content
