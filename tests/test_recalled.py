"""Which exemplar a picture shows, and from where: of solids like no other, seen by the renderer of surfaces."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_exemplars import BOXES, COLOURS, SIDE, picture, solid

from threed.distill.angles import AZIMUTHS, BIN, ELEVATIONS, LOWEST, Belief
from threed.distill.exemplars import Exemplars
from threed.distill.ranker import CHANNELS, TOLD, Ranker, RankerConfig
from threed.recalled import (
    ITSELF,
    STRANGE,
    UNSURE,
    VIEWS,
    VIEWS_TURNED,
    Search,
    Sighted,
    Views,
    expected,
    likely,
    recalled,
)
from threed.renderers.voxels import TRUNCATION


@pytest.fixture(scope="module")
def known():
    return Exemplars.of([solid(*each) for each in zip(BOXES, COLOURS, strict=True)])


def belief(azimuth=None, elevation=None):
    """Sure of a bin, or of nothing."""
    sides, heights = torch.zeros(AZIMUTHS), torch.zeros(ELEVATIONS)
    if azimuth is not None:
        sides[int((azimuth + AZIMUTHS * BIN / 2) / BIN)] = 8.0
    if elevation is not None:
        heights[int((elevation - LOWEST) / BIN)] = 8.0
    return Belief(sides.log_softmax(0), heights.log_softmax(0))


@pytest.mark.parametrize("row", range(len(BOXES)))
def test_the_right_one_is_found_and_from_where(known, row):
    small = picture(known[row], 27.0, 13.0)
    found = recalled(known, None, belief(25.0, 15.0), small, None, None, 40.0)
    assert found.row == row
    assert found.azimuth == pytest.approx(27, abs=6)
    assert found.elevation == pytest.approx(13, abs=8)
    assert found.overlap > 0.85
    assert found.apart < 0.05
    assert torch.equal(found.voxels.distance, known[row].distance)


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_it_is_turned_as_the_picture_shows_it(known, quarter):
    """Of four quarters angles know none: what is seen from the side becomes an object whose side is its front."""
    small = picture(known[0], 90 * quarter - 20.0, 15.0)
    found = recalled(known, None, belief(-20.0, 15.0), small, None, None, 40.0)
    assert found.row == 0
    assert found.azimuth == pytest.approx(-20, abs=6)
    again = picture(found.voxels, found.azimuth, found.elevation)
    assert (again[3] - small[3]).abs().mean() < 0.03


def test_colours_tell_what_outlines_do_not(known):
    other = Exemplars.of([solid(BOXES[1], COLOURS[3]), solid(BOXES[1], COLOURS[1])])
    found = recalled(
        other, None, belief(10.0, 15.0), picture(solid(BOXES[1], COLOURS[1]), 10.0, 15.0), None, None, 40.0
    )
    assert found.row == 1


def test_what_the_lift_makes_of_it_tells_what_a_picture_cannot():
    """Two boxes, one of them deep, from right before them, where both look alike."""
    shallow, deep = (solid((((-9, -9, -half), (9, 9, half)),), COLOURS[0]) for half in (3, 13))
    both, small = Exemplars.of([shallow, deep]), picture(shallow, 0.0, 0.0)
    for row, lifted in enumerate((shallow, deep)):
        assert recalled(both, None, belief(0.0, 0.0), small, lifted, 0.0, 40.0).row == row


def test_the_lifts_own_is_kept_where_nothing_known_is_as_much_like_the_picture(known):
    """Of what is not among them; and not, where the lift's own is worse."""
    sphere = solid(BOXES[1], COLOURS[1])
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    sphere = replace(sphere, distance=(points.norm(dim=-1) - 12).clamp(-TRUNCATION, TRUNCATION))
    told = belief(10.0, 15.0)
    assert recalled(known, None, told, picture(sphere, 10.0, 15.0), sphere, None, 40.0) is None
    assert recalled(known, None, told, picture(sphere, 10.0, 15.0), None, None, 40.0) is not None
    small = picture(known[1], 10.0, 15.0)
    assert recalled(known, None, told, small, sphere, None, 40.0).row == 1


def test_what_has_neither_the_outline_nor_the_colours_is_something_else(known):
    """A stair beside a letter: in colours of its own it is not even asked; with one of both it may be."""
    told, letter = belief(10.0, 15.0), solid(BOXES[0], COLOURS[1])
    stair = Exemplars.of([solid(BOXES[2], COLOURS[1])])
    small = picture(letter, 10.0, 15.0)
    nothing = replace(letter, distance=letter.distance.abs() + (torch.arange(SIDE) > 1) * 9.0)
    found = recalled(stair, None, told, small, nothing, None, 40.0)
    assert not found.followed
    assert found.apart < STRANGE
    other = Exemplars.of([solid(BOXES[2], COLOURS[2])])
    assert recalled(other, None, told, small, nothing, None, 40.0) is None
    assert recalled(other, None, told, small, None, None, 40.0).apart > STRANGE
    same = Exemplars.of([solid(BOXES[0], COLOURS[2])])
    found = recalled(same, None, told, small, nothing, None, 40.0)
    assert found.followed
    assert found.apart > STRANGE


class Says(Ranker):
    """Of these colours all is right, of others nothing."""

    def __init__(self, likes):
        super().__init__(RankerConfig(size=32, width=8))
        self.likes = torch.tensor(likes, dtype=torch.float32)

    def forward(self, shown, told):
        assert shown.shape[1:] == (CHANNELS, 32, 32)
        assert told.shape == (len(shown), TOLD)
        colour = shown[:, 4:7].sum((2, 3)) / shown[:, 7].sum((1, 2))[:, None]
        return 20 - 400 * (colour - self.likes).abs().amax(1)


def test_the_ranker_is_listened_to():
    """Of two boxes that look as much alike, one red and one green, before a grey one."""
    both = Exemplars.of([solid(BOXES[1], COLOURS[0]), solid(BOXES[1], COLOURS[1])])
    small = picture(solid(BOXES[1], (0.5, 0.5, 0.5)), 10.0, 15.0)
    for row in range(2):
        likes = (both.shade[both.begin[row]] + 0.5) / 32
        assert recalled(both, Says(likes), belief(10.0, 15.0), small, None, None, 40.0).row == row


def test_what_has_most_in_common_with_all_that_is_likely_is_expected_to_be_right(known):
    """By hand; and of three that are nearly as likely, one of two that are alike, though the third is the likeliest."""
    alike = [solid(boxes, COLOURS[1]) for boxes in (BOXES[1], (*BOXES[1], ((-7, 0, -3), (7, 2, 7))))]
    exemplars = Exemplars.of([solid(BOXES[3], COLOURS[1]), *alike])
    search = Search(exemplars, None, belief(), torch.zeros(4, 3), picture(known[1], 10.0, 15.0), 40.0)
    views = Views(torch.full((3,), 10.0), torch.full((3,), 15.0), torch.tensor([1, 0, 0]))
    score = torch.tensor([0.51, 0.5, 0.49])
    near = Sighted(torch.arange(3), torch.zeros(3, dtype=torch.int64), views, score, score, score)
    found = expected(search, near, None, None)
    solids = [
        torch.from_numpy(exemplars.level[row] < 0).rot90(turns, (0, 2)) for row, turns in ((0, 1), (1, 0), (2, 0))
    ]
    share = (score / UNSURE).softmax(0)
    for row in range(3):
        each = torch.stack([(solids[row] & other).sum() / (solids[row] | other).sum() for other in solids])
        assert found[row].item() == pytest.approx(float(share @ each + ITSELF * score[row]), abs=1e-5)
    assert found.argmax() == 1
    with_own = expected(search, near, exemplars[2], None)
    assert len(with_own) == 4


def test_a_given_elevation_is_kept(known):
    found = recalled(known, None, belief(20.0, 40.0), picture(known[1], 20.0, 10.0), None, 10.0, 40.0)
    assert (found.row, found.elevation) == (1, 10.0)


def test_views_are_the_likeliest_and_fewer_of_what_is_turned():
    views = likely(belief(-30.0, 20.0), None)
    assert (views.azimuth[0], views.elevation[0], views.turns[0]) == (-30, 20, 0)
    assert (views.turns == 0).sum() <= VIEWS
    assert 1 <= (views.turns == 3).sum() <= VIEWS_TURNED
    unsure = likely(belief(), None)
    assert [int((unsure.turns == k).sum()) for k in range(4)] == [VIEWS, *[VIEWS_TURNED] * 3]


def test_views_around_one_keep_its_quarter():
    views = Views(torch.tensor([10.0, -20.0]), torch.tensor([5.0, 20.0]), torch.tensor([0, 3]))
    beside = views.around(1, (5.0, 7.0), True)
    assert sorted(set(beside.azimuth.tolist())) == [-25, -20, -15]
    assert sorted(set(beside.elevation.tolist())) == [13, 20, 27]
    assert beside.turns.tolist() == [3] * 9
    assert views.around(0, (5.0, 7.0), False).elevation.tolist() == [5.0] * 3
    camera = beside.cameras(40.0)
    assert camera.azimuth[0].item() == pytest.approx(math.radians(-25 + 270))
    assert replace(camera, azimuth=camera.azimuth * 0).position[:, 0].abs().max() < 1e-6
