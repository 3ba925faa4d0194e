"""The edges of a mesh against a loop over its faces."""

import itertools

import pytest
import torch

from threed.renderers.topology import edges


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("vertices", [9, 25], ids=["most edges with several faces", "most edges with one"])
def test_edges_know_all_their_faces(vertices):
    faces = torch.randint(0, vertices, (60, 3), generator=seeded(8), dtype=torch.int32)
    expected = {}
    for f, (a, b, c) in enumerate(faces.tolist()):
        for i, j, k in ((a, b, c), (b, c, a), (c, a, b)):
            expected.setdefault((min(i, j), max(i, j)), []).append((f, k, i < j))
    table = edges(faces)
    sides = list(zip(*(each.tolist() for each in (table.face, table.opposite, table.forward)), strict=True))
    found = [sorted(sides[first:last]) for first, last in itertools.pairwise(table.starts.tolist())]
    ends = [tuple(each) for each in table.ends.tolist()]
    assert ends == sorted(expected)
    assert found == [sorted(expected[each]) for each in ends]
    assert table.border.tolist() == [len(expected[each]) == 1 for each in ends]
    pairs = [
        sorted((here[0], beyond[0]))
        for here, beyond in (expected[each] for each in ends if len(expected[each]) == 2)
        if here[2] != beyond[2]
    ]
    assert pairs
    assert table.pairs.sort(1).values.tolist() == pairs
    assert edges(faces + 2**31 - 40).ends.equal(table.ends + 2**31 - 40)


def test_no_faces_have_no_edges():
    table = edges(torch.zeros(0, 3, dtype=torch.int64))
    assert [len(each) for each in (table.ends, table.starts, table.face, table.border, table.pairs)] == [0, 1, 0, 0, 0]
