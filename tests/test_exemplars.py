"""What a lift knows by heart: how exactly it is kept, how it is counted, and what is wrong with its file."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from threed.distill import exemplars
from threed.distill.exemplars import LEVELS, PLUMP, SHADES, Exemplars, load, surfaces
from threed.distill.folder import UnreadablePrior
from threed.renderers.voxels import TRUNCATION, Voxels
from threed.training.exemplars import write

SIDE = 20


def axis():
    return torch.arange(SIDE) - (SIDE - 1) / 2


def ball(radius):
    points = torch.stack(torch.meshgrid(axis(), axis(), axis(), indexing="ij"), dim=-1)
    colour = (points / SIDE + 0.5).clamp(0, 1)
    return Voxels((points.norm(dim=-1) - radius).clamp(-TRUNCATION, TRUNCATION), colour)


@pytest.fixture(scope="module")
def few():
    return Exemplars.of([ball(7.0), ball(4.2), ball(0.6)])


def test_volumes_come_back_nearly_as_they_were(few):
    """The same voxels solid, distances near the surface to half a level, others to a voxel, colours to a shade."""
    for row, radius in enumerate((7.0, 4.2)):
        truth, found = ball(radius), few[row]
        near = truth.distance.abs() < 1 - 1 / LEVELS
        assert torch.equal(found.occupied, truth.occupied)
        assert (found.distance - truth.distance)[near].abs().max() <= 0.5 / LEVELS + 1e-4
        assert (found.distance - truth.distance).abs().max() < 1
        assert found.distance.abs().max() <= TRUNCATION
        surface = torch.from_numpy(few.surface[row])
        assert (found.colour - truth.colour)[surface].abs().max() <= 1 / (1 << SHADES)
        assert (found.colour - truth.colour)[near].abs().max() < 0.15  # those of the nearest voxel of the surface


def test_what_is_smaller_than_a_voxel_is_nothing_and_stays_it():
    none = Exemplars.of([ball(0.6)])
    assert not none[0].occupied.any()
    assert len(none.balls.radius) == 0


def test_surfaces_are_voxels_with_a_neighbour_outside(few):
    inside = np.pad(few.level[1] < 0, 1)
    for x, y, z in np.ndindex(SIDE, SIDE, SIDE):
        beside = [
            inside[x + a, y + b, z + c]
            for a, b, c in ((0, 1, 1), (2, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 0), (1, 1, 2))
        ]
        assert few.surface[1, x, y, z] == (inside[x + 1, y + 1, z + 1] and not all(beside))
    full = np.full((1, 4, 4, 4), -1, np.int8)
    assert surfaces(full).sum() == 4**3 - 2**3


def test_overlaps_are_intersections_over_unions(few):
    other = ball(5.5).occupied
    other[:8] = False
    both = [(few[row].occupied & other).sum() / (few[row].occupied | other).sum() for row in range(3)]
    torch.testing.assert_close(few.overlap(other), torch.stack(both))


def test_balls_are_at_radius_1_and_as_far_out_as_the_surface(few):
    balls = few.balls
    for row, radius in enumerate((7.0, 4.2)):
        mine = slice(int(balls.begin[row]), int(balls.begin[row + 1]))
        out = balls.centre[mine].norm(dim=-1) + balls.radius[mine]
        assert out.max().item() == pytest.approx(1)
        assert out.min() > 1 - (1 + PLUMP) / radius  # no gap is deeper than a voxel and what they have beyond it


def test_their_file_gives_them_back(tmp_path, few):
    assert load(tmp_path) is None
    (tmp_path / "lift").mkdir()
    write(tmp_path, few)
    found = load(tmp_path)
    assert np.array_equal(found.level, few.level)
    assert np.array_equal(found.shade, few.shade)


def test_of_too_many_some_at_equal_steps_are_kept(monkeypatch, few):
    monkeypatch.setattr(exemplars, "MOST", 2)
    fewer = Exemplars.of([ball(7.0), ball(4.2), ball(3.0)])
    assert np.array_equal(fewer.level[0], few.level[0])
    assert len(fewer) == 2


def spoilt(tensors, what):
    stream = tensors["level"].clone()
    if what == "cut":
        return tensors | {"level": stream[: len(stream) // 2].clone()}
    if what == "noise":
        stream[20:] = 7
        return tensors | {"level": stream}
    if what == "lacking":
        return {name: tensor for name, tensor in tensors.items() if name != "shade"}
    shape = {"more": [4, SIDE], "enormous": [3, 4096], "none": [0, SIDE]}[what]
    return tensors | {"shape": torch.tensor(shape)}


@pytest.mark.parametrize("what", ["cut", "noise", "lacking", "more", "enormous", "none"])
def test_a_file_at_fault_is_named(tmp_path, few, what):
    (tmp_path / "lift").mkdir()
    write(tmp_path, few)
    path = tmp_path / "lift" / "exemplars.safetensors"
    save_file(spoilt(load_file(path), what), path)
    with pytest.raises(UnreadablePrior, match=r"exemplars\.safetensors"):
        load(tmp_path)


def test_a_stream_that_swells_is_not_followed(tmp_path, few):
    """A gigabyte of zeros is not unpacked to find that it is too long."""
    (tmp_path / "lift").mkdir()
    level = np.zeros((3, 64, 64, 64), np.int8)
    write(tmp_path, Exemplars(level, few.shade))
    path = tmp_path / "lift" / "exemplars.safetensors"
    save_file(load_file(path) | {"shape": torch.tensor([3, SIDE])}, path)
    with pytest.raises(UnreadablePrior, match="bytes"):
        load(tmp_path)
