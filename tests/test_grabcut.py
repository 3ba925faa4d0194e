"""Object and background by their colours: mixtures against closed forms, the cut against a maximum flow."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import maximum_flow
from scipy.stats import multivariate_normal

from threed.grabcut import COMPONENTS, GRAIN, Cut, Edges, Mixture, divided, refined, split


def squares(size=48, noise=0.02):
    """A dark square before a light ground, and where it is."""
    random = np.random.default_rng(0)
    inside = np.zeros((size, size), bool)
    inside[size // 4 : size // 2, size // 3 : 3 * size // 4] = True
    rgb = np.where(inside[..., None], [0.2, 0.3, 0.5], [0.8, 0.7, 0.6]) + noise * random.normal(size=(size, size, 3))
    return rgb.astype(np.float32), inside


def test_a_gaussian_is_the_one_of_its_colours():
    random = np.random.default_rng(0)
    colours = (random.normal(size=(500, 3)) @ random.normal(size=(3, 3)) * 0.05 + 0.5).astype(np.float32)
    which = (np.arange(500) < 100).astype(np.int64)
    mixture = Mixture.of(colours, which)
    expected = []
    for k, weight in ((0, 0.8), (1, 0.2)):
        part = colours[which == k].astype(np.float64)
        spread = np.cov(part.T, bias=True) + GRAIN**2 * np.eye(3)
        expected.append(np.log(weight) + multivariate_normal(part.mean(0), spread).logpdf(colours))
    logs = np.stack(expected, axis=-1) + 1.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(mixture.logs(colours), logs, atol=1e-3)
    np.testing.assert_allclose(mixture.cost(colours), -logs.max(1), atol=1e-3)


def test_colours_are_split_where_they_lie_apart():
    random = np.random.default_rng(0)
    centres = np.array([[0, 0, 0], [0, 0.3, 0], [0, 0, 0.2], [1, 0, 0], [1, 0.4, 0]])
    own = random.integers(0, 5, 400)
    which = split(centres[own] + 0.01 * random.normal(size=(400, 3)))
    assert len({*zip(own.tolist(), which.tolist(), strict=True)}) == COMPONENTS == 5
    assert not split(np.full((10, 3), 0.5)).any()


@pytest.mark.parametrize("seed", range(4))
def test_the_cut_is_the_minimal_one(seed):
    """Its energy is that of the maximum flow through the graph of pixels and neighbours (Ford and Fulkerson 1956)."""
    random, (height, width) = np.random.default_rng(seed), (7, 9)
    cost = random.integers(-40, 40, (height, width))
    right, below = random.integers(0, 30, (2, height, width))
    right[:, -1], below[-1] = 0, 0
    index = np.arange(height * width).reshape(height, width)
    source, sink = height * width, height * width + 1
    links = [
        (index[:, :-1], index[:, 1:], right[:, :-1]),
        (index[:, 1:], index[:, :-1], right[:, :-1]),
        (index[:-1], index[1:], below[:-1]),
        (index[1:], index[:-1], below[:-1]),
        (np.full_like(index, source), index, np.maximum(-cost, 0)),
        (index, np.full_like(index, sink), np.maximum(cost, 0)),
    ]
    begin, end, capacity = (np.concatenate([link[i].ravel() for link in links]) for i in range(3))
    graph = coo_matrix((capacity.astype(np.int32), (begin, end)), shape=(sink + 1, sink + 1)).tocsr()
    least = maximum_flow(graph, source, sink).flow_value + np.minimum(cost, 0).sum()

    edges = Edges((right / 30).astype(np.float32), (below / 30).astype(np.float32))
    found = Cut.begun(np.zeros_like(cost, bool)).towards((cost / 30).astype(np.float32), edges, 3000).inside > 0.5
    assert cost[found].sum() + 30 * edges.along(found) == pytest.approx(least, abs=1e-3)
    assert 0 < found.sum() < found.size


def test_going_on_is_as_good_as_going_far():
    rgb, inside = squares()
    cost, edges, start = np.where(inside, -0.1, 0.1).astype(np.float32), Edges.of(rgb), Cut.begun(~inside)
    far, on = start.towards(cost, edges, 400), start.towards(cost, edges, 200).towards(cost, edges, 200)
    np.testing.assert_allclose(on.inside, far.inside, atol=1e-3)
    assert not start.right.any()  # what has been begun stays as it was


def test_borders_cost_least_where_neighbours_differ_most():
    rgb, inside = squares()
    edges = Edges.of(rgb)
    assert edges.right[:, -1].max() == edges.below[-1].max() == 0
    assert edges.along(inside) < 0.1 * edges.along(np.roll(inside, 5, axis=0))
    even = Edges.of(np.full((4, 5, 3), 0.5, np.float32))
    assert even.right[:, :-1].min() == even.below[:-1].min() == 1


def test_an_object_is_found_from_a_poor_guess():
    rgb, inside = squares()
    sure = np.ones_like(inside)
    sure[2:-2, 2:-2] = False
    division = divided(rgb, [np.roll(inside, 3, axis=1)], sure)
    assert division is not None
    assert np.array_equal(division.inside, inside)
    assert divided(rgb, [np.zeros_like(inside)], sure) is None
    assert divided(rgb, [inside], np.ones_like(inside)) is None


def test_the_guess_that_explains_more_wins(monkeypatch):
    rgb, inside = squares()
    nobody = np.zeros_like(inside)
    own = divided(rgb, [inside], nobody)
    energies = {6: 2.0, 9: 1.0, 12: 3.0, 15: None}  # of guesses, by how many pixels they have
    monkeypatch.setattr(
        "threed.grabcut.settled",
        lambda rgb, guess, sure: (energy := energies[guess.sum()]) and replace(own, inside=guess, energy=energy),
    )
    guesses = [np.arange(inside.size).reshape(inside.shape) < count for count in energies]
    found = divided(rgb, guesses, nobody)
    assert found is not None
    assert found.inside.sum() == 9


def test_only_what_is_near_is_refined():
    small, coarse = squares()
    division = divided(small, [coarse], np.zeros_like(coarse))
    rgb, inside = squares(96)
    rough = np.roll(inside, 2, axis=1)
    near = np.zeros_like(inside)
    near[:, 20:40] = True
    assert division is not None
    found = refined(rgb, rough, near, division)
    assert np.array_equal(found[near], inside[near])
    assert np.array_equal(found[~near], rough[~near])
    assert np.array_equal(refined(rgb, rough, np.zeros_like(near), division), rough)
