"""Paint that shines: its furnace, its gradients, and what becomes of it under known pictures and in an asset."""

from dataclasses import replace

import pytest
import torch
import trimesh
from test_pipeline import REQUEST, made
from test_shading import sky, square
from test_stages import FINE, GRID
from torch.nn import functional
from truth import SOLIDS

from threed.distill.gaussian import ViewOracle
from threed.distill.prior import Pictures
from threed.exporters.report import verify
from threed.paint import METAL, ROUGH, Paint, PaintConfig
from threed.pictures import psnr
from threed.pipeline import solidify
from threed.recipes import RECIPES
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.renderers.light import AMBIENT, furnace, studio
from threed.renderers.mesh import Material, Mesh
from threed.renderers.read import normalised, read
from threed.renderers.shading import Finish, bent
from threed.solid import Solid
from threed.tets import TetScene

CONFIG = PaintConfig(GRID, rate=0.1, finish=True)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ball(dtype=torch.float32):
    made = trimesh.creation.icosphere(3, 0.8)
    return Mesh(torch.tensor(made.vertices).to(dtype), torch.tensor(made.faces))


def splashed(dtype=torch.float32):
    """Paint of which every number is another."""
    paint = Paint(CONFIG, 1.0).to(dtype)
    with torch.no_grad():
        paint.colour.normal_(0, 0.7, generator=seeded(0))
        paint.gloss.normal_(0, 2, generator=seeded(1))
    return paint


def test_bumps_tilt_a_normal_as_a_normal_map_does():
    up = torch.tensor([[0.0, 0, 1]])
    expected = functional.normalize(torch.tensor([[0.5, -0.3, 1]]), dim=-1)
    torch.testing.assert_close(bent(up, torch.tensor([[0.5, -0.3, 0.9]])), expected)
    assert torch.equal(bent(up, torch.tensor([[0.0, 0, -5]])), up)
    normals, bumps = torch.randn(2, 500, 3, generator=seeded())
    normals = functional.normalize(normals, dim=-1)
    found = bent(normals, 3 * bumps)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(500))
    assert (found * normals).sum(-1).min() > 0


@pytest.mark.parametrize("behind", [False, True])
def test_paint_looks_like_the_textures_of_the_same_numbers(behind):
    """On a sheet, from its front and from its back, where dents are bumps."""
    tilted = functional.normalize(torch.tensor([0.5, -0.3, 1.0]), dim=0)
    asset, camera = square(tilted.expand(4, 4, 3)), orbit(2, elevation=0.0)[int(behind) : int(behind) + 1]

    def finish(points):
        one = torch.ones_like(points[:, :1])
        return Finish(0.4 * one, 0.6 * one, torch.tensor([0.5, -0.3, 0.2]) * one)

    plain = replace(asset, material=replace(asset.material, normal=None))
    textured = surface.render(asset, camera, 32, 32, light=sky())
    painted = surface.render(plain, camera, 32, 32, light=sky(), finish=finish)
    assert textured.alpha.sum() > 100
    torch.testing.assert_close(painted.rgb, textured.rgb, atol=1e-4, rtol=0)


def test_the_lamp_of_the_studio_turns_with_the_viewer_and_is_as_bright_as_the_headlight():
    normals = functional.normalize(torch.randn(200, 3, generator=seeded()), dim=-1)
    cameras = orbit(5, elevation=0.0)
    still = studio(torch.tensor(0.0)).irradiance(normals) / torch.pi
    for camera in (cameras[i : i + 1] for i in range(5)):
        turned = studio(camera.azimuth[0]).irradiance(normals @ camera.rotation[0].mT) / torch.pi
        torch.testing.assert_close(turned, still, atol=1e-5, rtol=0)
    toward = functional.normalize(torch.tensor([[-0.3, 0.5, 1.0]]), dim=-1)
    torch.testing.assert_close(studio(torch.tensor(0.0)).irradiance(toward) / torch.pi, torch.ones(1, 3))
    away = studio(torch.tensor(0.0)).irradiance(-toward) / torch.pi  # three bands of a lamp leave 1/17 behind
    torch.testing.assert_close(away, torch.full((1, 3), AMBIENT + (1 - AMBIENT) / 17))


def test_white_paint_cannot_be_seen_in_a_white_furnace():
    """Whatever its roughness and its bumps, as long as it is no metal."""
    paint = splashed()

    def finish(points):
        found = paint.finish(points)
        return replace(found, metallic=torch.zeros_like(found.metallic))

    light = furnace(torch.full((3,), 0.5))
    render = surface.render(
        ball(), orbit(2), 32, 32, 1, smooth=True, albedo=torch.ones_like, light=light, finish=finish
    )
    grey = render.rgb[render.alpha[..., 0] == 1]
    assert len(grey) > 500
    assert (grey - (1.055 * 0.5 ** (1 / 2.4) - 0.055)).abs().max() < 1e-4


def test_gradients_of_every_number_against_finite_differences():
    """In double precision, along one random change of colours, roughness, metallic and bumps each."""
    paint, mesh = splashed(dtype=torch.float64), ball(torch.float64)
    cameras = replace(orbit(1), **{name: getattr(orbit(1), name).double() for name in vars(orbit(1))})
    light = studio(torch.tensor(0.4, dtype=torch.float64))
    light = replace(light, coefficients=0.5 * light.coefficients)  # below white, where pictures are cut off
    weights = torch.rand(1, 16, 16, 3, generator=seeded(3), dtype=torch.float64)

    def brightness():
        render = surface.render(mesh, cameras, 16, 16, 1, True, paint, light, paint.finish)
        return (render.rgb * weights).sum()

    slopes = torch.autograd.grad(brightness(), [paint.colour, paint.gloss])
    channels = [(paint.colour, slopes[0], slice(0, 3))]
    channels += [(paint.gloss, slopes[1], part) for part in (slice(0, 1), slice(1, 2), slice(2, 5))]
    for table, slope, part in channels:
        change = torch.zeros_like(table)
        change[:, part] = torch.randn(change[:, part].shape, generator=seeded(4), dtype=torch.float64)
        ends = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                table += sign * 1e-5 * change
                ends.append(brightness().item())
        expected = (ends[0] - ends[1]) / 2e-5
        assert abs(expected) > 1e-2
        assert (slope * change).sum().item() == pytest.approx(expected, rel=1e-3)


def test_known_pictures_tell_matt_from_shiny():
    """Half of a grey ball is polished metal: paint learns by the pictures alone where, and new views are right."""
    mesh = ball()

    def truth(points):
        metal = torch.sigmoid(8 * points[:, :1])
        return Finish(0.9 - 0.7 * metal, 0.02 + 0.9 * metal, torch.zeros_like(points))

    def pictures(cameras):
        grey, light = lambda points: torch.full_like(points, 0.6), studio(cameras.azimuth[0])
        return surface.render(mesh, cameras, 32, 32, 1, True, grey, light, truth).rgb

    paint = Paint(replace(CONFIG, rate=0.05), 1.0)
    optimizer = torch.optim.Adam(paint.param_groups(), betas=(0.9, 0.99))
    held_out = replace(orbit(6), azimuth=orbit(6).azimuth + 0.3)
    before = psnr(paint.drawn(mesh, held_out, 32, 1, smooth=True).rgb.detach(), pictures(held_out))
    for step in range(60):
        cameras = orbit(4, elevation=0.2 + 0.4 * (step % 3 - 1))
        cameras = replace(cameras, azimuth=cameras.azimuth + 2.4 * step)
        loss = (paint.drawn(mesh, cameras, 32, 1, smooth=True).rgb - pictures(cameras)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = psnr(paint.drawn(mesh, held_out, 32, 1, smooth=True).rgb.detach(), pictures(held_out))
    found, side = paint.finish(mesh.vertices), mesh.vertices[:, 0]
    assert before < 25
    assert after > 35
    assert found.metallic[side > 0.2].mean() > found.metallic[side < -0.2].mean() + 0.3
    assert found.roughness[side > 0.2].mean() < found.roughness[side < -0.2].mean() - 0.1


def test_paint_goes_on_and_its_finish_begins_even():
    plain = Paint(replace(CONFIG, finish=False), 1.0)
    with torch.no_grad():
        plain.colour.uniform_(-1, 1, generator=seeded())
    paint, points = plain.continued(CONFIG), ball().vertices
    assert torch.equal(paint(points), plain(points))
    found = paint.finish(points)
    torch.testing.assert_close(found.roughness, torch.full_like(found.roughness, ROUGH))
    torch.testing.assert_close(found.metallic, torch.full_like(found.metallic, METAL))
    assert not found.bump.any()
    again = splashed()
    assert torch.equal(again.continued(replace(CONFIG, rate=0.0)).gloss, again.gloss)
    for config in (replace(CONFIG, finish=False), replace(CONFIG, grid=replace(GRID, levels=2))):
        with pytest.raises(ValueError, match="the grid and the finish that it has; change the recipe's stages"):
            again.continued(config)


def test_an_asset_has_the_maps_of_its_paint():
    """Under the same lamp the textured triangles look like the solid that they were baked from."""
    config = replace(FINE.scene, paint=CONFIG)
    solid = Solid(config, TetScene.from_ellipsoid((0.5, 0.7, 0.4), config.tets))
    solid.paint = splashed()
    asset = solidify(solid, REQUEST)
    verify(asset)
    cameras = orbit(4, elevation=0.3)
    drawn, light = solid.render(cameras, 48).rgb.detach(), studio(cameras.azimuth[0])
    whole, matt = (
        psnr(drawn, surface.render(replace(asset, material=material), cameras, 48, 48, light=light).rgb)
        for material in (asset.material, Material(asset.material.base_color))
    )
    assert whole > 38
    assert matt < 30


def test_a_material_is_distilled_and_exported(tmp_path):
    """Geometry by normals, then a red metal's look by shaded pictures: its GLB holds all three maps."""
    red = replace(SOLIDS["box"](), material=Material(torch.tensor([0.8, 0.2, 0.1]).expand(1, 2, 3), 0.3, 0.9))

    def picture(cameras, kinds, background, size):
        light = studio(cameras.azimuth[0])
        return Pictures(cameras, kinds, background).of(surface.render(red, cameras, size, size, light=light))

    tets = replace(FINE.scene.tets, distance_rate=0.0, deformation_rate=0.0)
    looks = replace(FINE.scene, tets=tets, paint=CONFIG)
    stages = (
        replace(FINE, name="geometry", kinds=("normal",)),
        replace(FINE, name="appearance", scene=looks, kinds=("shaded",), steps=30),
    )
    recipe = replace(REQUEST.recipe, stages=stages)
    asset = made(tmp_path, ViewOracle(picture, 0.1, 32), replace(REQUEST, recipe=recipe))
    back = read(tmp_path / "asset.glb")
    verify(back)
    assert back.material.roughness_metallic.shape == (128, 128, 2)
    assert back.material.normal.shape == (128, 128, 3)
    torch.testing.assert_close(back.material.roughness_metallic, asset.material.roughness_metallic, atol=3e-3, rtol=0)
    cameras = orbit(6, elevation=0.2)
    one, other = (
        surface.render(replace(each, mesh=normalised(each.mesh)), cameras, 64, 64, light=studio(torch.tensor(0.0)))
        for each in (back, red)
    )
    inside = (one.alpha > 0.99) & (other.alpha > 0.99)
    assert ((one.rgb - other.rgb).abs() * inside).sum() / (3 * inside.sum()) < 0.1


def test_only_fantasia_paints_a_material():
    finished = {
        name: [stage.scene.paint.finish for stage in recipe.stages if hasattr(stage.scene, "paint")]
        for name, recipe in RECIPES.items()
    }
    assert finished.pop("fantasia3d") == [False, True]
    assert not any(any(flags) for flags in finished.values())
    assert RECIPES["fantasia3d"].stages[1].kinds == ("shaded",)
