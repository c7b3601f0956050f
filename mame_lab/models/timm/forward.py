"""What merging makes of a timm transformer's forward pass, whichever its blocks are.

B batch, N tokens, K tokens that remain after merging, C channels, D depth.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from timm.models._features import feature_take_indices
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mame_lab.errors import MameLabError, UnsupportedModelError
from mame_lab.merging.method import SequenceMethod
from mame_lab.merging.plan import MergePlan
from mame_lab.merging.schedule import Schedule
from mame_lab.merging.state import MergeState
from mame_lab.models.parts import check_applied, check_hooks
from mame_lab.models.split_forward import BlockInput
from mame_lab.models.tracing import Unscripted, refuse_fx

POOLS = ("", "token", "avg", "map")
TimmTransformer = VisionTransformer | Eva


@dataclass(frozen=True)
class Architecture:
    """The classes of a timm transformer, and those that take their place while it merges.

    Attributes:
        plain, merging: the transformer.
        block, merging_block: its blocks.
        attentions: the classes of attention that its blocks may have.
    """

    plain: type[nn.Module]
    merging: type[nn.Module]
    block: type[nn.Module]
    merging_block: type[nn.Module]
    attentions: tuple[type[nn.Module], ...]


class MergingTransformer(Unscripted, nn.Module):
    """Merging as a way through the blocks of a timm transformer: the first base of a class, before the transformer.

    Its blocks are called with (x_BNC, state, method, leave, *block_inputs) and return the tokens and the state.
    `forward` gives the logits from the merged tokens. `forward_features` and `forward_intermediates` give timm's
    shapes: the tokens are restored (MaRe) to the full grid. So `forward_head(forward_features(x))` equals `forward(x)`,
    for attention pooling as long as every source goes whole to one target.
    """

    method: SequenceMethod
    methods: list[SequenceMethod]
    schedule: Schedule
    blocks: nn.Sequential
    num_prefix_tokens: int
    global_pool: str
    grad_checkpointing: bool

    @abstractmethod
    def embed(self, x: Tensor) -> tuple[Tensor, Any]:
        """The tokens that enter the first block, and what `block_inputs` needs."""

    def block_inputs(self, index: int, state: MergeState, embedding: Any) -> tuple:
        """What a block is called with besides tokens and merging."""
        return ()

    def positions(self) -> Any:
        """What `embed` gives beside the tokens, for images of the model's own size."""

    def forward(self, x: Tensor | BlockInput, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if isinstance(x, BlockInput):
            return self._go_on(x)
        return self._classify(
            self._pool(*self._run_blocks(*self._start(x, attn_mask, is_causal, self.global_pool == "")))
        )

    def block_input(self, x: Tensor, stage: int) -> BlockInput:
        """What enters a stage (see `stages`) of images (B, 3, H, W); `forward` takes it in their place."""
        x_BNC, state = self._run_blocks(*self._start(x, None, False, record=False), last=stage)
        if stage > len(self.blocks):
            return BlockInput(stage, self._pool(x_BNC, state)[:, None])
        return BlockInput(stage, state.unpack(x_BNC), state.size_BN1, state.origin_BN, state.valid_BN)

    def _go_on(self, block_input: BlockInput) -> Tensor:
        if block_input.stage > len(self.blocks):
            return self._classify(block_input.x_BNC[:, 0])
        state = block_input.state(self.num_prefix_tokens, self._packs, self.method)
        return self._classify(
            self._pool(*self._run_blocks(block_input.x_BNC, state, self.positions(), first=block_input.stage))
        )

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        x_BKC, state = self.encode(x, attn_mask, is_causal, record=True)
        return state.restore(x_BKC)

    def encode(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, record: bool = False
    ) -> tuple[Tensor, MergeState]:
        """The merged tokens (B, K, C) after the final norm, and the state that came with them.

        Args:
            x: images (B, 3, H, W).
            attn_mask, is_causal: of timm's signature; they have no meaning for merged tokens (MameLabError).
            record: keep the plans in the state, so that `state.restore` brings the tokens back to the full grid.
        """
        x_BNC, state = self._run_blocks(*self._start(x, attn_mask, is_causal, record))
        return state.unpack(self.norm(x_BNC)), state

    def feature_and_patches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `mame_lab.models.timm.feature_and_patches`."""
        x_BKC, state = self.encode(x, record=True)
        return self.fc_norm(self._pool_merged(x_BKC, state)), state.restore(x_BKC)[:, state.prefix :]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ):
        """timm's `forward_intermediates`: the tokens after the chosen blocks, restored to the full grid."""
        if output_fmt not in ("NCHW", "NLC"):
            raise MameLabError(f"output_fmt={output_fmt} is not known: choose NCHW or NLC")
        chosen, last = feature_take_indices(len(self.blocks), indices)
        grid = self.patch_embed.dynamic_feat_size(x.shape[-2:])
        x_BNC, state, embedding = self._start(x, attn_mask, is_causal, record=True)
        prefixes, patches = [], []
        for index in range(last + 1 if stop_early else len(self.blocks)):
            x_BNC, state = self._run_block(index, x_BNC, state, embedding)
            if index in chosen:
                restored_BNC = state.restore(state.unpack(self.norm(x_BNC) if norm else x_BNC))
                prefixes.append(restored_BNC[:, : self.num_prefix_tokens])
                patches.append(restored_BNC[:, self.num_prefix_tokens :])
        if output_fmt == "NCHW":
            patches = [y_BNC.mT.unflatten(2, grid).contiguous() for y_BNC in patches]
        with_prefix = return_prefix_tokens and self.num_prefix_tokens > 0
        features_BNC = None if intermediates_only else state.restore(state.unpack(self.norm(x_BNC)))
        if output_dict:
            result = {"image_intermediates": patches}
            if with_prefix:
                result["image_intermediates_prefix"] = prefixes
            return result if intermediates_only else result | {"image_features": features_BNC}
        intermediates = list(zip(patches, prefixes, strict=True)) if with_prefix else patches
        return intermediates if intermediates_only else (features_BNC, intermediates)

    def plans(self, x: Tensor) -> list[MergePlan | None]:
        """The merge step of each block, None where it has none."""
        x_BNC, state, embedding = self._start(x, None, False, record=True)
        plans = []
        for index in range(len(self.blocks)):
            before = len(state.plans)
            x_BNC, state = self._run_block(index, x_BNC, state, embedding)
            plans.append(state.plans[-1] if len(state.plans) > before else None)
        return plans

    def _start(
        self, x: Tensor, attn_mask: Tensor | None, is_causal: bool, record: bool
    ) -> tuple[Tensor, MergeState, Any]:
        refuse_fx(x)
        check_applied(self)
        check_hooks(self, [self.blocks])
        if attn_mask is not None or is_causal:
            raise MameLabError("attn_mask and is_causal have no meaning while tokens merge: call mame_lab.remove first")
        x_BNC, embedding = self.embed(x)
        return x_BNC, MergeState(self.num_prefix_tokens, record, self._packs), embedding

    @property
    def _packs(self) -> bool:
        return self.method.packed and not any(module.training for module in self.modules())

    def _run_blocks(
        self, x_BNC: Tensor, state: MergeState, embedding: Any, first: int = 0, last: int | None = None
    ) -> tuple[Tensor, MergeState]:
        """The tokens and the state after the blocks from `first` to `last`, not included."""
        for index in range(len(self.blocks))[first:last]:
            x_BNC, state = self._run_block(index, x_BNC, state, embedding)
        return x_BNC, state

    def _run_block(self, index: int, x_BNC: Tensor, state: MergeState, embedding: Any) -> tuple[Tensor, MergeState]:
        r = self.schedule.removed(index, x_BNC.shape[1] - self.num_prefix_tokens)
        inputs = x_BNC, state, self.methods[index], r, *self.block_inputs(index, state, embedding)
        if self.grad_checkpointing:
            return checkpoint(self.blocks[index], *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return self.blocks[index](*inputs)

    def _pool(self, x_BKC: Tensor, state: MergeState) -> Tensor:
        """The feature (B, C) that enters the head, from the tokens after the last block."""
        return self.fc_norm(self._pool_merged(state.unpack(self.norm(x_BKC)), state))

    def _classify(self, x_BC: Tensor) -> Tensor:
        return self.head(self.head_drop(x_BC))

    def _pool_merged(self, x_BKC: Tensor, state: MergeState) -> Tensor:
        skip = 0 if getattr(self, "pool_include_prefix", False) else self.num_prefix_tokens
        if self.attn_pool is not None:
            bias = None if state.bias_B11N is None else state.bias_B11N[..., skip:]
            return self.attn_pool(x_BKC[:, skip:], attn_mask=bias)
        if self.global_pool == "avg":
            return state.mean(x_BKC, skip)
        if self.global_pool not in POOLS:
            raise UnsupportedModelError(
                f"the model pools by '{self.global_pool}', which merged tokens cannot: {POOLS} can"
            )
        return x_BKC[:, 0] if self.global_pool == "token" else state.restore(x_BKC)
