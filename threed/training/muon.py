"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): momentum whose matrices are made orthogonal.

PyTorch's own computes in bfloat16 wherever it is, which on a processor without such instructions took a third of a
training; and it takes matrices one by one, where a GPU would rather have all of a shape at once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from threed.distill.embedded import compute_dtype

MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)  # steep at 0; singular values end near 1, not at it
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For matrices, and for convolutions, a row of whose matrix is all that makes one channel.

    The steps are as large as AdamW's (Liu et al. 2025, arXiv 2502.16982, Eq. 4).
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Nesterov's momentum, made orthogonal."""
        del closure  # for those who evaluate the loss again
        for group in self.param_groups:
            alike = defaultdict[torch.Size, list[Tensor]](list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape].append(matrix)
            for shape, matrices in alike.items():
                rows, columns = shape[0], shape[1:].numel()
                steps = orthogonal(torch.stack([self._momentum(matrix).flatten(1) for matrix in matrices]))
                steps = steps.to(matrices[0].dtype).unflatten(2, shape[1:])
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                length = 0.2 * math.sqrt(max(rows, columns))
                torch._foreach_add_(matrices, list(steps), alpha=-group["lr"] * length)

    def _momentum(self, matrix: Tensor) -> Tensor:
        slope, state = matrix.grad, self.state[matrix]
        assert slope is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(slope)
        state["momentum_buffer"].lerp_(slope, 1 - MOMENTUM)
        return slope.lerp(state["momentum_buffer"], MOMENTUM)


def orthogonal(matrices: Float[Tensor, "M R C"], iterations: int = ITERATIONS) -> Float[Tensor, "M R C"]:
    """Every matrix with its singular values brought near 1, by Newton and Schulz's iteration, as exact as is fast."""
    a, b, c = QUINTIC
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    x = x.to(compute_dtype(x.device))
    if tall := x.shape[1] > x.shape[2]:  # the smaller of both squares
        x = x.mT
    for _ in range(iterations):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
