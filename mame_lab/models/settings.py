"""What the `model` group of the configuration says."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModelSettings:
    """A model and where its weights come from.

    Args:
        family: the file in `mame_lab/models` that loads and merges it.
        name: its name in the family's library (timm: architecture.tag; transformers: repository of the hub).
        pretrained: fetch the published weights; false: random ones from `seed`.
        weights: a local file of weights instead (safetensors, or a PyTorch file without pickled code); transformers:
            or a folder with config.json.
        num_classes: classes of the head. None: those of the weights.
        img_size: input size in pixels. None: the model's own.
        args: further arguments of the model's constructor; transformers: keys of its config.json.
    """

    family: str = "timm"
    name: str = "???"
    pretrained: bool = True
    weights: str | None = None
    num_classes: int | None = None
    img_size: int | None = None
    args: dict[str, Any] = field(default_factory=dict)
