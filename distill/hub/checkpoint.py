"""Where the files of a named checkpoint are, and whether they are whole, before anything heavy is imported or begun.

A name is a folder in diffusers' layout, a single safetensors file, or an id of the hub, "owner/name"; "sd:" before it
says that it is one of these. A single file has weights alone: what its networks look like, and the tokenizers, come
from a diffusers folder of its kind, which stands beside it under the same name, or around it. Of safetensors files the
header alone is read here: names and shapes of tensors, and how long the file has to be.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threed.distill.folder import UnreadablePrior
from threed.distill.hub.families import FAMILIES, Family

PREFIX = "sd:"
INDEX = "model_index.json"
ID = re.compile(r"[\w.-]+/[\w.-]+")  # of a checkpoint on the hub
PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
LONGEST_HEADER = 100_000_000  # bytes, as safetensors itself has it
LATER = {  # of the field, by the class that their model_index.json names
    "MVDreamStableDiffusionPipeline": "MVDream in another layout",
    "StableDiffusionImageVariationPipeline": "image variations",
}
# No other code is ever loaded, whatever a model_index.json asks for.
CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "transformer": ("SD3Transformer2DModel", "FluxTransformer2DModel"),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast"),
    **dict.fromkeys(("image_encoder", "vision_encoder"), ("CLIPVisionModelWithProjection",)),
    **dict.fromkeys(
        ("feature_extractor", "feature_extractor_clip", "feature_extractor_vae"),
        ("CLIPImageProcessor", "CLIPFeatureExtractor"),
    ),
    "clip_camera_projection": ("CLIPCameraProjection",),
    "cc_projection": ("CCProjection",),
}
OWN = ("clip_camera_projection", "cc_projection")  # whose classes come with them: this program has its own instead
WEIGHTLESS = ("tokenizer", "scheduler", "feature_extractor")


@dataclass(frozen=True)
class Checkpoint:
    """One that was found; `verify` says whether it can be used."""

    folder: Path  # in diffusers' layout
    weights: Path | None = None  # a single file, in the place of the folder's
    lora: Path | None = None  # what is added to the weights

    @property
    def index(self) -> dict[str, Any]:
        """What model_index.json says. Raises UnreadablePrior."""
        path = self.folder / INDEX
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UnreadablePrior(f"cannot read {path}: {error}; copy the checkpoint's folder again") from error
        if not isinstance(found, dict) or not isinstance(found.get("_class_name"), str):
            raise UnreadablePrior(f"{path} names no _class_name; copy the checkpoint's folder again")
        return found

    @property
    def kind(self) -> str:
        """The class of its pipeline. Raises UnreadablePrior for one that is not known."""
        name = self.index["_class_name"]
        if name in FAMILIES:
            return name
        if name in LATER:
            raise UnreadablePrior(
                f"{self.folder} is {LATER[name]} ({name}), which is not supported yet; use a text-to-image "
                "checkpoint, see: threed prior list"
            )
        raise UnreadablePrior(f"{self.folder} is a {name}; checkpoints may be one of: {', '.join(sorted(FAMILIES))}")

    @property
    def family(self) -> Family:
        """Raises UnreadablePrior for one that is not known."""
        return FAMILIES[self.kind]

    @property
    def texts(self) -> tuple[str, ...]:
        """Its text encoders and tokenizers, by diffusers' names; an encoder may be left out, as T5 of SD3 often is."""
        return tuple(
            name
            for name, told in self.index.items()
            if name.startswith(("text_encoder", "tokenizer")) and isinstance(told, list) and told[0]
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """All that is used of it."""
        return (*self.texts, *self.family.beside, self.family.network, *(["vae"] if self.family.latent else []))

    def variant(self, part: str) -> str | None:
        """What stands between "model" and ".safetensors", such as "fp16"; None where nothing does."""
        names = sorted(path.name for path in (self.folder / part).glob("*.safetensors"))
        variants = {stem.group(1) for name in names if (stem := STEM.fullmatch(name))}
        return None if None in variants or not variants else min(variants)


STEM = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")


def is_checkpoint(name: str) -> bool:
    """Whether a prior of this name is a checkpoint of others, or claims to be."""
    path = Path(name)
    return name.startswith(PREFIX) or path.suffix.lower() in {".safetensors", *PICKLES} or (path / INDEX).is_file()


def hub_id(name: str) -> str | None:
    """The id of the hub that this name is, if it is no path."""
    named = name.removeprefix(PREFIX)
    return named if ID.fullmatch(named) and not Path(named).exists() and name.startswith(PREFIX) else None


def found(name: str, lora: str | None = None) -> Checkpoint:
    """Where a checkpoint's files are: on this machine, an id of the hub in its cache. Raises UnreadablePrior."""
    from threed.distill.hub import download

    if (known := hub_id(name)) is not None:
        return Checkpoint(download.cached(known), lora=Path(lora) if lora else None)
    path = Path(name.removeprefix(PREFIX))
    if path.suffix.lower() in PICKLES and not path.is_dir():
        raise UnreadablePrior(_pickled(path))
    if path.is_file():
        return Checkpoint(_beside(path), path, Path(lora) if lora else None)
    if not path.is_dir():
        raise UnreadablePrior(
            f"there is no checkpoint {str(path)!r}; give a folder in diffusers' layout, a .safetensors file, or an id "
            "of the hub, see: threed prior list"
        )
    if not (path / INDEX).is_file():
        raise UnreadablePrior(f"{str(path)!r} has no {INDEX}; give the folder that has it, in diffusers' layout")
    return Checkpoint(path, lora=Path(lora) if lora else None)


def _beside(path: Path) -> Path:
    """The folder that says what the networks of a single file look like."""
    for folder in (path.with_suffix(""), path.parent):
        if (folder / INDEX).is_file():
            return folder
    raise UnreadablePrior(
        f"nothing says what {str(path)!r} looks like inside; put the {INDEX}, the configurations and the tokenizers of "
        f"its kind, as diffusers has them, into {str(path.with_suffix(''))!r}"
    )


def verify(checkpoint: Checkpoint) -> None:
    """That all files are there, whole, safetensors, and of classes that are known. Raises UnreadablePrior."""
    from threed.distill.hub import fit

    index, family = checkpoint.index, checkpoint.family
    named = (part for part in ("text_encoder", "tokenizer") if part in index)
    for part in dict.fromkeys((*checkpoint.parts, *named, "scheduler")):
        if not isinstance(told := index.get(part), list) or len(told) != 2:
            raise UnreadablePrior(f"{checkpoint.folder / INDEX} names no {part}; copy the checkpoint's folder again")
        _check_class(checkpoint, part, *told)
        if not any((checkpoint.folder / part).glob("*.json")):
            raise UnreadablePrior(f"there is nothing in {checkpoint.folder / part}; copy the checkpoint's folder again")
        if not checkpoint.weights and not part.startswith(WEIGHTLESS):
            for path in weight_files(checkpoint, part):
                header(path)
    if checkpoint.weights and family.foreign:
        raise UnreadablePrior(f"{checkpoint.weights} is one file, as which {family.about} is not read; give a folder")
    if checkpoint.weights:
        header(checkpoint.weights)
    fit.check(checkpoint)
    if checkpoint.lora:
        _check_lora(checkpoint.lora)
    if family.shown:
        from threed.distill.hub import shown

        shown.check(checkpoint)


def _check_class(checkpoint: Checkpoint, part: str, library: object, name: object) -> None:
    import diffusers

    group = "tokenizer" if part.startswith("tokenizer") else part.rstrip("_23")
    foreign = checkpoint.family.foreign if part == checkpoint.family.network else None
    known = (foreign.name,) if foreign else CLASSES.get(group)
    fits = name in known if known else str(name).endswith("Scheduler") and hasattr(diffusers, str(name))
    if not fits or not (foreign or part in OWN or library in ("diffusers", "transformers")):
        wanted = " or ".join(known or ["a scheduler of diffusers"])
        raise UnreadablePrior(
            f"{checkpoint.folder} has a {library}.{name} for its {part}, and it has to be {wanted}; "
            "use another checkpoint"
        )


def weight_files(checkpoint: Checkpoint, part: str) -> list[Path]:
    """The safetensors files of a component that are read, all pieces of them. Raises UnreadablePrior."""
    folder, variant = checkpoint.folder / part, checkpoint.variant(part)
    middle = f".{variant}" if variant else ""
    for stem in ("diffusion_pytorch_model", "model"):
        for pieces in (f"{stem}.safetensors.index{middle}.json", f"{stem}{middle}.safetensors.index.json"):
            if (folder / pieces).is_file():
                return _pieces(folder / pieces)
        if (whole := folder / f"{stem}{middle}.safetensors").is_file():
            return [whole]
    pickles = sorted(path for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles:
        raise UnreadablePrior(_pickled(pickles[0]))
    raise UnreadablePrior(f"there are no weights in {folder}; copy the checkpoint's folder again")


def _pieces(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadablePrior(f"cannot read {index}: {error}; copy the checkpoint's folder again") from error
    return sorted(index.parent / Path(str(name)).name for name in names)


def _pickled(path: Path) -> str:
    return (
        f"{path} is a pickle, which may run any code when it is read; use a safetensors version, or make one of its "
        "numbers alone, see Pickles in docs/priors.md"
    )


def header(path: Path) -> dict[str, list[int]]:
    """The shapes of a safetensors file's tensors by name; raises UnreadablePrior for a file that is not whole."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 2 <= length <= min(LONGEST_HEADER, size - 8):
                raise ValueError("it is no safetensors file, or only its beginning (or a pointer of Git LFS)")
            told = json.loads(file.read(length))
        tensors = {name: value for name, value in told.items() if name != "__metadata__"}
        end = 8 + length + max((value["data_offsets"][1] for value in tensors.values()), default=0)
        if size != end:
            raise ValueError(f"it has {size:,} bytes of {end:,}")
        return {name: [int(n) for n in value["shape"]] for name, value in tensors.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadablePrior(f"cannot use {path}: {error}; copy or download it again") from error


def blank(checkpoint: Checkpoint, part: str) -> tuple[Any, dict[str, str]]:
    """A network without weights, as its configuration says, and what the file calls those that have another name."""
    import diffusers
    import torch
    import transformers

    folder, (library, name) = checkpoint.folder / part, checkpoint.index[part]
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if part == checkpoint.family.network and (foreign := checkpoint.family.foreign):
        return foreign.blank(told)
    kind = getattr(diffusers if library == "diffusers" else transformers, name)
    with torch.device("meta"):
        if library == "diffusers":
            return kind.from_config(told), {}
        return kind(kind.config_class.from_pretrained(folder, local_files_only=True)), {}


def _check_lora(path: Path) -> None:
    if path.suffix.lower() in PICKLES:
        raise UnreadablePrior(_pickled(path))
    if not path.is_file():
        raise UnreadablePrior(f"there is no LoRA {str(path)!r}; check the path after --lora")
    if not any("lora" in name for name in header(path)):
        raise UnreadablePrior(f"{str(path)!r} has no LoRA weights; give one to --lora, or a checkpoint to --prior")
