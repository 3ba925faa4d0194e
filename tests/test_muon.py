"""Muon beside PyTorch's own, and beside the singular values that its iteration is to bring near 1."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from threed.distill.embedded import compute_dtype
from threed.training import muon
from threed.training.muon import QUINTIC, Muon, orthogonal


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.dtype]:
    monkeypatch.setattr(muon, "compute_dtype", lambda device: request.param)
    return request.param


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 48), (2, 48, 16)])
def test_singular_vectors_stay_and_values_go_through_the_polynomial(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if compute_dtype(matrices.device) != torch.float32:
        pytest.skip("bfloat16 is too coarse for singular vectors")
    u, values, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    values = values / values.norm(dim=1, keepdim=True)
    a, b, c = QUINTIC
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    expected = u @ torch.diag_embed(values) @ v
    torch.testing.assert_close(orthogonal(matrices).double(), expected, atol=2e-5, rtol=0)
    assert values.median() > 0.7
    assert values.max() < 1.3


def test_nothing_stays_nothing() -> None:
    assert torch.equal(orthogonal(torch.zeros(2, 4, 6)), torch.zeros(2, 4, 6))


def test_as_pytorchs_own(dtype: torch.dtype) -> None:
    """Matrices of two shapes, one of them without a gradient; to the rounding of PyTorch's bfloat16."""
    generator = torch.Generator().manual_seed(1)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in [(6, 4), (4, 6), (6, 4), (4, 6)]]
    theirs = copy.deepcopy(ours)
    one = Muon(ours, lr=0.1, weight_decay=0.5)
    other = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for a, b in zip(ours[:3], theirs, strict=False):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        before: list[Tensor] = [a.detach().clone() for a in ours]
        one.step()
        other.step()
        assert torch.equal(ours[3], before[3])
        for a, b, c in zip(ours[:3], theirs, before, strict=False):
            assert (a - b).norm() < 0.05 * (a - c).norm()
        with torch.no_grad():  # what was rounded does not add up
            for a, b in zip(ours, theirs, strict=True):
                b.copy_(a)


def test_a_convolution_is_the_matrix_of_its_rows() -> None:
    generator = torch.Generator().manual_seed(2)
    weight, slope = (torch.randn(8, 4, 3, 3, 3, generator=generator) for _ in range(2))
    whole, rows = nn.Parameter(weight.clone()), nn.Parameter(weight.flatten(1).clone())
    whole.grad, rows.grad = slope.clone(), slope.flatten(1).clone()
    for each in (whole, rows):
        Muon([each], lr=0.1, weight_decay=0.5).step()
    assert not torch.equal(whole, weight)
    assert torch.equal(whole.flatten(1), rows)
