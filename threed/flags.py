"""What the flags of all commands share: how they are explained, and what is checked of them before any work."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import tyro

from threed.errors import Mistake, unknown

SEED = (0, 2**63 - 1)
STEPS = (1, 100_000)
SCALE = (0.0, 1000.0)
STRENGTH = (0.0, 10.0)
FACES = (100, 60_000)
TEXTURE = (64, 4096)
HEIGHT = (0.001, 1000.0)
VRAM = (2.0, 1000.0)


def said(text: str, default: str | None = None, metavar: str | None = None, name: str | None = None) -> object:
    """A flag's help, and what holds where the flag is left out if that is not a plain value."""
    hint = f"(default: {default})" if default else None
    return tyro.conf.arg(help=text, help_behavior_hint=hint, metavar=metavar, name=name)


# What every command that makes an asset can be told; None where the recipe decides.
Folder = Annotated[Path | None, said("The run folder.", "outputs/<prompt>-<seed>")]
Seed = Annotated[int, said(f"Another seed, another asset; the same seed, the same bytes. At least {SEED[0]}.")]
PriorName = Annotated[
    str,
    said(
        "The diffusion model: embedded (it came with the program), the folder of a prior, or sd:NAME for Stable "
        "Diffusion and its kin: a folder, a .safetensors file, or an id of the Hugging Face hub; see threed prior list."
    ),
]
Lora = Annotated[Path | None, said("A LoRA to add to the sd: prior, a .safetensors file.", "none")]
ControlName = Annotated[
    str | None,
    said(
        "A ControlNet or T2I-Adapter that steers the sd: prior by the scene's shape: depth:NAME or normal:NAME, where "
        "NAME is a folder or an id of the hub; the prefix may be left out where NAME has the word in it.",
        "none",
    ),
]
ControlStrength = Annotated[
    float | None, said(f"How strongly --control steers, {STRENGTH[0]:g} to {STRENGTH[1]:g}.", "1")
]
Negative = Annotated[str, said("What it should not look like.", "the recipe's, mostly nothing")]
Steps = Annotated[
    int | None, said(f"Optimisation steps, all stages together, {STEPS[0]} to {STEPS[1]}.", "the recipe's")
]
LossName = Annotated[
    str | None,
    said("The distillation loss: sds, sjc, csd, nfsd, hifa, sdi, ism, vsd, bsd; see docs/losses.md.", "the recipe's"),
]
Scale = Annotated[
    float | None, said(f"Guidance scale, {SCALE[0]:g} to {SCALE[1]:g}; 1 is the prior alone.", "the recipe's")
]
Formats = Annotated[tuple[str, ...], said("File formats of the asset: glb, gltf, obj, ply, stl, usdz.")]
TextureSize = Annotated[
    int | None, said(f"Texels a side, a power of two, {TEXTURE[0]} to {TEXTURE[1]}.", "the recipe's")
]
Faces = Annotated[int | None, said(f"Triangles at most, {FACES[0]} to {FACES[1]}.", "the recipe's")]
Height = Annotated[float | None, said(f"Metres, {HEIGHT[0]:g} to {HEIGHT[1]:g}.", "the recipe's")]
Device = Annotated[str, said("Where to compute: cpu, cuda, mps, or auto: a GPU if there is one.")]
Backends = Annotated[
    tuple[str, ...],
    said(
        "Libraries to use in the place of our own CUDA kernels: tinycudann, nerfacc, nvdiffrast; see docs/scale.md.",
        "none",
    ),
]
Vram = Annotated[
    float | None,
    said(
        f"Choose settings with which the run fits into so many gigabytes of memory, {VRAM[0]:g} to {VRAM[1]:g}.",
        "no limit",
    ),
]
Compile = Annotated[
    bool, said("Compile the network of the sd: prior: minutes at the beginning, for steps that may be shorter.", "off")
]
Watch = Annotated[bool, said("Show the run in the browser while it works, and the asset after it.", "off")]
Resume = Annotated[bool, said("Go on with the run in this folder; begin it if there is none.", "off")]
Overwrite = Annotated[bool, said("Remove the run in this folder first, and only its files.", "off")]


def check_ranges(asked: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raises Mistake for the first of these fields that is given and out of its range, ends included."""
    for name, (low, high) in ranges.items():
        value = getattr(asked, name)
        if value is not None and not low <= value <= high:  # NaN is in no range
            raise Mistake(f"{flag_of(name)} is {value}; it must lie between {plain(low)} and {plain(high)}")


def flag_of(name: str) -> str:
    """As it is typed."""
    return "--" + name.replace("_", "-")


def plain(number: float) -> str:
    """Whole numbers digit by digit, others as short as they can be."""
    return str(number) if isinstance(number, int) else f"{number:.15g}"


def check_words(**given: str) -> None:
    """Raises Mistake for words, by what they are called, in which bytes stand that are no text."""
    for name, words in given.items():
        try:
            words.encode()
        except UnicodeEncodeError as error:
            raise Mistake(f"the {name} {words!r} is not UTF-8; type it anew, or check the locale (LANG)") from error


def check_asset_flags(asked: object) -> None:
    """What is asked of an asset and its folder, beyond ranges. Raises Mistake."""
    formats, resume, overwrite, texels = (
        getattr(asked, name) for name in ("format", "resume", "overwrite", "texture_size")
    )
    if not formats:
        raise Mistake("--format names nothing; give at least one, for example: --format glb")
    if resume and overwrite:
        raise Mistake("--resume and --overwrite contradict each other; give one of them")
    if texels is not None and texels.bit_count() != 1:
        near = 2 ** round(math.log2(max(texels, 1)))
        raise Mistake(f"--texture-size is {texels}; it must be a power of two, for example {near}")


def check_device(name: str, devices: Mapping[str, bool]) -> None:
    """Raises Mistake for a device that is not known, or not there."""
    if name not in devices:
        raise unknown("device", name, devices)
    if not devices[name]:
        offered = ", ".join(name for name, there in devices.items() if there)
        raise Mistake(f"PyTorch finds no device {name!r} on this machine; use one of: {offered}")


def check_output(path: Path, example: str) -> None:
    """Raises Mistake for a path that no file of the example's kind can be written to."""
    suffix = Path(example).suffix
    if path.is_dir():
        raise Mistake(f"{str(path)!r} is a folder; name a file in it, for example --output {path / example}")
    if path.suffix.lower() != suffix:
        raise Mistake(f"--output is {str(path)!r}; its name must end with {suffix}")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise Mistake(f"cannot write {str(path)!r} ({str(above)!r} is not a folder); choose another --output")
    if not os.access(above, os.W_OK):
        raise Mistake(f"cannot write {str(path)!r} ({str(above)!r} is read-only); choose another --output")


def make_folder(folder: Path, flag: str, named: Path | None = None) -> None:
    """Raises Mistake for a folder that cannot be made; `named` is what the flag says, where the folder is inside it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "Not a directory" if isinstance(error, FileExistsError) else error.strerror or error
        raise Mistake(f"cannot write into {str(named or folder)!r} ({reason}); choose another {flag}") from error
