"""The small prior that ships with the program, or a folder of the same kind.

Layout: diffusers' `unet/`, `text_encoder/`, `tokenizer/`, `scheduler/`, safetensors only, and `prior.json` with the
conventions. Latents are pixels in [-1, 1]; the network sees them 4 x 4-unshuffled, beside a reference picture and, in
folders whose `prior.json` says `"geometry": true`, normals and mask (zeros for what is not given), and predicts the
clean picture. Where it says `"reference": "joint"`, a reference picture is also one of its group, and not noised.
Timesteps: 1000 t on the cosine schedule. It knows cameras by angles, distance and the plain background's colour, and
expects a field of view of 40 degrees; `distill/conditions.py` has it number by number.
Joint views: in every self-attention the pictures of a group see one another's tokens; no weights belong to that.

Importing diffusers takes seconds, so it waits for `load`; nothing here reaches for the network.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import pad, pixel_shuffle

from threed.distill.attention import attention
from threed.distill.conditions import (
    CAMERA_FEATURES,
    Seen,
    before,
    network_input,
    view_features,
)
from threed.distill.folder import SHIPPED, readable, restore, verify
from threed.distill.prior import (
    Conditions,
    Kind,
    Pictures,
    Prediction,
    Prompt,
    cosine,
    from_pixels,
    pixels,
    prediction_from,
)
from threed.distill.text import Text, TextReader, pieces
from threed.distill.word import ALONE, Word, changing
from threed.renderers.camera import Cameras

if TYPE_CHECKING:
    from threed.distill.adapter import LoRA

PREDICTIONS: dict[str, Kind] = {"sample": "clean", "epsilon": "noise", "v_prediction": "velocity"}  # diffusers' names
Joint = int | tuple[tuple[int, int], ...]  # pictures a group; or runs of groups: how many, of how many pictures


@dataclass(frozen=True)
class Conventions:
    """What `prior.json` says."""

    image_size: int  # pixels a side
    patch: int  # pixels a side of what one token of the network's grid covers
    prediction: Kind
    kinds: tuple[str, ...]
    text_tokens: int  # the two markers at the ends of a prompt included
    fov_y: float  # degrees
    geometry: bool  # whether the network has channels for normals and mask
    joint_reference: bool  # whether a reference picture stands among the pictures of its group, too
    compressed: bool

    @staticmethod
    def read(folder: Path) -> Conventions:
        """Raises UnreadablePrior when prior.json is missing, incomplete or of another kind."""
        path = folder / "prior.json"
        with readable(path):
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["camera_features"] != CAMERA_FEATURES:
                raise ValueError(f"camera_features is {found['camera_features']}, this program knows {CAMERA_FEATURES}")
            return Conventions(
                image_size=found["image_size"],
                patch=found["patch"],
                prediction=PREDICTIONS[found["prediction"]],
                kinds=tuple(found["kinds"]),
                text_tokens=found["text_tokens"],
                fov_y=found["fov_y_degrees"],
                geometry=found.get("geometry", False),
                joint_reference=found.get("reference") == "joint",
                compressed=found.get("compression") == "int8",
            )


@dataclass(frozen=True)
class Reference:
    """A shaded picture of the object that others shall show, and the camera that saw it."""

    picture: Float[Tensor, "1 4 H W"]  # RGB in [-1, 1] times alpha, and alpha
    camera: Cameras  # one; of its azimuth only the turns from it to the others count


@dataclass(frozen=True)
class Given:
    """Pictures that are known, and so are not denoised, among those that are: what their groups have to agree with."""

    latents: Float[Tensor, "R 3 H W"]
    order: Int[Tensor, "N"]  # which picture stands where: the P to denoise are 0 .. P - 1, the given ones follow them


@dataclass(frozen=True)
class Condition:
    """What N pictures are told to show: those to denoise, and those that are given."""

    context: Float[Tensor, "N tokens features"]
    labels: Float[Tensor, "N labels"]  # camera features, then the mean of the text
    joint: Joint  # which successive pictures see one another
    reference: Float[Tensor, "N 4 H W"] | None = None  # RGB in [-1, 1] times alpha, and alpha
    geometry: Float[Tensor, "N 4 H W"] | None = None  # camera-space normals in [-1, 1] times the mask, and the mask
    given: Given | None = None


@dataclass(frozen=True)
class Embedded:
    """A text- and camera-conditioned prior of single objects on plain backgrounds; make one with `load`."""

    conventions: Conventions
    unet: Any
    reader: TextReader
    texts: dict[str, Text] = field(default_factory=dict, repr=False)  # every prompt is read once

    @staticmethod
    def load(
        folder: Path | str | None = None, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Embedded:
        """The shipped prior, or the one in `folder`; raises UnreadablePrior when a file is at fault."""
        folder = SHIPPED if folder is None else Path(folder)
        verify(folder)
        conventions = Conventions.read(folder)
        with quiet():
            unet = prepared(load_unet(folder / "unet", conventions.compressed))
            unet.to(device, dtype or compute_dtype(torch.device(device)))
        return Embedded(conventions, unet, TextReader.load(folder, conventions.text_tokens, device))

    @property
    def image_size(self) -> int:
        return self.conventions.image_size

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.conventions.kinds

    def alpha_sigma(self, t: Float[Tensor, "P"]) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
        return cosine(t)

    def encode(self, image: Float[Tensor, "P H W 3"]) -> Float[Tensor, "P 3 H W"]:
        """Raises ValueError for pictures of another size."""
        if image.shape[1:3] != (self.image_size, self.image_size):
            height, width = image.shape[1:3]
            raise ValueError(f"pictures are {width} x {height}; render {self.image_size} x {self.image_size} pixels")
        return pixels(image)

    def decode(self, latents: Float[Tensor, "P 3 H W"]) -> Float[Tensor, "P H W 3"]:
        return from_pixels(latents)

    def conditions(
        self,
        prompt: Prompt,
        negative: str,
        pictures: Pictures,
        reference: Reference | None = None,
        geometry: Float[Tensor, "P 4 H W"] | None = None,
    ) -> Conditions:
        """What these pictures are told, also to agree with a reference, or with normals and mask.

        With a reference they are told how they turn from it, and not where the object's front is.
        Raises ValueError for too long a prompt, more or fewer prompts than pictures, kinds it does not know, or another
        field of view than its own.
        """
        fov_y = torch.rad2deg(pictures.cameras.fov_y)
        if ((fov_y - self.conventions.fov_y).abs() > 1).any():
            asked = ", ".join(f"{angle:g}" for angle in fov_y.unique().tolist())
            raise ValueError(f"fov_y is {asked} degrees; use {self.conventions.fov_y:g}, as in training")
        unknown = set(pictures.kinds) - set(self.kinds)
        if unknown:
            raise ValueError(f"unknown kind {min(unknown)!r}; this prior knows {', '.join(self.kinds)}")
        joins = reference is not None and self.conventions.joint_reference
        view = camera_features(pictures, self.kinds, reference, joins)
        seen = None if reference is None else reference.picture.expand(len(view), -1, -1, -1)
        if geometry is not None:  # which nobody knows of a reference
            geometry = pad(geometry, (0, 0, 0, 0, 0, 0, 0, len(view) - len(geometry)))
        given = None
        if reference is not None and joins:
            latents = before(pictures.background.to(reference.picture)[None], reference.picture)
            given = Given(latents, torch.arange(len(view), device=latents.device))

        def told(prompt: Prompt) -> Condition:
            text = self._texts(prompt, len(pictures), len(view))
            context = text.tokens.expand(len(view), -1, -1)
            labels = torch.cat([view.to(text.mean), text.mean.expand(len(view), -1)], dim=1)
            return Condition(context, labels, len(view), seen, geometry, given)

        return Conditions(told(prompt), told(""), told(negative) if negative.strip() else None)

    @property
    def network(self) -> Any:
        return self.unet

    @torch.no_grad()
    def denoise(self, z_t: Float[Tensor, "P 3 H W"], t: Float[Tensor, "P"], condition: Condition) -> Prediction:
        return self.answer(self.unet, z_t, t, condition)

    def answer(
        self, network: Any, z_t: Float[Tensor, "P 3 H W"], t: Float[Tensor, "P"], condition: Condition
    ) -> Prediction:
        """What this network or a changed one believes; differentiable."""
        output = predict(network, self.conventions, z_t, t, condition)
        return prediction_from(self.conventions.prediction, output, z_t, *self.alpha_sigma(t))

    def adapter(self, rank: int, rate: float, seed: int) -> LoRA:
        """One that says what this prior says until it is trained; see `distill.vsd`."""
        from threed.distill.adapter import LoRA

        return LoRA(self, rank, rate, seed)

    def beginning(self, prompt: str, count: int) -> Word:
        return {ALONE: self.reader.beginning(prompt, count)}

    def knowing(self, word: Word) -> Embedded:
        return replace(self, reader=self.reader.knowing(word[ALONE]), texts={})

    def thinking(self, network: Any) -> Embedded:
        return replace(self, unet=network)

    def _texts(self, prompt: Prompt, pictures: int, rows: int) -> Text:
        """One text for all rows, or one for each; rows beyond the pictures are told what the last picture is."""
        if isinstance(prompt, str):
            return self._text(prompt)
        if len(prompt) != pictures:
            raise ValueError(f"there are {len(prompt)} prompts for {pictures} pictures; give one, or one for each")
        texts = [self._text(each) for each in (*prompt, *[prompt[-1]] * (rows - pictures))]
        return Text(torch.cat([text.tokens for text in texts]), torch.cat([text.mean for text in texts]))

    def _text(self, prompt: str) -> Text:
        if prompt not in self.texts:
            limit, count = self.reader.limit, len(pieces(self.reader.tokenizer, prompt))
            if count > limit:
                raise ValueError(f"the prompt {prompt!r} takes {count} tokens; shorten it to at most {limit}")
            text = self.reader([prompt])
            if changing(prompt, () if self.reader.word is None else (self.reader.word,)):
                return text
            self.texts[prompt] = text
        return self.texts[prompt]


def text_reader(folder: Path | None = None) -> TextReader:
    """What encodes prompts for this prior, without the rest of it; raises UnreadablePrior."""
    folder = SHIPPED if folder is None else folder
    return TextReader.load(folder, Conventions.read(folder).text_tokens)


def predict(
    unet: Any, conventions: Conventions, z_t: Float[Tensor, "P 3 H W"], t: Float[Tensor, "P"], condition: Condition
) -> Float[Tensor, "P 3 H W"]:
    """What the network itself says of the pictures to denoise; differentiable."""
    given, pictures = condition.given, len(z_t)
    if given is not None:
        z_t = torch.cat([z_t, given.latents])[given.order]
        t = torch.cat([t, t.new_zeros(len(given.latents))])[given.order]
    inputs = network_input(z_t, condition.reference, condition.geometry, conventions.patch, conventions.geometry)
    output = unet(
        inputs.to(unet.dtype, memory_format=torch.channels_last),
        1000 * t,
        condition.context.to(unet.dtype),
        class_labels=condition.labels.to(unet.dtype),
        cross_attention_kwargs={"joint": condition.joint},
        return_dict=False,
    )[0]
    if given is not None:
        output = output[given.order.argsort()[:pictures]]
    return pixel_shuffle(output.to(z_t.dtype), conventions.patch)


class JointAttention:
    """diffusers' attention processor: self-attention over the tokens of all pictures of a group at once."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "P N C"],
        encoder_hidden_states: Float[Tensor, "P tokens features"] | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        joint: Joint = 1,
    ) -> Float[Tensor, "P N C"]:
        del attention_mask, temb  # this network has neither
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projected = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        if encoder_hidden_states is not None:
            return attn.to_out[0](in_heads(*projected, attn.heads))
        runs = ((len(context) // joint, joint),) if isinstance(joint, int) else joint
        sizes = [groups * pictures for groups, pictures in runs]
        mixed = []
        for (groups, _), *run in zip(runs, *(x.split(sizes) for x in projected), strict=True):
            query, key, value = (x.reshape(groups, -1, x.shape[2]) for x in run)
            mixed.append(in_heads(query, key, value, attn.heads).reshape(run[0].shape))
        return attn.to_out[0](torch.cat(mixed))


def in_heads(
    query: Float[Tensor, "G N C"], key: Float[Tensor, "G M C"], value: Float[Tensor, "G M C"], heads: int
) -> Float[Tensor, "G N C"]:
    """Attention in every head by itself."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return attention(query, key, value).transpose(1, 2).flatten(2)


def camera_features(
    pictures: Pictures, kinds: tuple[str, ...], reference: Reference | None = None, joins: bool = False
) -> Float[Tensor, "N 32"]:
    """What the network is told about each picture, kind-major, and about the reference that `joins` them, the last.

    `kinds` is the order in which it was trained.
    """
    background = pictures.background.to(pictures.cameras.azimuth)

    def features(cameras: Cameras, kind: str) -> Float[Tensor, "C 32"]:
        which = torch.tensor([float(kind == known) for known in kinds]).to(background)
        told = which.expand(len(cameras), -1), background.expand(len(cameras), 3)
        if reference is None:
            return view_features(cameras, *told)
        one, camera = torch.ones_like(cameras.azimuth), reference.camera.to(background.device)
        seen = Seen(camera.azimuth.expand_as(one), camera.elevation.expand_as(one), one)
        return view_features(cameras, *told, known=torch.zeros_like(one), seen=seen)

    shown = [(pictures.cameras, kind) for kind in pictures.kinds]
    if reference is not None and joins:
        shown.append((reference.camera, "shaded"))
    return torch.cat([features(*each) for each in shown])


def prepared(unet: Any) -> Any:
    """The same network, its pictures jointly denoised and its memory laid out for speed."""
    unet.set_attn_processor(JointAttention())
    for module in unet.modules():
        if isinstance(module, torch.nn.GroupNorm):
            # On CPUs, PyTorch's group norm is ten times slower in channels_last than in contiguous memory.
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return unet.to(memory_format=torch.channels_last)


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, float32 elsewhere: emulation is slower than float32."""
    if device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither diffusers nor transformers may log below an error or draw progress bars."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    logs = (diffusers_log, transformers_log)
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, verbosity, bar in before:
            log.set_verbosity(verbosity)
            if bar:
                log.enable_progress_bar()


def load_unet(folder: Path, compressed: bool) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with readable(folder):
        if compressed:
            with torch.device("meta"):  # no time goes into random numbers that are replaced at once
                unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, local_files_only=True))
            unet.load_state_dict(restore(load_file(folder / "diffusion_pytorch_model.safetensors")), assign=True)
        else:
            unet, report = UNet2DConditionModel.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
            )
            complete(report)
    return unet.eval().requires_grad_(False)


def complete(report: dict[str, Any]) -> None:
    """from_pretrained fills what a file lacks with random numbers; refuse that."""
    if report["missing_keys"]:
        raise ValueError(f"the weights lack {min(report['missing_keys'])!r}")
