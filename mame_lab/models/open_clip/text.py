"""What the text tower says of each class, computed once and kept on disk by a hash of all that it follows from.

K classes, T templates, P = K x T prompts, L tokens, C channels.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import HFTokenizer
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor

from mame_lab.errors import MameLabError
from mame_lab.hub import in_one_line, no_retries_offline
from mame_lab.models.settings import ModelSettings

CACHE = "MAME_LAB_CACHE"  # names the folder in the environment
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
    """Turns class names into text features.

    Args:
        clip: an open_clip model; its image tower is not needed.
        tokenizer: gives the tokens (P, L) of prompts.
        templates: what a class name is put into, in place of {}.
        traits: what the text features follow from besides the tensors of `clip`: its configuration.
    """

    clip: Any
    tokenizer: Tokenizer
    templates: list[str]
    traits: str

    def features(self, classes: list[str]) -> Tensor:
        """One unit vector a class (K, C): the mean over the templates. Those of WordNet ids are of ImageNet's names.

        Raises:
            MameLabError: the folder of the cache cannot be written to.
        """
        prompts = [template.replace("{}", name) for name in map(_words, classes) for template in self.templates]
        tokens_PL = self.tokenizer(prompts)
        path = _cache() / f"{self._hash(tokens_PL)}.safetensors"
        if path.exists():
            text_KC = _read(path)
            if text_KC is not None:
                return text_KC
            print(f"{path} is damaged: the text features are computed again.")
        text_KC = F.normalize(self._encode(tokens_PL).unflatten(0, (len(classes), -1)).mean(1), dim=-1)
        _write(text_KC, path)
        return text_KC

    @torch.no_grad()
    def _encode(self, tokens_PL: Tensor) -> Tensor:
        """One unit vector (P, C) a prompt."""
        device = _device()
        clip = self.clip.to(device).eval()
        bar = {"description": "reading class names", "transient": True, "disable": not Console().is_terminal}
        batches = [clip.encode_text(x.to(device), normalize=True).cpu() for x in track(tokens_PL.split(BATCH), **bar)]
        return torch.cat(batches)

    def _hash(self, tokens_PL: Tensor) -> str:
        """Of all that the text features follow from: the prompts as tokens, the weights, and how these are used."""
        digest = hashlib.sha256(f"{self.traits} {len(self.templates)} {tuple(tokens_PL.shape)}".encode())
        tensors = {name: x for name, x in self.clip.state_dict().items() if not name.startswith("logit_")}
        for name, x in sorted(tensors.items()):
            digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
            digest.update(_bytes(x))
        digest.update(_bytes(tokens_PL))
        return digest.hexdigest()


def read_templates(chosen: Any) -> list[str]:
    """The templates that `model.templates` names or lists."""
    templates = TEMPLATES.get(chosen) if isinstance(chosen, str) else chosen
    if not templates or not all(isinstance(template, str) and "{}" in template for template in templates):
        raise MameLabError(
            f"model.templates={chosen} is not known: choose {' or '.join(TEMPLATES)}, or list texts with {{}} for the "
            f"class, such as 'model.templates=[\"a photo of a {{}}.\"]'"
        )
    return list(templates)


def read_tokenizer(settings: ModelSettings, name: str) -> Tokenizer:
    """The tokenizer of an open_clip architecture: from a local folder, or its own, which CLIP's models have packaged."""
    text = open_clip.get_model_config(name)["text_cfg"]
    try:
        with no_retries_offline():
            if settings.tokenizer is None:
                return open_clip.get_tokenizer(name)
            return HFTokenizer(
                settings.tokenizer, context_length=text["context_length"], **text.get("tokenizer_kwargs", {})
            )
    except Exception as error:
        if settings.tokenizer is not None:
            raise MameLabError(
                f"model.tokenizer={settings.tokenizer} holds no tokenizer: {in_one_line(error)}"
            ) from error
        raise MameLabError(
            f"the tokenizer {text.get('hf_tokenizer_name')} of model.name={settings.name} cannot be fetched "
            f"({in_one_line(error)}): give its folder with model.tokenizer=FOLDER, or judge by k-NN, which needs no "
            f"text, with model.num_classes=0"
        ) from error


def _words(name: str) -> str:
    return WORDNET.get(name, name.replace("_", " "))


def _device() -> torch.device:
    """An accelerator where there is one: 80,000 prompts take hours on a CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return (
        torch.device("cpu")
        if accelerator is None
        else torch.device(accelerator.type, torch.accelerator.current_device_index())
    )


def _cache() -> Path:
    folder = Path(os.environ.get(CACHE, "~/.cache/mame_lab")).expanduser() / "text"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MameLabError(
            f"text features cannot be kept in {folder} ({error.strerror}): set {CACHE} to a folder"
        ) from error
    return folder


def _read(path: Path) -> Tensor | None:
    """What `_write` wrote, or None if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            text_KC = file.get_tensor("text_KC")
            whole = file.metadata()["sha256"] == hashlib.sha256(_bytes(text_KC)).hexdigest()
    except (SafetensorError, KeyError, TypeError):
        return None
    return text_KC if whole else None


def _write(text_KC: Tensor, path: Path) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    save_file({"text_KC": text_KC}, part, {"sha256": hashlib.sha256(_bytes(text_KC)).hexdigest()})
    part.replace(path)


def _bytes(x: Tensor) -> Any:
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
