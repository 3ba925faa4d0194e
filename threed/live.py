"""The bytes of tensors that live, counted while operations make them: of PyTorch's "meta" device as of any other."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from threed.distill.attention import PLAIN

FUSED = 256  # features of a head up to which attention is fused


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that operations make in here and that still live; `peak` is the most at any time.

    It counts what PyTorch's allocator would be asked for, of tensors of any device, "meta" included.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """`known` tensors were there before."""
        super().__init__()
        self.bytes = self.peak = 0
        self._known = {id(storage): storage for storage in (each.untyped_storage() for each in known)}
        self._seen = dict[int, Any]()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        made = function(*arguments, **(named or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known or key in self._seen:
            return

        def gone(_: object) -> None:
            self.bytes -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, gone)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


@contextmanager
def attending(device: torch.device) -> Iterator[None]:
    """Attention of tensors without numbers, as this device does it.

    diffusers' by kernels that keep no matrix of all tokens by all tokens, our own by plain products where those are
    faster.
    """
    real = functional.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any) -> Any:
        if query.is_meta and query.shape[-1] <= FUSED:
            return _Attention.apply(query, key, value)
        return real(query, key, value, *others, **named)

    plain = {"meta"} if device.type in PLAIN else set()
    functional.scaled_dot_product_attention = attention  # a mode would not reach what is computed again
    PLAIN.update(plain)
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = real
        PLAIN.difference_update(plain)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])
