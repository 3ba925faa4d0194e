"""The measures by which priors are compared: every one against its closed form or a twin in loops."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from tiny_assets import COLOURS, box

from threed.pictures import psnr
from threed.renderers import surface
from threed.renderers.camera import orbit
from threed.training import measures, recolour
from threed.training.views_figures import rendered


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# Telling captions


def test_precision_is_the_share_of_rows_whose_best_is_their_own():
    similarity = torch.randn(200, 10, generator=seeded())
    relevant = torch.rand(200, 10, generator=seeded(1)) < 0.2
    right = [relevant[i, int(similarity[i].argmax())].item() for i in range(200)]
    assert measures.r_precision(similarity, relevant) == pytest.approx(np.mean(right), abs=1e-7)
    own = torch.eye(10, dtype=torch.bool)
    assert measures.r_precision(own.float(), own) == 1
    assert measures.r_precision(-own.float(), own) == 0


def test_a_tie_is_a_miss_and_so_is_a_picture_without_a_caption():
    own = torch.eye(3, dtype=torch.bool)
    assert measures.r_precision(torch.zeros(3, 3), own) == 0
    own[0, 0] = False
    assert measures.r_precision(torch.eye(3), own) == pytest.approx(2 / 3)


# Distances of features


def exactly(mean, root, count=64):
    """Samples with exactly this mean and the covariance root @ root.T."""
    x = torch.randn(count, len(mean), generator=seeded(), dtype=torch.float64)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T).reshape(len(mean), -1))).T
    return mean + white @ root.T


def test_the_frechet_distance_of_gaussians_in_closed_form():
    """On a line it is (m - n)^2 + (s - r)^2; where covariances commute, the sum of that over their axes."""
    double = torch.float64
    shapes = ([0.3], [[2.0]]), ([-1.0], [[0.5]])
    line = [exactly(*(torch.tensor(x, dtype=double) for x in shape)) for shape in shapes]
    assert measures.frechet_distance(*line) == pytest.approx(1.3**2 + 1.5**2, rel=1e-9)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=seeded(), dtype=torch.float64))
    a, b = torch.tensor([1.0, 2, 3, 4, 5]).double(), torch.tensor([3.0, 0.5, 3, 1, 0.1]).double()
    shift = torch.randn(5, generator=seeded(2), dtype=torch.float64)
    found = measures.frechet_distance(exactly(0 * shift, turn * a), exactly(shift, turn * b))
    assert found == pytest.approx(((a - b).square().sum() + shift.square().sum()).item(), rel=1e-9)


def test_the_frechet_distance_of_any_features_by_the_matrix_root():
    a = torch.randn(50, 6, generator=seeded(), dtype=torch.float64) @ torch.randn(6, 6, generator=seeded(1)).double()
    b = torch.randn(40, 6, generator=seeded(2), dtype=torch.float64) + 0.5
    found = measures.frechet_distance(a, b)
    (m, n), (c, d) = ([x.numpy().mean(0) for x in (a, b)], [np.cov(x.numpy().T) for x in (a, b)])
    expected = ((m - n) ** 2).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert found == pytest.approx(expected, rel=1e-9)
    assert measures.frechet_distance(b, a) == pytest.approx(found, rel=1e-9)
    assert measures.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    few = torch.randn(3, 8, generator=seeded())  # fewer than features: the covariance has no full rank
    assert measures.frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="1 and 3 pictures have no covariance; use at least 2 of each"):
        measures.frechet_distance(few[:1], few)


# Pictures


def ssim_by_loops(x, y):
    """One channel of one picture: the formula at every pixel whose window lies inside."""
    radius = 5
    window = np.array([[math.exp(-(i**2 + j**2) / (2 * 1.5**2)) for i in range(-5, 6)] for j in range(-5, 6)])
    window /= window.sum()
    found = []
    for row in range(radius, len(x) - radius):
        for column in range(radius, len(x) - radius):
            place = slice(row - radius, row + radius + 1), slice(column - radius, column + radius + 1)
            a, b = x[place], y[place]
            m, n = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * a**2).sum() - m**2, (window * b**2).sum() - n**2
            both = (window * a * b).sum() - m * n
            c1, c2 = 0.01**2, 0.03**2
            found.append((2 * m * n + c1) * (2 * both + c2) / ((m**2 + n**2 + c1) * (var_a + var_b + c2)))
    return np.mean(found)


def test_ssim_is_wangs():
    a, b = (torch.rand(2, 16, 16, 3, generator=seeded(seed)) for seed in (0, 1))
    expected = np.mean([ssim_by_loops(a[i, ..., c].numpy(), b[i, ..., c].numpy()) for i in range(2) for c in range(3)])
    assert measures.ssim(a, b) == pytest.approx(expected, abs=1e-5)
    assert measures.ssim(a, a) == pytest.approx(1, abs=1e-6)


def test_psnr_is_that_of_the_mean_squared_error():
    a = torch.rand(2, 8, 8, 3, generator=seeded()) / 2
    assert psnr(a, a + 0.1) == pytest.approx(20, abs=1e-3)
    half = a.clone()
    half[0] += 0.1
    assert psnr(a, half) == pytest.approx(20 + 10 * math.log10(2), abs=1e-3)
    assert psnr(a, a) == math.inf


def test_normals_show_where_the_object_is_even_a_white_one():
    pictures = rendered(box(colour=(1.0, 1.0, 1.0)), orbit(4), 64)
    alpha = surface.render(box(), orbit(4), 64, 64, 3).alpha
    mask = measures.mask_of_normals(pictures[2])
    assert (mask[alpha == 1] == 1).all()
    assert (mask[alpha == 0] == 0).all()
    assert set(mask.unique().tolist()) == {0, 1}


def test_one_solid_explains_true_views_better_than_those_of_several():
    cameras = orbit(4)
    looks = [rendered(box(*look), cameras, 24)[0] for look in (((1, 1, 1),), ((0.3, 1, 0.3), COLOURS[2]))]
    mixed = torch.stack([looks[view % 2][view] for view in range(4)])
    found, nerf = measures.consistency(looks[0], cameras, seeded(), steps=45)
    worse, _ = measures.consistency(mixed, cameras, seeded(), steps=45)
    assert found > worse + 4
    with torch.no_grad():
        shown = nerf.render(cameras, 24).over(torch.ones(3))
    assert psnr(shown, looks[0]) == found
    assert measures.consistency(looks[0], cameras, seeded(), steps=3)[0] < found


# Volumes


def test_volumes_against_counting():
    a, b = (torch.rand(5, 6, 7, generator=seeded(seed)) < 0.4 for seed in (0, 1))
    both = sum(x and y for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    either = sum(x or y for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    cube = [torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 2)) for x in (a, b)]
    assert measures.volume_iou(*cube) == pytest.approx(both / either)
    assert measures.volume_iou(cube[0], cube[0]) == 1
    assert measures.volume_iou(cube[0], torch.zeros_like(cube[0])) == 0
    assert measures.volume_iou(*[torch.zeros_like(cube[0])] * 2) == 1


def test_surfaces_are_as_far_apart_as_their_points():
    a, b = torch.randn(60, 3, generator=seeded()), torch.randn(40, 3, generator=seeded(1))
    away, back = measures.distances(a, b)
    apart = torch.cdist(a.double(), b.double())
    np.testing.assert_allclose(away, apart.amin(1), rtol=1e-5)
    np.testing.assert_allclose(back, apart.amin(0), rtol=1e-5)
    assert measures.chamfer(away, back) == pytest.approx((away.mean() + back.mean()) / 2)
    near = float(apart.amin(1).median())
    precision, recall = (np.mean([x < near for x in each]) for each in (away, back))
    assert measures.f_score(away, back, near) == pytest.approx(2 / (1 / precision + 1 / recall))
    assert measures.f_score(away, back, 0.0) == 0
    assert measures.f_score(away, back, 10.0) == 1


def test_colours_are_compared_in_oklab():
    black, white = torch.zeros(4, 3), torch.ones(4, 3)
    assert measures.colour_error(black, white) == pytest.approx(1, abs=1e-4)
    assert measures.colour_error(white, white) == 0
    assert math.isnan(measures.colour_error(black[:0], white[:0]))


def test_a_volume_is_whole_when_nearly_all_of_it_hangs_together():
    volume = torch.zeros(8, 8, 8, dtype=torch.bool)
    assert not measures.is_whole(volume)
    volume[:3, :3, :2] = True  # 18 voxels
    assert measures.is_whole(volume)
    volume[3, 3, 2] = True  # touches a corner
    assert measures.is_whole(volume)
    volume[6, 6, 6] = volume[6, 6, 7] = True  # 2 of 21
    assert measures.is_whole(volume)
    volume[7, 7, 5] = True  # 3 of 22
    assert volume.sum() == 22
    assert not measures.is_whole(volume)


def turned_by(name, degrees, light=1.0):
    """The colour of a name, its hue turned."""
    lab = recolour.oklab_from_srgb(torch.tensor(recolour.colour_of(name)))
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return recolour.srgb_from_oklab(torch.cat([lab[:1] * light, 0.6 * light * turn @ lab[1:]]))


@pytest.mark.parametrize("name", sorted(recolour.NAMED))
def test_a_colour_shows_its_name_and_no_other_hue(name):
    assert measures.shows(torch.tensor(recolour.colour_of(name)), name)
    if name in ("white", "grey", "black"):
        assert [other for other in recolour.NAMED if measures.shows(torch.tensor(recolour.colour_of(other)), name)] == [
            name
        ]
        return
    for light in (0.8, 1.0):
        assert measures.shows(turned_by(name, 27, light), name)
        assert measures.shows(turned_by(name, -27, light), name)
        assert not measures.shows(turned_by(name, 33, light), name)
        assert not measures.shows(turned_by(name, -33, light), name)
        assert not measures.shows(turned_by(name, 180, light), name)
    assert not measures.shows(torch.full((3,), 0.5), name)  # grey has no hue


def test_a_mean_is_of_numbers():
    assert measures.mean([1.0, math.nan, 2.0]) == 1.5
    assert math.isnan(measures.mean([math.nan]))
