"""How open_clip's image towers are made, with their weights and their heads."""

from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from torch import Tensor, nn

from mame_lab.errors import MameLabError, UnsupportedModelError
from mame_lab.models.open_clip.fetching import create, name_of, tag_of, tokenizer_of, weights_of
from mame_lab.models.open_clip.text import TextTower, read_templates
from mame_lab.models.settings import ModelSettings
from mame_lab.models.timm import Timm
from mame_lab.models.timm.support import check
from mame_lab.models.zero_shot import ZeroShotHead

# The least text tower, for a model whose text tower is not used.
NO_TEXT = {"width": 8, "heads": 1, "layers": 1, "vocab_size": 8, "context_length": 8}
# How open_clip calls ways to a square image, and how timm does.
CROP_MODES = {"squash": "squash", "shortest": "center", "longest": "border"}


class OpenClip(Timm):
    """See `Family`: that of timm, except for how a model gets its weights and its head."""

    name = "open_clip"

    def load(self, settings: ModelSettings) -> nn.Module:
        """The image tower that the settings describe, with its weights: a local file's, the published ones, or random.

        Its text tower waits beside it until `name_classes` is told the classes.

        Raises:
            MameLabError: an unknown name, weights or a tokenizer that cannot be fetched, or a file of another model.
            UnsupportedModelError: the image tower cannot be merged.
        """
        with torch.device("meta"):
            self.build(settings)  # What is refused is refused before anything is fetched.
        weights = weights_of(settings)
        if settings.num_classes == 0:
            return _tower(create(settings, weights), settings) if weights else self.build(settings)
        templates = read_templates(settings.templates)
        clip = create(settings, weights)
        tower: Any = _tower(clip, settings)
        tokenizer = tokenizer_of(settings)
        del clip.visual
        traits = f"open_clip {open_clip.__version__} {open_clip.get_model_config(name_of(settings))} {settings.args}"
        tower.text = TextTower(clip, tokenizer, templates, traits)  # No module: it is in no state dict.
        return tower

    def build(self, settings: ModelSettings) -> nn.Module:
        """The image tower that the settings describe, with random weights, and a head that has no classes yet."""
        if settings.num_classes not in (None, 0):
            raise MameLabError(
                f"model.num_classes={settings.num_classes} does not go with model.family=open_clip, whose head has the "
                f"classes of the dataset: leave it out, or give 0 to judge by k-NN"
            )
        return _tower(create(settings, None, text_cfg=NO_TEXT), settings)

    def load_weights(self, model: Any, state: dict[str, Tensor], origin: str, head_of_file: bool = True) -> None:
        """Load all tensors into the tower and its head, see the timm family; the classes are those of the file."""
        text_KC = state.get("head.text_KC")
        if head_of_file and text_KC is not None:
            model.head.text_KC = torch.empty_like(text_KC)
            model.num_classes = len(text_KC)
        super().load_weights(model, state, origin, head_of_file=head_of_file and "head.weight" in state)

    def name_classes(self, model: Any, classes: list[str]) -> None:
        """Write the zero-shot head from the names of the classes, and drop the text tower.

        A model that has its head already, from a checkpoint, keeps it.
        """
        text = vars(model).pop("text", None)
        if text is not None:
            model.head.text_KC = text.features(classes).to(model.head.scale)
            model.num_classes = len(classes)


def _tower(clip: Any, settings: ModelSettings) -> nn.Module:
    """The timm transformer in a CLIP, with its head and its way to prepare images."""
    visual = clip.visual
    if type(visual) is not TimmModel:
        raise UnsupportedModelError(
            f"mame_lab cannot merge tokens in {type(visual).__module__}.{type(visual).__qualname__}, the image tower "
            f"of model.name={settings.name}: choose a model whose image tower is timm's, such as a SigLIP or PE-Core, "
            f"or timm's own version of it, such as model=clip_b"
        )
    tower: Any = visual.trunk
    check(tower)
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
    published = open_clip.get_pretrained_cfg(name_of(settings), tag_of(settings) or "")
    cfg = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), published))
    how = {"mean": cfg.mean, "std": cfg.std, "interpolation": cfg.interpolation}
    return how | {"crop_pct": 1.0, "crop_mode": CROP_MODES[cfg.resize_mode]}
