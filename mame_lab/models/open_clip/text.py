"""What the text tower says of each class.

K classes, T templates, P = K x T prompts, L tokens, C channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor

from mame_lab.data import disk_cache
from mame_lab.data.progress import track
from mame_lab.errors import MameLabError

BATCH = 256  # prompts that are encoded at a time
TEMPLATES = {
    "imagenet": [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES],
    "simple": [template("{}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES],
}
# The classes of ImageNet-1k by their WordNet ids, which its folders have.
WORDNET = dict(zip(ImageNetInfo().label_names(), open_clip.IMAGENET_CLASSNAMES, strict=True))

Tokenizer = Callable[[list[str]], Tensor]


@dataclass
class TextTower:
    """Turns class names into text features, once: they are kept on disk.

    Args:
        clip: an open_clip model without its image tower.
        tokenizer: gives the tokens (P, L) of prompts.
        templates: texts with {} for the name of a class.
        traits: what the features follow from besides the tensors of `clip` and the tokens.
    """

    clip: Any
    tokenizer: Tokenizer
    templates: list[str]
    traits: str

    def features(self, classes: list[str]) -> Tensor:
        """One unit vector a class (K, C), the mean over the templates; WordNet ids have ImageNet's names."""
        names = [WORDNET.get(name, name.replace("_", " ")) for name in classes]
        tokens_PL = self.tokenizer([template.replace("{}", name) for name in names for template in self.templates])
        tensors = self.clip.state_dict() | {"tokens": tokens_PL}
        key = disk_cache.hash_tensors(tensors, f"{self.traits} {len(names)} classes ")
        return disk_cache.cached(key, lambda: self._encode(tokens_PL, len(names)))

    @torch.no_grad()
    def _encode(self, tokens_PL: Tensor, classes: int) -> Tensor:
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
        clip = self.clip.to(device).eval()
        prompts = track(tokens_PL.split(BATCH), "reading class names")
        batches = [clip.encode_text(x_BL.to(device), normalize=True).cpu() for x_BL in prompts]
        return F.normalize(torch.cat(batches).unflatten(0, (classes, -1)).mean(1), dim=-1)


def read_templates(chosen: Any) -> list[str]:
    """The templates that `model.templates` names or lists."""
    templates = TEMPLATES.get(chosen) if isinstance(chosen, str) else chosen
    if not templates or not all("{}" in str(template) for template in templates):
        raise MameLabError(
            f"model.templates={chosen} is not known: choose {' or '.join(TEMPLATES)}, or list texts with {{}} for the "
            f"name of the class, such as 'model.templates=[\"a photo of a {{}}.\"]'"
        )
    return [str(template) for template in templates]
