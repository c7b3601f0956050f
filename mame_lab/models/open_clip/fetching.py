"""What open_clip gives by a name: a model, its weights, its tokenizer; and what to do where it cannot be had."""

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer

from mame_lab.errors import MameLabError
from mame_lab.models import tensor_file
from mame_lab.models.hub import in_one_line, no_retries_offline
from mame_lab.models.open_clip.text import Tokenizer
from mame_lab.models.settings import ModelSettings


def name_of(settings: ModelSettings) -> str:
    """The architecture, without the tag of its weights."""
    name = settings.name.partition(":")[0]
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), n=4)
        raise MameLabError(f"model.name={name} is not an open_clip model; near matches: {', '.join(near) or 'none'}")
    return name


def tag_of(settings: ModelSettings) -> str | None:
    """The tag of the published weights, which may be left out where there is but one; None where there is none."""
    name, _, tag = settings.name.partition(":")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags and (tag or len(tags) > 1):
        choices = ", ".join(f"{name}:{each}" for each in tags) or name
        raise MameLabError(f"model.name={settings.name} does not say which weights: choose from {choices}")
    return tag or next(iter(tags), None)


def weights_of(settings: ModelSettings) -> str | None:
    """A local file, the tag of published weights, or None for random ones."""
    if settings.weights is not None:
        if not Path(settings.weights).is_file():
            raise MameLabError(
                f"model.weights={settings.weights} does not exist: give a .safetensors, .bin or .pt file"
            )
        tensor_file.check(settings.weights, "model.weights")
        if tensor_file.is_safetensors(settings.weights) and not settings.weights.endswith(".safetensors"):
            raise MameLabError(f"model.weights={settings.weights} is a safetensors file: let its name end so")
        return settings.weights
    if settings.pretrained and tag_of(settings) is None:
        raise MameLabError(
            f"model.name={settings.name} has no published weights: give a local file with model.weights=FILE, or take "
            f"random ones with model.pretrained=false"
        )
    return tag_of(settings) if settings.pretrained else None


def create(settings: ModelSettings, weights: str | None, **options: Any) -> Any:
    """An open_clip model, image and text tower."""
    name = name_of(settings)
    size = {} if settings.img_size is None else {"force_image_size": settings.img_size}
    options = size | settings.args | options
    fetch = weights is not None and settings.weights is None
    try:
        with _quiet(), tensor_file.plain_objects(), no_retries_offline() if fetch else nullcontext():
            where = torch.get_default_device()
            return open_clip.create_model(name, weights, device=where, pretrained_text=False, **options)
    except Exception as error:
        told = in_one_line(error)
        if fetch:
            raise MameLabError(
                f"the pretrained weights of model.name={settings.name} cannot be fetched ({told}): give a local "
                f"file of open_clip with model.weights=FILE, or take random weights with model.pretrained=false"
            ) from error
        if weights is not None:
            raise MameLabError(
                f"model.weights={weights} does not fit model.name={settings.name}, which takes open_clip's file of "
                f"both towers: {told}"
            ) from error
        raise MameLabError(f"model.name={settings.name} rejects {options}: {told}") from error


def tokenizer_of(settings: ModelSettings) -> Tokenizer:
    """The tokenizer in a local folder, or the model's own: CLIP's is packaged in open_clip, others are fetched."""
    config: Any = open_clip.get_model_config(name_of(settings))
    text, folder = config["text_cfg"], settings.tokenizer
    own = text.get("hf_tokenizer_name")
    try:
        with _quiet(), no_retries_offline() if own and folder is None else nullcontext():
            if folder is None:
                return open_clip.get_tokenizer(name_of(settings))
            length, options = text.get("context_length", DEFAULT_CONTEXT_LENGTH), text.get("tokenizer_kwargs", {})
            return HFTokenizer(str(Path(folder).resolve(strict=True)), length, **options)
    except Exception as error:
        missing = f"{own} of model.name={settings.name}" if folder is None else f"model.tokenizer={folder}"
        raise MameLabError(
            f"the tokenizer {missing} cannot be loaded ({in_one_line(error)}): give a local folder that holds it with "
            f"model.tokenizer=FOLDER, or judge by k-NN, without text, with model.num_classes=0"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without open_clip's log, which repeats what errors and eval.py say."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
