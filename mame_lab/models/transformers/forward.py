"""What merging makes of a transformers model's forward pass, whichever its layers are.

B batch, N tokens, K tokens that remain after merging, C channels.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils.generic import ModelOutput, can_return_tuple

from mame_lab.errors import MameLabError, UnsupportedModelError
from mame_lab.merging.method import SequenceMethod
from mame_lab.merging.plan import MergePlan
from mame_lab.merging.schedule import Schedule
from mame_lab.merging.state import MergeState
from mame_lab.models.parts import check_applied, check_hooks
from mame_lab.models.split_forward import BlockInput
from mame_lab.models.tracing import Unscripted, refuse_fx

Class = type[Any]
Encoded = tuple[Tensor, MergeState, tuple[Tensor | None, ...] | None]


@dataclass(frozen=True)
class Architecture:
    """The classes of a transformers model.

    Attributes:
        classifier, backbone, layer: each with the class that takes its place while it merges.
        attentions: what computes attention in a layer.
        width: of what enters the head, in hidden sizes.
    """

    classifier: tuple[Class, Class]
    backbone: tuple[Class, Class]
    layer: tuple[Class, Class]
    attentions: tuple[Class, ...]
    width: int = 1

    @property
    def merging(self) -> dict[Class, Class]:
        """The class that takes the place of each of transformers'."""
        return dict((self.classifier, self.backbone, self.layer))

    @property
    def plain(self) -> dict[Class, Class]:
        """The way back."""
        return {merging: plain for plain, merging in self.merging.items()}


class Merging(Unscripted, nn.Module):
    """What a merging classifier and its backbone share."""

    method: SequenceMethod
    methods: list[SequenceMethod]
    schedule: Schedule

    @classmethod
    def is_custom_code(cls) -> bool:
        """Whether transformers' names of tensors in files are not for this class. They are."""
        return False


class MergingBackbone(Merging):
    """Merging as a way through the layers of a transformers model: the first base of a class, before the model.

    Its layers are called with (x_BNC, state, method, leave) and return the tokens and the state. `forward` gives
    transformers' shapes: the tokens, hidden states too, are restored (MaRe) to the full sequence.
    """

    config: PreTrainedConfig

    @abstractmethod
    def embed(self, pixel_values: Tensor, **options: Any) -> Tensor:
        """The tokens that enter the first layer."""

    @abstractmethod
    def output(self, x_BNC: Tensor, **others: Any) -> ModelOutput:
        """What the model returns for its tokens after the final norm."""

    def forward(self, pixel_values: Tensor, **options: Any) -> ModelOutput:
        refuse_fx(pixel_values)  # Before a decorator takes all arguments, as those of torch.fx cannot be.
        return self._features(pixel_values, **options)

    @can_return_tuple
    def _features(self, pixel_values: Tensor, **options: Any) -> ModelOutput:
        x_BKC, state, hidden_states = self.encode(pixel_values, record=True, **options)
        return self.output(state.restore(x_BKC), hidden_states=hidden_states)

    def encode(self, pixel_values: Tensor, record: bool = False, **options: Any) -> Encoded:
        """The merged tokens (B, K, C) after the final norm, the state that came with them, and the hidden states.

        Args:
            pixel_values: images (B, 3, H, W) or videos (B, T, 3, H, W).
            record: keep the plans in the state, so that `state.restore` brings the tokens back to the full sequence.
            options: what else transformers' forward takes; most has no meaning for merged tokens (MameLabError).
                `output_hidden_states` (if it is not given, that of the configuration) asks for the tokens before the
                first layer and after each, restored: all, or those that it lists, None in the place of the others.
        """
        asked = options.pop("output_hidden_states", self.config.output_hidden_states)
        chosen = chosen_states(asked, self.config.num_hidden_layers + 1)
        hidden_states = []
        for index, (x_BNC, state) in enumerate(self.run(pixel_values, record or bool(asked), options)):
            hidden_states.append(state.restore(state.unpack(x_BNC)) if index in chosen else None)
        return state.unpack(self.norm(x_BNC)), state, tuple(hidden_states) if asked else None

    def plans(self, pixel_values: Tensor) -> list[MergePlan | None]:
        """The merge step of each layer, None where it has none."""
        steps = [state.plans for _, state in self.run(pixel_values, True, {})]
        return [after[-1] if len(after) > len(before) else None for before, after in pairwise(steps)]

    def run(self, pixel_values: Tensor, record: bool, options: dict[str, Any]) -> Iterator[tuple[Tensor, MergeState]]:
        """The tokens and the state before the first layer and after each."""
        check_applied(self)
        check_hooks(self, around(self))
        check_attention(self)
        x_BNC = self.embed(pixel_values, **{"output_attentions": self.config.output_attentions} | options)
        yield from self.run_layers(x_BNC, MergeState(prefix_of(self), record, self.packs))

    @property
    def packs(self) -> bool:
        return self.method.packed and not any(module.training for module in self.modules())

    def run_layers(self, x_BNC: Tensor, state: MergeState, first: int = 0) -> Iterator[tuple[Tensor, MergeState]]:
        """The tokens and the state before the layer `first` and after it and each that follows."""
        yield x_BNC, state
        for index, layer in list(enumerate(self.get_submodule(layers_of(self)).children()))[first:]:
            if self.training:
                _check_checkpointing(layer)
            r = self.schedule.removed(index, x_BNC.shape[1] - state.prefix)
            x_BNC, state = layer(x_BNC, state, self.methods[index], r)
            yield x_BNC, state

    def norm(self, x_BNC: Tensor) -> Tensor:
        return x_BNC if self.layernorm is None else self.layernorm(x_BNC)


class MergingClassifier(Merging):
    """A classifier on a merging backbone: the logits come from the merged tokens."""

    @abstractmethod
    def pool(self, x_BKC: Tensor, state: MergeState) -> Tensor:
        """What enters the head, from the tokens after the final norm."""

    def forward(
        self,
        pixel_values: Tensor | BlockInput,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **options: Any,
    ) -> ImageClassifierOutput:
        refuse_fx(pixel_values)
        check_applied(self)
        check_hooks(self, around(self))
        if isinstance(pixel_values, BlockInput):
            return ImageClassifierOutput(logits=self._go_on(pixel_values))
        return self._classify(pixel_values, labels, num_items_in_batch, **options)

    @can_return_tuple
    def _classify(
        self, pixel_values: Tensor, labels: Tensor | None, num_items_in_batch: Tensor | int | None, **options: Any
    ) -> ImageClassifierOutput:
        x_BKC, state, hidden_states = self.base_model.encode(pixel_values, **options)
        logits_BK = self.classifier(self.pool(x_BKC, state))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits_BK, self.config, num_items_in_batch=num_items_in_batch)
        return ImageClassifierOutput(loss=loss, logits=logits_BK, hidden_states=hidden_states)

    def feature_and_patches(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """See `mame_lab.models.transformers.feature_and_patches`."""
        x_BKC, state, _ = self.base_model.encode(pixel_values, record=True)
        return self.pool(x_BKC, state), state.restore(x_BKC)[:, state.prefix :]

    def block_input(self, pixel_values: Tensor, stage: int) -> BlockInput:
        """What enters a stage (see `stages`); `forward` takes it in the place of pixel values."""
        for index, (x_BNC, state) in enumerate(self.base_model.run(pixel_values, False, {})):
            if index == stage:
                return BlockInput(stage, state.unpack(x_BNC), state.size_BN1, state.origin_BN, state.valid_BN)
        return BlockInput(stage, self._feature(x_BNC, state)[:, None])

    def _go_on(self, block_input: BlockInput) -> Tensor:
        backbone: Any = self.base_model
        if block_input.stage > len(backbone.get_submodule(layers_of(backbone))):
            return self.classifier(block_input.x_BNC[:, 0])
        state = block_input.state(prefix_of(backbone), backbone.packs, self.method)
        *_, (x_BNC, state) = backbone.run_layers(block_input.x_BNC, state, block_input.stage)
        return self.classifier(self._feature(x_BNC, state))

    def _feature(self, x_BNC: Tensor, state: MergeState) -> Tensor:
        """What enters the head, from the tokens after the last layer."""
        backbone: Any = self.base_model
        return self.pool(state.unpack(backbone.norm(x_BNC)), state)


def layers_of(backbone: Any) -> str:
    """The name of the list of its layers."""
    return "layers" if hasattr(backbone, "layers") else "encoder.layer"


def around(model: Any) -> list[nn.Module]:
    """The parts of a model that its layers are called without: its backbone, and the encoder in it."""
    backbone = model.base_model
    encoder, _, _ = layers_of(backbone).rpartition(".")
    return [part for part in (backbone, backbone.get_submodule(encoder)) if part is not model]


def prefix_of(backbone: Any) -> int:
    """Tokens at the front that never merge: class and registers."""
    return int(hasattr(backbone.embeddings, "cls_token")) + getattr(backbone.config, "num_register_tokens", 0)


def chosen_states(asked: bool | int | Iterable[int] | None, states: int) -> set[int]:
    """Which of so many hidden states `output_hidden_states` asks for; an index out of range chooses none."""
    if asked is None or isinstance(asked, bool):
        return set(range(states)) if asked else set()
    indices = [asked] if isinstance(asked, int) else asked
    return {index % states for index in indices if -states <= index < states}


def refuse(options: dict[str, Any]) -> None:
    """Raise MameLabError for the first option of transformers' forward that is set."""
    for name, value in options.items():
        if value is not None and value is not False:
            raise MameLabError(f"{name} has no meaning while tokens merge: call mame_lab.remove first")


def check_attention(model: Any) -> None:
    """Raise UnsupportedModelError where attention is not PyTorch's, which takes sizes and keys."""
    implementation = model.config._attn_implementation
    if implementation != "sdpa":
        raise UnsupportedModelError(
            f"mame_lab merges tokens in transformers' models with attention sdpa, and here it is {implementation}: "
            f"call model.set_attn_implementation('sdpa')"
        )


def _check_checkpointing(layer: Any) -> None:
    """Raise MameLabError where it would lose the gradients of the state: reentrant checkpoints see tensors alone."""
    options = getattr(layer._gradient_checkpointing_func, "keywords", {}) if layer.gradient_checkpointing else {}
    if options.get("use_reentrant"):
        raise MameLabError(
            "use_reentrant=True loses gradients while tokens merge: call model.activation_checkpointing_enable() "
            "without it"
        )
