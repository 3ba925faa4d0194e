"""What every test shares: shapes are enforced, threads are bounded, and the device is a fixture.

The import hook makes every jaxtyping annotation of the package a check. It leaves out `cpu_ops`, whose kernels numba
compiles from their source.
"""

import importlib
import os
import pkgutil
from collections.abc import Iterator

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core for each worker

import threed  # noqa: F401 (before PyTorch, whose waiting threads it sets)

# isort: split
import pytest
import torch
from jaxtyping import install_import_hook

PACKAGES = (
    "threed",
    "threed.renderers",
    "threed.distill",
    "threed.distill.hub",
    "threed.exporters",
    "threed.training",
    "threed.viewer",
)


def _annotated_modules() -> list[str]:
    return [
        f"{package}.{module.name}"
        for package in PACKAGES
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
        if not module.ispkg
    ]


install_import_hook(
    [*_annotated_modules(), *(f"threed.renderers.{each}" for each in ("torch_ops", "cuda_ops", "external"))],
    "annotations.check",
)
torch.set_num_threads(min(torch.get_num_threads(), os.cpu_count() or 1))


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def small_numbers() -> Iterator[None]:
    """Commands that a test runs in this process flush them to zero; the next test starts as a program does."""
    yield
    torch.set_flush_denormal(False)
