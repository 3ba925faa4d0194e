"""What the local cache of the hub has of a checkpoint, and what it lacks: the only place that may use the network.

An id is looked up in the cache first. What is missing is downloaded only when the user names the id, only as
safetensors, only the parts that are used, and not where HF_HUB_OFFLINE is set; a line says how much and where to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from threed.distill.folder import UnreadablePrior

SITE = "https://huggingface.co"
SMALL = (".json", ".txt", ".model")  # suffixes of configurations and tokenizers
PARTS = ("unet", "transformer", "vae", "text_encoder", "tokenizer", "scheduler")
# Of what is told a picture: others have such folders for other uses.
READERS = ("image_encoder", "vision_encoder", "feature_extractor", "feature_extractor_clip", "feature_extractor_vae")


def cached(name: str, index: str = "model_index.json") -> Path:
    """The folder in the cache of an id that was downloaded. Raises UnreadablePrior where it was not."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, index)
    if not isinstance(path, str):
        raise UnreadablePrior(f"{name!r} is not in the local cache; name it in a command, or give a folder")
    return Path(path).parent


def fetched(name: str, tell: Callable[[str], None]) -> Path:
    """The folder in the cache of an id, downloaded where anything lacks. Raises UnreadablePrior."""
    from threed.distill.hub.checkpoint import Checkpoint, verify

    try:
        folder = cached(name)
        verify(Checkpoint(folder))
        return folder
    except UnreadablePrior:
        return downloaded(name, tell, needed)


def downloaded(name: str, tell: Callable[[str], None], needed: Callable[[Iterable[str]], list[str]]) -> Path:
    """The folder in the cache of an id, of whose files these are `needed`. Raises UnreadablePrior."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError

    page = f"{SITE}/{name}"
    if constants.HF_HUB_OFFLINE:
        raise UnreadablePrior(
            f"{name!r} is not whole in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set; unset it, or copy the "
            "checkpoint here and give its folder"
        )
    try:
        listed = HfApi().model_info(name, files_metadata=True).siblings or []
        files = {each.rfilename: each.size or 0 for each in listed}
        wanted = needed(files)
        size = sum(files[each] for each in wanted) / 1e9
        tell(f"downloading {name} ({size:.1f} GB, safetensors alone) from {page} into {constants.HF_HUB_CACHE}")
        folder = Path(snapshot_download(name, allow_patterns=wanted))
        sums = {each.rfilename: each.lfs.sha256 for each in listed if each.lfs and each.rfilename in wanted}
        verified(folder, sums)
        tell(f"{len(sums)} of {len(wanted)} files have the SHA-256 that the hub states; for the others it states none")
        return folder
    except GatedRepoError as error:
        raise UnreadablePrior(
            f"{name!r} is gated: read and accept its licence at {page}, then run: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise UnreadablePrior(
            f"the hub has no {name!r}, or it is private; see: threed prior list (the ids of old papers are gone)"
        ) from error
    except (HTTPError, OSError) as error:  # what the cache and the network may fail with
        raise UnreadablePrior(
            f"cannot download {name!r}: {error}; try again, or copy the checkpoint here and give its folder"
        ) from error


def verified(folder: Path, sums: Mapping[str, str]) -> None:
    """Raises UnreadablePrior for a file whose SHA-256 is another, and removes it, so that it is not taken for whole.

    The hub states the sum of every file in Git LFS, and its library compares sizes alone where files come over HTTP.
    """
    for name, stated in sums.items():
        path = folder / name
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != stated:
            for each in (path.resolve(), path):  # what the cache has, and its name in the snapshot
                each.unlink(missing_ok=True)
            raise UnreadablePrior(
                f"{name} has the SHA-256 {found}, and the hub states {stated}; it was removed, download it again"
            )


def needed(files: Iterable[str]) -> list[str]:
    """Which of a repository's files are used: of two precisions the half. Raises UnreadablePrior for pickles alone."""
    from threed.distill.hub.checkpoint import OWN

    below = [each for each in files if each.count("/") == 1]
    tells = any(each.startswith((*OWN, "vision_encoder/")) for each in below)
    heard = any(each.startswith("text_encoder") for each in below)
    parts = (*PARTS, *READERS, *OWN) if tells or not heard else PARTS
    inside = [each for each in below if each.split("/")[0].rstrip("_23") in parts]
    small = [each for each in inside if each.endswith(SMALL) and not _variant(each)]
    found = ["model_index.json", *small]
    for part in sorted({each.split("/")[0] for each in inside}):
        found += chosen([each for each in inside if each.startswith(f"{part}/")], part)
    return sorted(set(found))


def chosen(files: Sequence[str], part: str) -> list[str]:
    """Which files of weights of one part are used. Raises UnreadablePrior for pickles alone."""
    weights = [each for each in files if _is_weights(each)]
    half = [each for each in weights if _variant(each) == "fp16"]
    plain = [each for each in weights if _variant(each) is None]
    if not (half or plain) and any(each.endswith(".bin") for each in files):
        raise UnreadablePrior(
            f"its {part} is there as a pickle alone, which may run any code when it is read; use another checkpoint, "
            "or make a folder of its numbers alone, see Pickles in docs/priors.md"
        )
    return half or plain


def _is_weights(name: str) -> bool:
    return ".safetensors" in name and "non_ema" not in name


def _variant(name: str) -> str | None:
    """Of a file of weights or of the index of their pieces: what stands between dots beside "safetensors"."""
    from threed.distill.hub.checkpoint import STEM

    file = name.split("/")[-1]
    if ".safetensors.index" in file or file.endswith(".index.json"):
        return "fp16" if ".fp16" in file else None
    stem = STEM.fullmatch(file)
    return stem.group(1) if stem else None
