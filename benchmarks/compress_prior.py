"""Make the folder that ships from a prior as it was trained, and measure what that costs.

    python benchmarks/compress_prior.py SOURCE TARGET

Large weights become int8, symmetric, with one float32 scale per output channel (per row of the word table), and are
deflated; everything else is kept as it is. LICENSE and NOTICE that already stand in TARGET stay and are listed in
SHA256SUMS. Prints the size, then the relative RMS error of the clean predictions in float32 at several t, over prompts
and views, and of those of the start, where there is one.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from threed.distill import start
from threed.distill.embedded import Embedded, text_reader
from threed.distill.folder import deflated
from threed.distill.prior import Pictures
from threed.distill.text import Text
from threed.renderers.camera import orbit

START = "start/model.safetensors"
UPSAMPLER = "upsampler/model.safetensors"
ANGLES = "angles/model.safetensors"
LIFT = "lift/model.safetensors"
RANKER = "ranker/model.safetensors"
VIEWS, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
WEIGHTS = (VIEWS, TEXT, START, UPSAMPLER, ANGLES, LIFT, RANKER)
LARGE = 1 << 14  # numbers; smaller weights cost little as they are
TIMES = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
PROMPTS = ("a wooden barrel", "a small green pine tree", "a red car", "a stone tower with a blue roof", "")


def compress(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """int8, deflated, and scale of every large weight; its error is at most half a scale per number."""
    stored = {}
    for name, weight in weights.items():
        if weight.ndim < 2 or weight.numel() < LARGE:
            stored[name] = weight
            continue
        rows = weight.float().flatten(1)
        scale = rows.abs().amax(dim=1) / 127
        # A row of zeros has no scale of its own.
        scale = torch.where(scale > 0, scale, 1.0)
        stored |= deflated(name, (rows / scale[:, None]).round().to(torch.int8).view(weight.shape))
        stored[f"{name}.scale"] = scale
    return stored


def write(source: Path, target: Path) -> None:
    """TARGET as a compressed copy of SOURCE, with checksums."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(p for p in source.rglob("*") if p.is_file() and p.name != "README.md"):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if str(path.relative_to(source)) in WEIGHTS:
            copy.write_bytes(save(compress(load_file(path)), metadata={"format": "pt"}))
        else:
            shutil.copyfile(path, copy)
    conventions = json.loads((source / "prior.json").read_text()) | {"compression": "int8"}
    (target / "prior.json").write_text(json.dumps(conventions, indent=1) + "\n")
    files = sorted(p for p in target.rglob("*") if p.is_file() and p.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(target).as_posix()}\n" for p in files]
    (target / "SHA256SUMS").write_text("".join(lines))


@torch.no_grad()
def relative_errors(original: Embedded, others: list[Embedded]) -> list[list[float]]:
    """Relative RMS error of clean predictions, a row for each of TIMES, over PROMPTS and eight joint views of each."""
    generator = torch.Generator().manual_seed(0)
    truth_squares, error_squares = torch.zeros(len(TIMES), 1), torch.zeros(len(TIMES), len(others))
    for index, prompt in enumerate(PROMPTS):
        cameras = orbit(4, elevation=math.radians(15 * index - 15))
        pictures = Pictures(cameras, ("albedo", "normal"), torch.rand(3, generator=generator))
        told, *told_others = (prior.conditions(prompt, "", pictures).positive for prior in (original, *others))
        z_1 = torch.randn(len(pictures), 3, original.image_size, original.image_size, generator=generator)
        # Noised pictures of the prior's own making, so that they are what it meets in use.
        drawn = original.denoise(z_1, torch.full((len(pictures),), 0.98), told).clean.clamp(-1, 1)
        for row, time in enumerate(TIMES):
            t = torch.full((len(pictures),), time)
            alpha, sigma = (a[:, None, None, None] for a in original.alpha_sigma(t))
            z_t = alpha * drawn + sigma * torch.randn(start.shape, generator=generator)
            truth = original.denoise(z_t, t, told).clean
            truth_squares[row] += truth.square().mean()
            for column, (other, told_other) in enumerate(zip(others, told_others, strict=True)):
                error_squares[row, column] += (other.denoise(z_t, t, told_other).clean - truth).square().mean()
    return (error_squares / truth_squares).sqrt().tolist()


@torch.no_grad()
def start_errors(source: Path, target: Path) -> list[float]:
    """The same of the start's clean tokens: one volume of every prompt, noised."""
    original, compressed = (start.load(folder) for folder in (source, target))
    encode, generator = text_reader(source), torch.Generator().manual_seed(0)
    text, nothing = encode(PROMPTS), encode([""])
    made = [
        start.sample(original, Text(text.tokens[i : i + 1], text.mean[i : i + 1]), nothing, 1, generator)
        for i in range(len(PROMPTS))
    ]
    clean, errors = original.encode(torch.cat(made)), []
    for time in TIMES:
        t = torch.full((len(clean),), time)
        alpha, sigma = (a[:, None, None] for a in original.alpha_sigma(t))
        z_t = alpha * clean + sigma * torch.randn(clean.shape, generator=generator)
        truth, found = (network(z_t, t, text.tokens, text.mean) for network in (original, compressed))
        errors.append(((found - truth).square().mean() / truth.square().mean()).sqrt().item())
    return errors


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, target = map(Path, sys.argv[1:])
    write(source, target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    original, compressed = (Embedded.load(folder, dtype=torch.float32) for folder in (source, target))
    rounded = Embedded.load(source, dtype=torch.bfloat16)
    print(f"{target}: {size / 1e6:.1f} MB\nrelative RMS error of clean predictions against float32")
    print("   t   int8 weights     bfloat16")
    for time, (by_weights, by_arithmetic) in zip(TIMES, relative_errors(original, [compressed, rounded]), strict=True):
        print(f"{time:4.2f}   {by_weights:12.4f}   {by_arithmetic:10.4f}")
    if (target / START).exists():
        print("   t   int8 start")
        for time, error in zip(TIMES, start_errors(source, target), strict=True):
            print(f"{time:4.2f}   {error:10.4f}")


if __name__ == "__main__":
    main()
