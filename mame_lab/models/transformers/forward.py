"""What merging makes of a transformers model's forward pass, whichever its layers are.

B batch, N tokens, K tokens that remain after merging (in logits: classes), C channels.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils.generic import ModelOutput, can_return_tuple

from mame_lab.errors import MameLabError, UnsupportedModelError
from mame_lab.merging.state import MergeState
from mame_lab.models import merging_transformer
from mame_lab.models.merging_transformer import MergingTransformer
from mame_lab.models.parts import check_applied, check_hooks, containers, own_signature
from mame_lab.models.split_forward import BlockInput
from mame_lab.models.tracing import refuse_fx
from mame_lab.models.transformers.preprocessing import sides


class _OfTransformers(nn.Module):
    @classmethod
    def is_custom_code(cls) -> bool:
        """Whether transformers' names of tensors in files are not for this class. They are."""
        return False


class MergingBackbone(_OfTransformers, MergingTransformer):
    """A transformers backbone with merging.

    `forward` gives transformers' shapes: the tokens, hidden states too, are restored (MaRe) to the full sequence.

    Attributes:
        pooling: the part that pools its tokens, where the library's classifier calls it and makes nothing of it.
    """

    blocks_at: ClassVar[str] = "encoder.layer"
    pooling: ClassVar[str] = ""

    @abstractmethod
    def embed_pixels(self, pixel_values: Tensor, **options: Any) -> Tensor:
        """The tokens that enter the first layer. It takes the options that have a meaning for merged tokens."""

    @abstractmethod
    def output(self, x_BNC: Tensor, **others: Any) -> ModelOutput:
        """What the model returns for its tokens after the final norm."""

    def embed(self, x: Tensor, **options: Any) -> tuple[Tensor, Any]:
        check_attention(self)
        return self.embed_pixels(x, **{"output_attentions": self.config.output_attentions} | options), None

    def prefix(self) -> int:
        return prefix_of(self)

    def final_norm(self, x_BNC: Tensor) -> Tensor:
        return x_BNC if self.layernorm is None else self.layernorm(x_BNC)

    def call_block(self, block: nn.Module, *inputs: Any) -> tuple[Tensor, MergeState]:
        if self.training:
            _check_checkpointing(block)
        return block(*inputs)

    @own_signature
    def forward(self, pixel_values: Tensor, **options: Any) -> ModelOutput:
        refuse_fx(pixel_values)  # Before a decorator takes all arguments, as those of torch.fx cannot be.
        return self.restored(pixel_values, **options)

    @can_return_tuple
    def restored(self, pixel_values: Tensor, **options: Any) -> ModelOutput:
        """What the model returns."""
        x_BKC, state, hidden_states = self.encode_all(pixel_values, record=True, **options)
        return self.output(state.restore(x_BKC), hidden_states=hidden_states)

    def encode_all(
        self, pixel_values: Tensor, record: bool = False, **options: Any
    ) -> tuple[Tensor, MergeState, tuple[Tensor | None, ...] | None]:
        """What `encode` gives, and the hidden states.

        `output_hidden_states` (if it is not given, that of the configuration) asks for the tokens before the first
        layer and after each, restored: all, or those that it lists, None in the place of the others.
        """
        asked = options.pop("output_hidden_states", self.config.output_hidden_states)
        depth = len(self.merging_blocks())
        chosen = chosen_states(asked, depth + 1)
        x_BNC, state, positions = self.start(pixel_values, record or bool(asked), **options)
        hidden_states = [x_BNC if 0 in chosen else None]
        for index in range(depth):
            x_BNC, state = self.run(x_BNC, state, positions, index, index + 1)
            hidden_states.append(state.restore(state.unpack(x_BNC)) if index + 1 in chosen else None)
        return *self.normed(x_BNC, state), tuple(hidden_states) if asked else None


class MergingClassifier(_OfTransformers, merging_transformer.MergingClassifier):
    """A transformers classifier on a merging backbone: the logits come from the merged tokens."""

    def classify(self, x_BC: Tensor) -> Tensor:
        return self.classifier(x_BC)

    @own_signature
    def forward(
        self,
        pixel_values: Tensor | BlockInput,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **options: Any,
    ) -> ImageClassifierOutput:
        refuse_fx(pixel_values)
        check_applied(self)
        check_hooks(self, bypassed(self.transformer(), type(self.transformer())))
        if isinstance(pixel_values, BlockInput):
            return ImageClassifierOutput(logits=self.logits_from(pixel_values))
        return self._classified(pixel_values, labels, num_items_in_batch, **options)

    @can_return_tuple
    def _classified(
        self, pixel_values: Tensor, labels: Tensor | None, num_items_in_batch: Tensor | int | None, **options: Any
    ) -> ImageClassifierOutput:
        x_BKC, state, hidden_states = self.transformer().encode_all(pixel_values, **options)
        logits_BK = self.classify(self.feature(x_BKC, state))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits_BK, self.config, num_items_in_batch=num_items_in_batch)
        return ImageClassifierOutput(loss=loss, logits=logits_BK, hidden_states=hidden_states)


def bypassed(backbone: nn.Module, merging: type[Any]) -> list[nn.Module]:
    """The parts of a classifier that are not called while tokens merge in its backbone, which becomes `merging`."""
    pooling = getattr(backbone, merging.pooling, None)
    return [backbone, *containers(backbone, merging.blocks_at), *([] if pooling is None else pooling.modules())]


def prefix_of(backbone: Any) -> int:
    """Tokens at the front that never merge: class and registers."""
    return has_class_token(backbone) + getattr(backbone.config, "num_register_tokens", 0)


def grid_of(config: Any, x: Tensor) -> tuple[int, ...]:
    """Rows and columns of the patch tokens of images (B, 3, H, W); of videos (B, T, 3, H, W) time in front."""
    height, width = (side // patch for side, patch in zip(x.shape[-2:], sides(config.patch_size), strict=True))
    return (height, width) if x.ndim == 4 else (x.shape[1] // config.tubelet_size, height, width)


def has_class_token(backbone: Any) -> bool:
    return hasattr(backbone.embeddings, "cls_token") or hasattr(backbone.embeddings, "class_embedding")


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


def check_attention(backbone: Any) -> None:
    """Raise UnsupportedModelError where attention is not PyTorch's, which takes sizes and keys."""
    implementation = backbone.config._attn_implementation
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
