"""Colours move to where their new name says, in light and shade, and everything else stays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from threed.training.captions import COLOURS, colour_names, colour_words, with_colour
from threed.training.recolour import (
    NAMED,
    NAMES,
    UNCHANGED,
    Recolouring,
    colour_of,
    dominant,
    draw,
    kinship,
    like,
    name_of,
    oklab_from_srgb,
    shown,
    srgb_from_oklab,
)

WOOD, IRON = (0.51, 0.38, 0.33), (0.6, 0.6, 0.62)  # a barrel and its bands
LEAVES, TRUNK = (0.25, 0.55, 0.2), (0.45, 0.32, 0.27)
PAIRS = list(itertools.permutations(NAMES, 2))


def lab(rgb: tuple[float, float, float]) -> Float[Tensor, "3"]:
    return oklab_from_srgb(torch.tensor(rgb, dtype=torch.float64))


def painted(*parts: tuple[tuple[float, float, float], int]) -> Float[Tensor, "N 3"]:
    """Samples of a surface: colours and how often each is seen."""
    return torch.cat([torch.tensor(rgb).expand(count, 3) for rgb, count in parts])


def lit(rgb: tuple[float, float, float], light: Float[Tensor, "K"]) -> Float[Tensor, "K 3"]:
    """A paint in different light: linear sRGB times cubes, which are multiples in OKLab."""
    return srgb_from_oklab(lab(rgb).float() * light[:, None])


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [  # Ottosson 2020
        ((1, 1, 1), (1.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((1, 0, 0), (0.627955, 0.224863, 0.125846)),
        ((0, 1, 0), (0.866440, -0.233888, 0.179498)),
        ((0, 0, 1), (0.452014, -0.032457, -0.311528)),
        ((0.5, 0.5, 0.5), (0.598181, 0.0, 0.0)),
    ],
)
def test_oklab_of_known_colours(rgb: tuple[float, float, float], expected: tuple[float, float, float]) -> None:
    torch.testing.assert_close(lab(rgb), torch.tensor(expected, dtype=torch.float64), atol=2e-6, rtol=0)


def test_oklab_and_back(device: torch.device) -> None:
    steps = torch.linspace(0, 1, 18, dtype=torch.float64, device=device)
    cube = torch.cartesian_prod(steps, steps, steps).reshape(18, 18, 18, 3)
    torch.testing.assert_close(srgb_from_oklab(oklab_from_srgb(cube)), cube, atol=1e-9, rtol=0)
    torch.testing.assert_close(srgb_from_oklab(oklab_from_srgb(cube.float())), cube.float(), atol=2e-5, rtol=0)


def test_colours_beyond_the_screen_are_clamped() -> None:
    beyond = srgb_from_oklab(torch.tensor([[0.7, 0.5, 0.3], [1.2, 0.0, 0.0], [-0.1, 0.0, 0.0]]))
    assert beyond.min() == 0
    assert beyond.max() == 1


def test_every_named_colour_goes_by_its_name() -> None:
    assert len(NAMES) == 14
    assert set(NAMES) == set(COLOURS.values())
    for name, codes in NAMED.items():
        assert name_of(colour_of(name)) == name
        for code in codes:
            assert name_of(torch.tensor([*bytes.fromhex(code[1:])]) / 255) == name
    colours = [(1, 0, 0), (0, 0.5, 0), (0.1, 0.1, 0.9), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (1, 1, 0)]
    assert [name_of(rgb) for rgb in colours] == ["red", "green", "blue", "white", "black", "grey", "yellow"]


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_any_named_colour_becomes_any_other(old: str, new: str) -> None:
    light = torch.linspace(0.85, 1.05, 9)  # planks are not all alike
    surface = lit(colour_of(old), light)
    source = dominant(surface, torch.ones(9))
    recolouring = Recolouring(tuple(source.tolist()), colour_of(new))
    assert name_of(source) == old
    assert name_of(dominant(recolouring(surface), torch.ones(9))) == new
    moved = oklab_from_srgb(recolouring(surface))[:, 0]
    assert (moved.diff() > 0).all()  # what was lighter still is


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_paint_in_the_shade_becomes_the_new_paint_in_the_shade(old: str, new: str) -> None:
    """The map commutes with light: recolouring a shaded picture is shading a recoloured one."""
    shade = torch.linspace(0.6, 1, 21)
    recolouring = Recolouring(colour_of(old), colour_of(new))
    torch.testing.assert_close(recolouring(lit(colour_of(old), shade)), lit(colour_of(new), shade), atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", ["red", "green", "blue", "purple", "orange", "yellow", "teal", "pink"])
def test_vivid_paint_is_known_in_the_deepest_shade(name: str) -> None:
    shade = torch.linspace(0.1, 1, 21)
    recolouring = Recolouring(colour_of(name), colour_of("beige"))
    moved = recolouring(lit(colour_of(name), shade).double())
    torch.testing.assert_close(moved.float(), lit(colour_of("beige"), shade), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("source", "others"),
    [
        (WOOD, [IRON, (0.2, 0.2, 0.2), (0.9, 0.9, 0.9), LEAVES, (0.3, 0.3, 0.4)]),
        (LEAVES, [TRUNK, (0.6, 0.6, 0.6), (0.8, 0.2, 0.2), (0.9, 0.8, 0.2)]),
        (IRON, [WOOD, TRUNK, (0.1, 0.1, 0.1), (1.0, 1.0, 1.0)]),
        ((0.93, 0.93, 0.93), [(0.2, 0.2, 0.2), (0.8, 0.1, 0.1), WOOD]),
        ((0.15, 0.15, 0.15), [(0.6, 0.6, 0.6), (0.93, 0.93, 0.93), (0.8, 0.1, 0.1)]),
        ((0.8, 0.15, 0.1), [WOOD, IRON, (0.9, 0.55, 0.1), (0.1, 0.1, 0.1), (0.7, 0.75, 0.8)]),
    ],
)
@pytest.mark.parametrize("target", NAMES)
def test_clearly_other_colours_stay_bit_by_bit(
    source: tuple[float, float, float], others: list[tuple[float, float, float]], target: str
) -> None:
    rest = torch.tensor(others)
    assert torch.equal(Recolouring(source, colour_of(target))(rest), rest)


def test_no_change_is_none_bit_by_bit() -> None:
    colours = torch.rand(4, 50, 50, 3, generator=torch.Generator().manual_seed(0))
    for name in NAMES:
        assert torch.equal(Recolouring(colour_of(name), colour_of(name))(colours), colours)
    assert torch.equal(UNCHANGED(colours), colours)


EXTREMES = [*itertools.product((0.0, 1.0), repeat=3), (0.02, 0.0, 0.0), (0.999, 1.0, 0.999), *map(colour_of, NAMES)]


@pytest.mark.parametrize("source", EXTREMES)
def test_the_map_stays_among_the_colours(source: tuple[float, float, float]) -> None:
    steps = torch.linspace(0, 1, 9)
    cube = torch.cat([torch.cartesian_prod(steps, steps, steps), torch.full((1, 3), 1e-6)])
    for target in EXTREMES:
        moved = Recolouring(source, target)(cube)
        assert moved.isfinite().all()
        assert moved.min() >= 0
        assert moved.max() <= 1


def test_the_map_is_continuous() -> None:
    """Halving the step along a path through all colours halves the largest jump, as it would not at an edge."""
    generator = torch.Generator().manual_seed(1)
    corners = oklab_from_srgb(torch.rand(40, 3, generator=generator, dtype=torch.float64))

    def largest_jump(recolouring: Recolouring, steps: int) -> float:
        along = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[:-1, None]
        path = srgb_from_oklab((corners[:-1, None] * (1 - along) + corners[1:, None] * along).flatten(0, 1))
        return float(oklab_from_srgb(recolouring(path)).diff(dim=0).norm(dim=-1).max())

    for old, new in [("brown", "purple"), ("white", "black"), ("grey", "red"), ("black", "white"), ("green", "beige")]:
        recolouring = Recolouring(colour_of(old), colour_of(new))
        coarse, fine = (largest_jump(recolouring, steps) for steps in (4000, 8000))
        assert fine < 0.6 * coarse
        assert fine < 0.02


def test_shapes_types_and_devices(device: torch.device) -> None:
    recolouring = Recolouring(WOOD, colour_of("purple"))
    picture = torch.rand(2, 3, 4, 3, device=device)
    moved = recolouring(picture)
    assert (moved.shape, moved.dtype, moved.device) == (picture.shape, picture.dtype, picture.device)
    torch.testing.assert_close(recolouring(picture.double())[1, 2, 3].float(), moved[1, 2, 3], atol=1e-4, rtol=0)
    assert recolouring(torch.zeros(0, 3)).shape == (0, 3)
    assert {recolouring: 1}[Recolouring(WOOD, colour_of("purple"))] == 1  # a value, as all recipes are


def test_kinship() -> None:
    assert kinship(lab(WOOD), lab(WOOD)) == 1
    assert kinship(0.6 * lab(WOOD), lab(WOOD)) == 1
    assert kinship(lab(IRON), lab(WOOD)) == 0
    between = [float(kinship(lab(WOOD) * (1 - t) + lab(IRON) * t, lab(WOOD))) for t in np.linspace(0, 1, 50)]
    assert between == sorted(between, reverse=True)
    assert sum(0 < value < 1 for value in between) > 5


def test_dominant_counts_light_and_dark_of_a_paint_together() -> None:
    dark = tuple(lit(WOOD, torch.tensor([0.75]))[0].tolist())
    surface = painted((WOOD, 30), (dark, 30), (IRON, 40))
    expected = srgb_from_oklab((lab(WOOD) + 0.75 * lab(WOOD)) / 2).float()
    torch.testing.assert_close(dominant(surface, torch.ones(100)), expected, atol=1e-4, rtol=0)
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dominant(surface[shuffled], torch.ones(100)), expected, atol=1e-4, rtol=0)


def test_dominant_is_by_area() -> None:
    surface = torch.tensor([WOOD, IRON, LEAVES])
    for i in range(3):
        areas = torch.full((3,), 0.3)
        areas[i] = 0.5
        torch.testing.assert_close(dominant(surface, areas), surface[i], atol=1e-4, rtol=0)
    copies = torch.tensor([3, 5, 2])
    many = dominant(surface.repeat_interleave(copies, dim=0), torch.ones(10))
    torch.testing.assert_close(many, dominant(surface, copies.float()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(20))
def test_an_uncoloured_caption_gets_the_colour_of_what_covers_most(seed: int) -> None:
    surface = painted((WOOD, 80), (IRON, 20))
    caption, recolouring = draw("a wooden barrel", surface, np.random.default_rng(seed))
    moved = recolouring(surface)
    target = name_of(moved[0])
    assert target == name_of(recolouring.target)
    assert caption == with_colour("a wooden barrel", None, target)
    assert target != name_of(WOOD)
    assert torch.equal(moved[80:], surface[80:])


@pytest.mark.parametrize("seed", range(20))
def test_the_colour_that_is_named_moves_and_nothing_else(seed: int) -> None:
    surface = painted(((0.8, 0.15, 0.15), 10), (WOOD, 60), (IRON, 30))
    caption, recolouring = draw("a house with a dark red roof", surface, np.random.default_rng(seed))
    moved = recolouring(surface)
    assert caption == f"a house with {'an' if (new := name_of(moved[0]))[0] == 'o' else 'a'} {new} roof"
    assert new != "red"
    assert torch.equal(moved[10:], surface[10:])


def test_one_of_two_named_colours_moves_at_a_time() -> None:
    surface = painted(((0.15, 0.25, 0.75), 50), ((0.93, 0.93, 0.93), 50))
    sides = set()
    for seed in range(20):
        caption, recolouring = draw("a blue and white van", surface, np.random.default_rng(seed))
        moved = recolouring(surface)
        still = [torch.equal(moved[part], surface[part]) for part in (slice(50), slice(50, None))]
        assert sum(still) == 1
        names = [name_of(moved[0]), name_of(moved[50])]
        assert [colour_names(colour)[0] for colour in colour_words(caption)] == names
        assert len(set(names)) == 2
        sides.add(still[0])
    assert sides == {True, False}


@pytest.mark.parametrize(
    ("caption", "surface"),
    [
        ("a blue barrel", painted((WOOD, 80), (IRON, 20))),  # no blue is seen
        ("a barrel with a blue dot", painted((WOOD, 98), ((0.1, 0.2, 0.8), 2))),  # hardly any
        ("a wooden barrel", painted((WOOD, 34), (IRON, 33), (LEAVES, 33))),  # nothing covers most of it
        ("a walking man", painted((WOOD, 100))),
        ("a pine tree covered in snow", painted((LEAVES, 100))),
        ("a lump of coal", painted(((0.02, 0.02, 0.02), 100))),  # too dark to have a colour
        ("a light green and dark green snake", painted((LEAVES, 100))),  # which green, nobody knows
        ("a wooden barrel", torch.zeros(0, 3)),
        ("a red barrel", torch.zeros(0, 3)),
    ],
)
def test_what_would_not_be_true_is_not_done(caption: str, surface: Float[Tensor, "N 3"]) -> None:
    for seed in range(8):
        assert draw(caption, surface, np.random.default_rng(seed)) == (caption, UNCHANGED)


def test_the_generator_decides() -> None:
    surface = painted((WOOD, 80), (IRON, 20))
    draws = [draw("a wooden barrel", surface, np.random.default_rng(seed)) for seed in range(60)]
    assert draws == [draw("a wooden barrel", surface, np.random.default_rng(seed)) for seed in range(60)]
    assert len({caption for caption, _ in draws}) > 10
    assert len({recolouring.target for _, recolouring in draws}) > 20


@pytest.mark.parametrize("name", NAMES)
def test_colours_like_a_name_go_by_it(name: str) -> None:
    rng = np.random.default_rng(0)
    colours = [like(name, rng) for _ in range(30)]
    assert {name_of(rgb) for rgb in colours} == {name}
    assert len(set(colours)) > 5


def test_what_a_word_may_mean() -> None:
    brownish = (0.56, 0.33, 0.25)
    assert name_of(brownish) == "brown"
    surface = painted(((0.8, 0.15, 0.15), 10), (brownish, 10), (IRON, 10))
    assert shown(surface, "red").nonzero()[:, 0].tolist() == list(range(10))  # what is red leaves out what may be
    assert shown(surface[10:], "red").tolist() == [True] * 10 + [False] * 10  # which serves where nothing is
    assert not shown(surface, "blue").any()
    two = painted((colour_of("golden"), 5), (colour_of("brown"), 5))
    assert shown(two, "brown", ("brown", "gold")).tolist() == [False] * 5 + [True] * 5
