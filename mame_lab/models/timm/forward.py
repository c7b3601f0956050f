"""What merging makes of a timm transformer's forward pass, whichever its blocks are.

B batch, N tokens, K tokens that remain after merging, C channels.
"""

from abc import abstractmethod
from typing import Any

from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mame_lab.errors import MameLabError, UnsupportedModelError
from mame_lab.merging.state import MergeState
from mame_lab.models.merging_transformer import MergingClassifier, MergingTransformer
from mame_lab.models.parts import own_signature
from mame_lab.models.split_forward import BlockInput

POOLS = ("", "token", "avg", "map")


class MergingTimm(MergingClassifier, MergingTransformer):
    """A timm transformer with merging, which has its head itself.

    `forward` gives the logits from the merged tokens. `forward_features` and `forward_intermediates` give timm's
    shapes: the tokens are restored (MaRe) to the full grid. So `forward_head(forward_features(x))` equals `forward(x)`,
    for attention pooling as long as every source merges whole into one target.
    """

    blocks: nn.Sequential
    num_prefix_tokens: int
    global_pool: str
    grad_checkpointing: bool

    @abstractmethod
    def embed_images(self, x: Tensor) -> tuple[Tensor, Any]:
        """The tokens that enter the first block, and their rotary embedding, if it has one."""

    def embed(self, x: Tensor, **options: Any) -> tuple[Tensor, Any]:
        if options.get("attn_mask") is not None or options.get("is_causal"):
            raise MameLabError("attn_mask and is_causal have no meaning while tokens merge: call mame_lab.remove first")
        return self.embed_images(x)

    def prefix(self) -> int:
        return self.num_prefix_tokens

    def final_norm(self, x_BNC: Tensor) -> Tensor:
        return self.norm(x_BNC)

    def call_block(self, block: nn.Module, *inputs: Any) -> tuple[Tensor, MergeState]:
        if self.grad_checkpointing:
            return checkpoint(block, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return block(*inputs)

    def forward(self, x: Tensor | BlockInput, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if isinstance(x, BlockInput):
            return self.logits_from(x)
        record = self.global_pool == ""
        return self.classify(self.feature(*self.encode(x, record, attn_mask=attn_mask, is_causal=is_causal)))

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        x_BKC, state = self.encode(x, True, attn_mask=attn_mask, is_causal=is_causal)
        return state.restore(x_BKC)

    @own_signature
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
        x_BNC, state, positions = self.start(x, record=True, attn_mask=attn_mask, is_causal=is_causal)
        prefixes, patches = [], []
        for index in range(last + 1 if stop_early else len(self.blocks)):
            x_BNC, state = self.run(x_BNC, state, positions, index, index + 1)
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

    def feature(self, x_BKC: Tensor, state: MergeState) -> Tensor:
        return self.fc_norm(self._pool_merged(x_BKC, state))

    def classify(self, x_BC: Tensor) -> Tensor:
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
