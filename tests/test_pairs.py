"""Volumes beside pictures: rows that belong together, and volumes turned to where the camera stands."""

from pathlib import Path

import torch

from threed.renderers.camera import orbit
from threed.training.collection import Item
from threed.training.pairs import Pairs, facing, quarters
from threed.training.views_cache import Cache
from threed.training.volumes import Volumes

NAMES = ("a", "b", "c", "d")
SIDE, SIZE, VIEWS = 8, 16, 4


def items() -> list[Item]:
    """Four assets, one of them with two captions."""
    return [Item(Path(name), f"a {name}", name) for name in NAMES] + [Item(Path("a"), "another a", "a")]


def colour(name: str) -> int:
    return 60 + 50 * NAMES.index(name)


def pairs() -> Pairs:
    """Each asset's volume and pictures in a grey of its own; "b" has no volume, "c" no pictures."""
    solid, seen = ("a", "c", "d"), ("a", "b", "d")
    greys = torch.tensor([colour(name) for name in solid], dtype=torch.uint8)
    inside = torch.full((3, SIDE, SIDE, SIDE), -127, dtype=torch.int8)
    volumes = Volumes(
        (("",),) * 3, inside, greys[:, None, None, None, None].expand(3, SIDE, SIDE, SIDE, 3), {"b": "too thin"}
    )
    greys = torch.tensor([colour(name) for name in seen], dtype=torch.uint8)[:, None, None, None, None]
    albedo = greys.expand(3, VIEWS, 3, SIZE, SIZE)
    normal = torch.full_like(albedo, 128)
    alpha = torch.full((3, VIEWS, SIZE, SIZE), 255, dtype=torch.uint8)
    cameras = torch.stack([torch.arange(VIEWS) * 1.3, *torch.ones(3, VIEWS)], dim=1).expand(3, VIEWS, 4)
    cache = Cache((("",),) * 3, albedo, normal, alpha, albedo[:, 0, :, 0, :1].mT, cameras, {"c": "too slow"})
    return Pairs.of(items(), volumes, cache)


def test_volume_and_picture_are_of_the_same_asset():
    found = pairs()
    assert found.rows.tolist() == [[0, 0], [2, 2]]
    rows, volumes, pictures = found.drawn(64, torch.Generator().manual_seed(0))
    greys = torch.tensor([colour(name) for name in ("a", "c", "d")]).float()
    assert set(rows.tolist()) == {0, 2}
    torch.testing.assert_close((volumes[:, 1, 0, 0, 0] + 1) * 127.5, greys[rows])
    assert pictures.shape == (64, 4, SIZE, SIZE)
    # Light and exposure differ from photograph to photograph, and still the brighter asset is brighter.
    middle = (pictures[:, 0, SIZE // 2, SIZE // 2] + 1) * 127.5
    assert middle[rows == 2].mean() > 1.5 * middle[rows == 0].mean()


def test_nothing_in_common_is_nothing():
    volumes, cache = pairs().volumes, pairs().cache
    assert not Pairs.of([Item(Path("c"), "a c", "c"), Item(Path("b"), "a b", "b")], volumes, cache)


def test_what_the_camera_looks_at_becomes_the_front():
    """A mark where the camera of each quarter stands is found, once turned, where the first camera stands."""
    cameras = orbit(4, elevation=0.0)
    places = (cameras.position / 3.1 * 3).round().long() + SIDE // 2  # [x, y, z]
    turns = quarters(cameras.azimuth + 0.7)  # 40 degrees aside is still the same quarter
    assert turns.tolist() == [0, 1, 2, 3]
    assert quarters(torch.tensor([-0.1, 6.2])).tolist() == [0, 0]
    volumes = torch.zeros(4, 1, SIDE + 1, SIDE + 1, SIDE + 1)
    for volume, (x, y, z) in zip(volumes, places.tolist(), strict=True):
        volume[0, x, y, z] = 1
    found = facing(volumes, turns, torch.zeros(4, dtype=torch.bool))
    assert torch.equal(found, volumes[:1].expand(4, -1, -1, -1, -1))


def test_mirrored_is_left_for_right():
    volumes = torch.rand(2, 4, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    found = facing(volumes, torch.zeros(2, dtype=torch.long), torch.tensor([True, False]))
    assert torch.equal(found[0], volumes[0].flip(1))
    assert torch.equal(found[1], volumes[1])
