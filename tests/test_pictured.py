"""From a picture to a run folder, by a start that knows a ball: its front shows what the picture shows."""

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
import trimesh
from PIL import Image, ImageDraw

from threed import pictured, pictures
from threed.cli import main
from threed.cutout import Cutout
from threed.distill.folder import SHIPPED
from threed.distill.start import Start, StartConfig, cut, volume_of
from threed.errors import Failure
from threed.exporters.unwrap import unwrap
from threed.recipes import RECIPES, AssetSettings
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.read import normalised, read
from threed.renderers.voxels import TRUNCATION, Voxels
from threed.run import FILES
from threed.start import begin
from threed.training.start import write
from threed.viewpoint import Viewpoint

GREEN, RED, BLUE = (20, 180, 40), (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)
SAME = ("recipe.json", "asset.glb", "asset.obj", "asset.png", "preview.png", "turntable.webp", "input.png", "mask.png")


def ball(radius=9.0, resolution=24):
    """Red above, blue below."""
    axis = torch.arange(resolution) - (resolution - 1) / 2
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    colour = torch.where(points[..., 1:2] > 0, torch.tensor(RED), torch.tensor(BLUE))
    return Voxels((points.norm(dim=-1) - radius).clamp(-TRUNCATION, TRUNCATION), colour)


def knowing(voxels, folder, picture=32):
    """A prior's folder whose start answers everything with these voxels."""
    folder.mkdir()
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(SHIPPED / name, folder / name)
    shutil.copyfile(SHIPPED / "prior.json", folder / "prior.json")
    side = len(voxels.distance)
    torch.manual_seed(0)
    start = Start(StartConfig(resolution=side, patch=side, components=1, width=64, layers=1, picture=picture))
    start.mean.copy_(cut(volume_of(voxels)[None], side)[0, 0])
    write(folder, start, ["a", "ball"])
    return folder


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return knowing(ball(), tmp_path_factory.mktemp("priors") / "ball")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Little assets, and few and small pictures of them."""
    asset = AssetSettings(faces=800, texture_size=128, grid=40, smoothing=5)
    monkeypatch.setitem(RECIPES, "lrm", replace(RECIPES["lrm"], asset=asset))
    monkeypatch.setattr("threed.machine.set_threads", lambda: 1)
    monkeypatch.setattr(pictures, "turntable", partial(pictures.turntable, frames=3, size=48))
    monkeypatch.setattr(pictures, "preview", partial(pictures.preview, size=48))


def photo(path, colour=GREEN):
    """A disc with nothing around it."""
    image = Image.new("RGBA", (120, 100), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((20, 10, 99, 89), fill=colour)
    image.save(path)
    return path


def test_a_picture_becomes_an_asset(prior, tmp_path, monkeypatch, capsys):
    """The whole way, twice: the same bytes; then again, refused for another picture, and with the mask given back."""
    monkeypatch.chdir(tmp_path)
    first = ["image", str(photo(tmp_path / "Green Ball.png")), "--prior", str(prior)]
    assert main([*first, "--output", "again"]) == 0
    assert main(first) == 0
    assert "outputs/green-ball-0/mask.png" in capsys.readouterr().out
    folder = tmp_path / "outputs" / "green-ball-0"
    assert {path.name for path in folder.iterdir()} == {*FILES, "checkpoints"} - {"progress.png"}
    for name in SAME:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name

    told = json.loads((folder / "report.json").read_text())["picture"]
    assert told["mask_from"] == "alpha"
    assert told["silhouette_iou"] > 0.95
    assert told["psnr_db"] > 15  # the rim, seen at a slant, keeps the colours of the volume
    assert abs(told["azimuth_degrees"]) <= 10
    assert Image.open(folder / "input.png").mode == "RGBA"
    assert Image.open(folder / "mask.png").size == (120, 100)
    asset = read(folder / "asset.glb")
    front, back = surface.render(replace(asset, mesh=normalised(asset.mesh)), orbit(2), 32, 32).albedo[:, 16, 16]
    torch.testing.assert_close(front, torch.tensor(GREEN) / 255, atol=0.03, rtol=0)
    assert back[1] < 0.3

    assert main([*first, "--resume"]) == 0
    photo(tmp_path / "Green Ball.png", (21, 180, 40))
    assert main([*first, "--resume"]) == 2
    assert "picture.digest was" in capsys.readouterr().err
    assert main([*first, "--overwrite", "--mask", str(folder / "mask.png"), "--prompt", "a ball"]) == 0
    told = json.loads((folder / "recipe.json").read_text())
    assert told["prompt"] == "a ball"
    assert len(told["picture"]["mask"]) == len(told["picture"]["digest"]) == 64
    assert main([*first, "--resume", "--prompt", "a ball"]) == 2
    assert "picture.mask was" in capsys.readouterr().err


def test_nothing_comes_out(tmp_path):
    folder = knowing(Voxels(torch.ones(8, 8, 8), torch.zeros(8, 8, 8, 3)), tmp_path / "void")
    with pytest.raises(Failure, match=r"no volume came out of the picture .*; try another --seed, --prompt with a few"):
        begin("volume", "", 0, folder, "", torch.zeros(4, 32, 32))


def test_the_picture_is_on_the_visible_side_alone():
    """Seen from the half left: green there, and grey where the camera does not see."""
    made = trimesh.creation.icosphere(3, 1.0)
    mesh = Mesh(torch.tensor(made.vertices).float(), torch.tensor(made.faces))
    uvs, uv_faces = unwrap(mesh, 256)
    asset = Asset("ball", mesh, uvs, uv_faces, Material(torch.full((256, 256, 3), 0.5)))
    seen = Viewpoint(-40.0, 20.0)
    alpha = surface.render(mesh, seen.camera, 128, 128).alpha[0]
    painted = pictured.painted(asset, Cutout(torch.tensor([0.1, 0.8, 0.2]) * alpha, alpha), seen)
    assert painted.mesh is mesh
    there = torch.cat([seen.camera.azimuth, seen.camera.azimuth + torch.pi])
    around = replace(orbit(2), azimuth=there, elevation=torch.tensor([1.0, -1.0]) * seen.camera.elevation)
    front, back = surface.render(painted, around, 64, 64).albedo
    torch.testing.assert_close(front[32, 32], torch.tensor([0.1, 0.8, 0.2]), atol=0.01, rtol=0)
    assert (back[16:48, 16:48] - 0.5).abs().max() < 1e-5
    soft = front[32, :, 1]  # from green at the middle to grey at the rim, without a jump
    assert (soft[10:54].diff().abs() < 0.15).all()


def test_what_a_start_is_told():
    alpha = torch.rand(16, 16, 1)
    rgb = torch.rand(16, 16, 3) * alpha
    picture = pictured.told(Cutout(rgb, alpha))
    torch.testing.assert_close(picture[:3], (2 * rgb - alpha).movedim(-1, 0))
    assert torch.equal(picture[3], alpha[..., 0])
