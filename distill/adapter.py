"""Low-rank changes to a prior's network that can be trained, while the prior itself stays as it is.

Hu et al. 2021, LoRA (arXiv 2106.09685, section 4.1): W x becomes W x + B A x, with B zero at first.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from threed.distill.prior import Denoiser, Prediction

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]  # what is changed, by diffusers' names


class Networked(Denoiser, Protocol):
    """A denoiser that is a network, with diffusers' names in it, and can have another one answer in its place."""

    @property
    def network(self) -> Any: ...

    def answer(self, network: Any, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], condition: Any) -> Prediction:
        """As `denoise`, by this network, and differentiable."""


class LoRA:
    """A prior that can be trained: it sees what the prior sees, the cameras too, and shares its weights."""

    def __init__(self, prior: Networked, rank: int, rate: float, seed: int) -> None:
        """`rate` is the learning rate. Importing peft takes seconds, so it waits until here."""
        from peft import LoraConfig, inject_adapter_in_model

        self.prior, self.rate = prior, rate
        network = shared(prior.network)
        with torch.random.fork_rng(devices=[]):  # peft knows no generators
            torch.manual_seed(seed)
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=ATTENTION)
            self.network: Any = inject_adapter_in_model(config, network)
        self.weights = {name: p for name, p in self.network.named_parameters() if "lora_" in name}
        for weight in self.weights.values():
            if weight.dtype == torch.float16:  # in which what Adam divides by would be zero
                weight.data = weight.data.float()

    def alpha_sigma(self, t: Float[Tensor, "P"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        return self.prior.alpha_sigma(t)

    def denoise(self, z_t: Float[Tensor, "P C h w"], t: Float[Tensor, "P"], condition: Any) -> Prediction:
        """As the prior's, and differentiable to the adapter's weights."""
        return self.prior.answer(self.network, z_t, t, condition)

    def fused(self) -> Any:
        """The prior's network with what was learned added, W + B A: all other weights are the prior's own."""
        network = shared(self.prior.network)
        for name, layer in self.network.named_modules():
            if f"{name}.lora_A.default.weight" in self.weights:
                plain = network.get_submodule(name)
                plain.weight = nn.Parameter(changed(plain.weight, layer.get_delta_weight("default")), False)
        return network

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.weights.values()), "lr": self.rate}]

    def state_dict(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.weights.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(state[name])


def shared(network: Any) -> Any:
    """Another network of the same weights, each in memory once."""
    kept = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    return copy.deepcopy(network, kept)


@torch.no_grad()
def changed(weight: Float[Tensor, "F G"], change: Float[Tensor, "F G"]) -> Float[Tensor, "F G"]:
    """Their sum, in the weight's precision."""
    return (weight.to(change.dtype) + change).to(weight.dtype)
