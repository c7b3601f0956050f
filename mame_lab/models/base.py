"""What a library has to say of its models, so that their tokens can be merged.

B batch, D depth, T frames, N patch tokens, C channels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from mame_lab.merging.method import Method, SequenceMethod, sequence_method
from mame_lab.merging.plan import MergePlan
from mame_lab.merging.schedule import Schedule
from mame_lab.merging.ward import Ward
from mame_lab.models.copies import shared_copy
from mame_lab.models.merging_transformer import MergingClassifier, MergingTransformer
from mame_lab.models.parts import become, check_forwards, path_of
from mame_lab.models.settings import ModelSettings


class Library(Protocol):
    """What the library of any model that can be merged has: those of `Family`, and diffusers with its U-Nets."""

    def load(self, settings: ModelSettings) -> Any: ...

    def attach(self, model: Any, method: Method) -> None: ...

    def detach(self, model: Any) -> None: ...


@dataclass(frozen=True)
class Architecture:
    """The classes of a transformer. Of a pair the second is the class that takes its place while it merges.

    Attributes:
        transformer: what holds the blocks.
        block: each of its blocks.
        attentions: the classes of attention that a block may have.
        classifier: what has a head and a transformer within; None: the transformer itself has the head.
    """

    transformer: tuple[type[Any], type[MergingTransformer]]
    block: tuple[type[nn.Module], type[nn.Module]]
    attentions: tuple[type[nn.Module], ...]
    classifier: tuple[type[Any], type[Any]] | None = None

    @property
    def models(self) -> tuple[type[nn.Module], ...]:
        """The classes of the models that merging can be applied to."""
        return (*self.transformer, *(self.classifier or ()))

    @property
    def merging(self) -> dict[type[nn.Module], type[nn.Module]]:
        """The class that takes the place of each of the library's."""
        return dict(pair for pair in (self.transformer, self.block, self.classifier) if pair is not None)

    @property
    def plain(self) -> dict[type[nn.Module], type[nn.Module]]:
        """The way back."""
        return {merging: plain for plain, merging in self.merging.items()}


class Family(ABC):
    """A library of vision transformers.

    Attributes:
        name: of the library, as `model.family` has it.
    """

    name: ClassVar[str]

    @abstractmethod
    def load(self, settings: ModelSettings) -> nn.Module:
        """The model that the settings describe, with its weights: a local file's, the published ones, or random.

        Raises:
            MameLabError: an unknown name, weights that cannot be fetched or read, or a file of another model.
        """

    @abstractmethod
    def build(self, settings: ModelSettings) -> nn.Module:
        """The same with random weights."""

    @abstractmethod
    def load_weights(self, model: nn.Module, state: dict[str, Tensor], origin: str, head_of_file: bool = True) -> None:
        """Load all tensors into the model.

        Args:
            model: its architecture must be that of the weights.
            state: the tensors by name.
            origin: the key and value of the configuration that they come from, for error messages.
            head_of_file: give the model a head with the classes of the file (none where it has none).
        """

    @abstractmethod
    def match_classes(self, model: nn.Module, classes: int) -> bool:
        """Give the model a fresh head where it has not the classes of the data. Returns whether it did."""

    def name_classes(self, model: nn.Module, classes: list[str]) -> None:  # noqa: B027
        """Tell the model what the classes are called: nothing to a head of numbers."""

    @abstractmethod
    def data_config(self, model: nn.Module) -> dict[str, Any]:
        """What the model expects of its inputs: size (H, W), mean, std, interpolation, crop_pct, crop_mode; frames."""

    @abstractmethod
    def architecture(self, model: nn.Module) -> Architecture:
        """The classes of the model, by its own class; UnsupportedModelError for one that is not known."""

    @abstractmethod
    def check(self, model: nn.Module) -> None:
        """Raise UnsupportedModelError for a model that would be merged wrongly or not at all."""

    def untrained(self, model: nn.Module) -> tuple[str, ...]:
        """How names of parameters begin that no logits depend on."""
        return ()

    @abstractmethod
    def classifier(self, model: nn.Module) -> nn.Module:
        """The module that features enter and logits leave; an identity where the model has no head."""

    @abstractmethod
    def fused_attention(self, model: nn.Module) -> bool:
        """Whether attention is PyTorch's scaled_dot_product_attention."""

    @abstractmethod
    def has_class_token(self, model: nn.Module) -> bool: ...

    @abstractmethod
    def prefix(self, model: nn.Module) -> int:
        """Tokens at the front that never merge: class and registers."""

    @abstractmethod
    def patches(self, model: nn.Module) -> int | None:
        """Patch tokens of inputs of the model's own size; None where it has none."""

    @abstractmethod
    def grid(self, model: nn.Module, x: Tensor) -> tuple[int, ...]:
        """Rows and columns of the patch tokens of images (B, 3, H, W); of videos (B, T, 3, H, W) time in front."""

    def transformer(self, model: nn.Module) -> nn.Module:
        """The part of a model that holds its blocks: the model itself, or what is within a classifier."""
        classes = self.architecture(model).transformer
        return next(module for module in model.modules() if type(module) in classes)

    def block_names(self, model: nn.Module) -> list[str]:
        """The names of the blocks, in order."""
        blocks = self.transformer(model).get_submodule(self.architecture(model).transformer[1].blocks_at)
        return [f"{path_of(blocks, model)}.{index}" for index in range(len(cast(nn.ModuleList, blocks)))]

    def attach(self, model: nn.Module, method: Method) -> None:
        """Give the model its way through merging, replacing an earlier one; a method that is off leaves it plain.

        Raises:
            UnsupportedModelError: the model is not exactly one of those that are known; it is left as it was.
            MameLabError: the schedule does not fit the model; it is left as it was.
        """
        self.check(model)
        method = sequence_method(method, type(model).__name__, class_token=self.has_class_token(model))
        schedule = method.schedule_for(len(self.block_names(model)))
        if patches := self.patches(model):
            schedule.walk(patches, warn=True)
        self.detach(model)
        if not schedule.off:
            self._enter(model, method, schedule)

    def detach(self, model: nn.Module) -> None:
        """Give back the library's own classes, whose parameters never changed, whatever else was changed since."""
        transformer = next((module for module in model.modules() if isinstance(module, MergingTransformer)), None)
        if transformer is not None:
            _change(model, self.architecture(model).plain)
            for part in (model, transformer):
                for key in ("method", "methods", "schedule"):
                    vars(part).pop(key, None)

    def _enter(self, model: nn.Module, method: SequenceMethod, schedule: Schedule) -> None:
        _change(model, self.architecture(model).merging)
        depth = len(schedule.amounts)
        methods = [method.for_block(block, depth) for block in range(depth)]
        for part in (model, self.transformer(model)):
            vars(part).update(method=method, methods=methods, schedule=schedule)

    def splittable_copy(self, model: nn.Module) -> MergingClassifier:
        """A copy that shares all parameters and buffers, merges as the model does, and can stop and go on at a stage.

        Its `block_input` gives what enters the stage, and it takes that as input; see `mame_lab.models.split_forward`.
        """
        split_model = shared_copy(model)
        if not isinstance(split_model, MergingClassifier):
            self._enter(split_model, Ward(r=0), Schedule((0,) * len(self.block_names(split_model))))
        return cast(MergingClassifier, split_model)

    def feature_and_patches(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """What enters the head (B, C), and the patch tokens (B, N, C) after the final norm on the full grid.

        Of a merged model the feature is that of its merged tokens, and the patch tokens are restored (MaRe).
        """
        merging = model if isinstance(model, MergingClassifier) else self.splittable_copy(model)
        return merging.feature_and_patches(x)

    def plans(self, model: nn.Module, x: Tensor) -> list[MergePlan | None]:
        """The merge step of each block, None where it has none."""
        transformer = self.transformer(model)
        if isinstance(transformer, MergingTransformer):
            return transformer.plans(x)
        return [None] * len(self.block_names(model))

    def trace(self, model: nn.Module, x: Tensor) -> list[Tensor]:
        """Tokens of every sample after each block, prefix counted, padding not: D integer tensors of shape (B,)."""
        counts = [torch.full((len(x),), math.prod(self.grid(model, x)) + self.prefix(model), device=x.device)]
        for plan in self.plans(model, x):
            counts.append(counts[-1] if plan is None else plan.tokens())
        return counts[1:]


def _change(model: nn.Module, classes: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    parts = [module for module in model.modules() if type(module) in classes]
    check_forwards(model, parts)
    for part in parts:
        vars(part).pop("halves", None)
        become(part, classes[type(part)])
