"""Sheets, previews, turntables and the measures of agreement."""

import math

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from threed import pictures
from threed.renderers.camera import orbit
from threed.renderers.mesh import Asset, Material, Mesh
from threed.renderers.volume import Render


def figure():
    """A block, red in front, blue behind and grey elsewhere."""
    box = trimesh.creation.box((0.6, 1.0, 0.6))
    normals = torch.tensor(np.array(box.face_normals))
    swatch = torch.where(normals[:, 2] > 0.5, 0, torch.where(normals[:, 2] < -0.5, 2, 1))
    uvs = torch.tensor([[1 / 6, 0.5], [0.5, 0.5], [5 / 6, 0.5]])
    picture = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.0, 0.0, 1.0]]).repeat_interleave(4, 0).expand(4, 12, 3)
    mesh = Mesh(torch.tensor(np.array(box.vertices)).float(), torch.tensor(np.array(box.faces)))
    return Asset("figure", mesh, uvs, swatch[:, None].expand(-1, 3), Material(picture))


def render_of(albedo, alpha):
    return Render(albedo, albedo, alpha, alpha, albedo)


def test_every_grey_keeps_its_byte():
    ramp = torch.arange(256).view(16, 16, 1).expand(16, 16, 3)
    assert torch.equal(torch.from_numpy(np.array(pictures.image(ramp / 255))), ramp.byte())


def test_a_sheet_is_laid_out_row_by_row():
    colours = torch.eye(3)[:, None, None].expand(3, 4, 6, 3)
    found = np.array(pictures.sheet(colours, columns=2, gap=2))
    expected = np.full((2 * (4 + 2) + 2, 2 * (6 + 2) + 2, 3), 255, np.uint8)
    expected[2:6, 2:8], expected[2:6, 10:16], expected[8:12, 2:8] = [255, 0, 0], [0, 255, 0], [0, 0, 255]
    assert np.array_equal(found, expected)


def test_a_preview_shows_the_front_first_and_the_back_fifth():
    found = np.array(pictures.preview(figure(), size=64)).astype(int)
    assert found.shape == (2 * 72 + 8, 4 * 72 + 8, 3)
    front, back = found[40, 40], found[112, 40]
    assert front[0] > 100 > 2 * front[2]
    assert back[2] > 100 > 2 * back[0]


def test_the_shadow_falls_on_the_floor_only():
    """With the same backdrop behind it, the picture beside the object is darkest just under it."""
    size = 64
    picture = pictures.portraits(figure(), orbit(1), size)[0]
    backdrop = torch.lerp(
        *(torch.tensor(c)[None] for c in (pictures.SKY, pictures.FLOOR)), torch.linspace(0, 1, size)[:, None]
    )
    assert torch.allclose(picture[:10, 0], backdrop[:10])
    kept = picture[-4, size // 2] / backdrop[-4]
    assert (kept < 0.95).all()
    assert (kept > 1 - pictures.SHADOW).all()


def test_a_turntable_turns_once_for_ever(tmp_path):
    path = tmp_path / "turn.webp"
    path.write_bytes(pictures.turntable(figure(), frames=12, size=48))
    with Image.open(path) as film:
        assert (film.format, film.n_frames, film.size, film.info["loop"]) == ("WEBP", 12, (48, 48), 0)
        colours = []
        for frame in (0, 6):
            film.seek(frame)
            colours.append(np.array(film.convert("RGB"))[24, 24].astype(int))
            assert film.info["duration"] == 250
    assert colours[0][0] > 2 * colours[0][2]
    assert colours[1][2] > 2 * colours[1][0]


def test_agreement_has_its_closed_form():
    albedo, alpha = torch.full((2, 4, 4, 3), 0.5), torch.ones(2, 4, 4, 1)
    psnr, iou = pictures.agreement(render_of(albedo, alpha), render_of(albedo + 0.1, alpha))
    assert psnr == pytest.approx(20, abs=1e-4)
    assert iou == 1
    assert pictures.agreement(render_of(albedo, alpha), render_of(albedo, alpha)) == (math.inf, 1)


def test_colours_are_compared_only_where_both_pictures_are_opaque():
    """Off by 0.1 there, by anything elsewhere; alpha of nearly 1 dims a colour by as much."""
    left, right = torch.zeros(1, 4, 8, 1), torch.zeros(1, 4, 8, 1)
    left[:, :, :6], right[:, :, 3:] = 1, 0.98
    right[:, :, 6:] = 0.5
    one, other = render_of(0.3 * left.expand(-1, -1, -1, 3), left), render_of(0.4 * right.expand(-1, -1, -1, 3), right)
    assert pictures.colour_psnr(one, other) == pytest.approx(20, abs=1e-4)
    assert pictures.colour_psnr(one, one) == math.inf
    assert pictures.colour_psnr(one, render_of(other.albedo * 0, right * 0.5)) == math.inf


def test_agreement_is_measured_on_white():
    """Premultiplied black of half opacity over white is the grey 1/2; an empty picture is white."""
    clear, black = torch.zeros(1, 2, 2, 1), torch.zeros(1, 2, 2, 3)
    psnr, _ = pictures.agreement(render_of(black, clear + 0.5), render_of(black, clear))
    assert psnr == pytest.approx(-10 * math.log10(0.25), abs=1e-4)


def test_silhouettes_are_compared_view_by_view():
    a, b = torch.zeros(3, 4, 4, 1), torch.zeros(3, 4, 4, 1)
    a[0, :2], b[0, 1:3] = 1, 0.6  # one row of three is shared: 1/3
    b[1] = 1  # nothing is shared: 0; the third view is empty in both: 1
    assert pictures.silhouette_iou(a, b) == pytest.approx((1 / 3 + 0 + 1) / 3)
