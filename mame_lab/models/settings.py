"""What the `model` group of the configuration says."""

from dataclasses import dataclass, field
from typing import Any

from mame_lab.errors import MameLabError


@dataclass
class ModelSettings:
    """A model and where its weights come from.

    Args:
        family: the module in `mame_lab/models` that loads and merges it.
        name: its name in the family's library (timm: architecture.tag; open_clip: architecture:tag; transformers and
            diffusers: repository of the hub).
        pretrained: fetch the published weights; false: random ones from `seed`.
        weights: a local file of weights instead (safetensors, or a PyTorch file without pickled code), or a checkpoint
            of train.py (.ckpt), whose head comes with it; transformers: or a folder with config.json; diffusers: the
            folder of a pipeline.
        num_classes: classes of the head. None: those of the weights.
        img_size: input size in pixels. None: the model's own.
        args: further arguments of the model's constructor; transformers: keys of its config.json; diffusers: those of
            each part of a pipeline with random weights.
        templates: (open_clip) texts with {} for the name of a class: "imagenet" (CLIP's 80), "simple" (7), or a list.
        tokenizer: (open_clip) a local folder with the tokenizer. None: the model's own.
        threads: CPU threads that it runs on, unless OMP_NUM_THREADS is set. None: as many as PyTorch takes.
    """

    family: str = "timm"
    name: str = "???"
    pretrained: bool = True
    weights: str | None = None
    num_classes: int | None = None
    img_size: int | None = None
    args: dict[str, Any] = field(default_factory=dict)
    templates: Any = "imagenet"
    tokenizer: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        unread = {"templates": self.templates != "imagenet", "tokenizer": self.tokenizer is not None}
        for key in (key for key, given in unread.items() if given and self.family != "open_clip"):
            raise MameLabError(
                f"model.{key}={getattr(self, key)} is for model.family=open_clip, whose head is written from texts, "
                f"and this one is {self.family}: leave it out"
            )
        if self.threads is not None and self.threads < 1:
            raise MameLabError(f"model.threads={self.threads}: set it to 1 or more")

    @property
    def is_checkpoint(self) -> bool:
        """Whether the weights are those of a run of train.py."""
        return self.weights is not None and self.weights.lower().endswith(".ckpt")
