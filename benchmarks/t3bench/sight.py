"""What a CLIP model sees (Radford et al. 2021, arXiv 2103.00020), from a folder on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from threed.errors import Mistake

MEAN, SPREAD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)  # of the pictures it learnt from
ASK = 32  # pictures at once


@dataclass(frozen=True)
class Sight:
    model: Any
    tokenizer: Any

    @staticmethod
    def load(folder: Path) -> Sight:
        """Weights as safetensors alone, nothing from the network. Raises Mistake."""
        from transformers import AutoTokenizer, CLIPModel

        try:
            model, report = CLIPModel.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            if report["missing_keys"]:
                raise ValueError(f"the weights lack {min(report['missing_keys'])!r}")
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise Mistake(
                f"cannot use the CLIP model in {str(folder)!r} ({reason}); give a folder of CLIPModel"
            ) from error
        return Sight(model.eval().requires_grad_(False), tokenizer)

    @property
    def size(self) -> int:
        """Pixels a side of what it looks at."""
        return int(self.model.config.vision_config.image_size)

    def cosines(self, pictures: Float[Tensor, "N S S 3"], prompts: list[str]) -> Float[Tensor, "N M"]:
        """Of every picture, display sRGB in [0, 1], with every prompt."""
        limit = self.model.config.text_config.max_position_embeddings
        words = self.tokenizer(prompts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        mean, spread = pictures.new_tensor(MEAN), pictures.new_tensor(SPREAD)
        found = []
        for some in ((pictures - mean) / spread).movedim(-1, 1).split(ASK):
            seen = self.model(input_ids=words["input_ids"], attention_mask=words["attention_mask"], pixel_values=some)
            found.append(seen.image_embeds @ seen.text_embeds.T)
        return torch.cat(found)
