"""How open_clip's image towers are made, and which weights they get: a local file's, the published ones, or random."""

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from torch import Tensor, nn

from mame_lab.errors import MameLabError, UnsupportedModelError
from mame_lab.hub import in_one_line, no_retries_offline
from mame_lab.models import timm
from mame_lab.models.open_clip.text import TextTower, read_templates, read_tokenizer
from mame_lab.models.settings import ModelSettings
from mame_lab.models.timm.forward import TimmTransformer
from mame_lab.models.timm.support import architecture_of
from mame_lab.models.zero_shot import ZeroShotHead

# The least text tower, for a model whose text tower is not used.
NO_TEXT = {"width": 8, "heads": 1, "layers": 1, "vocab_size": 8, "context_length": 8}
# How open_clip calls ways to a square image, and how timm does.
CROP_MODES = {"squash": "squash", "shortest": "center", "longest": "border"}


def load(settings: ModelSettings) -> TimmTransformer:
    """The image tower that the settings describe, with its weights: a local file's, the published ones, or random.

    Its text tower waits beside it until `name_classes` is told the classes.

    Raises:
        MameLabError: an unknown name, weights or a tokenizer that cannot be fetched, or a file of another model.
        UnsupportedModelError: the image tower cannot be merged.
    """
    with torch.device("meta"):
        build(settings)  # What is refused is refused before anything is fetched.
    weights = _weights(settings)
    if settings.num_classes == 0:
        return _tower(_create(settings, weights), settings) if weights else build(settings)
    templates = read_templates(settings.templates)
    clip = _create(settings, weights)
    tower: Any = _tower(clip, settings)
    tokenizer = read_tokenizer(settings, _name(settings))
    del clip.visual
    traits = f"open_clip {open_clip.__version__} {open_clip.get_model_config(_name(settings))} {settings.args}"
    tower.text = TextTower(clip, tokenizer, templates, traits)  # No module: it is in no state dict.
    return tower


def build(settings: ModelSettings) -> TimmTransformer:
    """The image tower that the settings describe, with random weights, and a head that has no classes yet."""
    if settings.num_classes not in (None, 0):
        raise MameLabError(
            f"model.num_classes={settings.num_classes} does not go with model.family=open_clip, whose head has the "
            f"classes of the dataset: leave it out, or give 0 to judge by k-NN"
        )
    return _tower(_create(settings, None, text_cfg=NO_TEXT), settings)


def load_weights(model: Any, state: dict[str, Tensor], origin: str, head_of_file: bool = True) -> None:
    """Load all tensors into the tower and its head, see the timm family; the classes are those of the file."""
    text_KC = state.get("head.text_KC")
    if head_of_file and text_KC is not None:
        model.head.text_KC = torch.empty_like(text_KC)
        model.num_classes = len(text_KC)
    timm.load_weights(model, state, origin, head_of_file=False)


def _tower(clip: Any, settings: ModelSettings) -> TimmTransformer:
    """The timm transformer in a CLIP, with its head and its way to prepare images."""
    visual = clip.visual
    if type(visual) is not TimmModel:
        raise UnsupportedModelError(
            f"mame_lab cannot merge tokens in {type(visual).__module__}.{type(visual).__qualname__}, the image tower "
            f"of model.name={settings.name}: choose a model whose image tower is timm's, such as a SigLIP or PE-Core, "
            f"or timm's own version of it, such as model=clip_b"
        )
    tower: Any = visual.trunk
    architecture_of(tower)
    projection = nn.Sequential(*(part for part in (tower.head, *visual.head) if not isinstance(part, nn.Identity)))
    bias = torch.zeros_like(clip.logit_scale) if clip.logit_bias is None else clip.logit_bias
    tower.head = ZeroShotHead(projection, clip.logit_scale.detach().exp(), bias.detach().clone())
    tower.num_classes = 0
    if settings.num_classes == 0:
        tower.head = nn.Identity()
    tower.pretrained_cfg = tower.pretrained_cfg | _preparation(settings)
    return tower


def _preparation(settings: ModelSettings) -> dict[str, Any]:
    """How images are prepared, in timm's keys."""
    published = open_clip.get_pretrained_cfg(_name(settings), _tag(settings) or "")
    cfg = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), published))
    how = {"mean": cfg.mean, "std": cfg.std, "interpolation": cfg.interpolation}
    return how | {"crop_pct": 1.0, "crop_mode": CROP_MODES[cfg.resize_mode]}


def _name(settings: ModelSettings) -> str:
    """The architecture, without the tag of its weights."""
    name = settings.name.partition(":")[0]
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), n=4)
        raise MameLabError(f"model.name={name} is not an open_clip model; near matches: {', '.join(near) or 'none'}")
    return name


def _tag(settings: ModelSettings) -> str | None:
    """The tag of the published weights, which may be left out where there is but one; None where there is none."""
    name, _, tag = settings.name.partition(":")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags and (tag or len(tags) > 1):
        choices = ", ".join(f"{name}:{each}" for each in tags) or name
        raise MameLabError(f"model.name={settings.name} does not say which weights: choose from {choices}")
    return tag or next(iter(tags), None)


def _weights(settings: ModelSettings) -> str | None:
    """A local file, the tag of published weights, or None for random ones."""
    if settings.weights is not None:
        if not Path(settings.weights).is_file():
            raise MameLabError(
                f"model.weights={settings.weights} does not exist: give a .safetensors, .bin or .pt file"
            )
        return settings.weights
    if settings.pretrained and _tag(settings) is None:
        raise MameLabError(
            f"model.name={settings.name} has no published weights: give a local file with model.weights=FILE, or take "
            f"random ones with model.pretrained=false"
        )
    return _tag(settings) if settings.pretrained else None


def _create(settings: ModelSettings, weights: str | None, **options: Any) -> Any:
    """An open_clip model, image and text tower."""
    name = _name(settings)
    size = {} if settings.img_size is None else {"force_image_size": settings.img_size}
    options = size | settings.args | options
    fetch = weights is not None and settings.weights is None
    try:
        with _quiet(), no_retries_offline() if fetch else nullcontext():
            return open_clip.create_model(name, weights, device=torch.get_default_device(), **options)
    except Exception as error:
        told = in_one_line(error)
        if fetch:
            raise MameLabError(
                f"the pretrained weights of model.name={settings.name} cannot be fetched ({told}): give a local "
                f"file of open_clip with model.weights=FILE, or take random weights with model.pretrained=false"
            ) from error
        if weights is not None:
            raise MameLabError(
                f"model.weights={weights} is not loaded into model.name={settings.name}, give open_clip's file of both "
                f"towers: {told}"
            ) from error
        raise MameLabError(f"model.name={settings.name} rejects {options}: {told}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without open_clip's log, which repeats what an error or eval.py says."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
