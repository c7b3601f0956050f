"""Vision transformers whose blocks run on merged tokens, whichever their library.

Each class is the first base of a class whose last base is the library's own, and keeps its parameters and their names.
What a library has to say stands in the abstract methods.

B batch, N tokens, K tokens that remain after merging (in logits: classes), C channels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from mame_lab.merging.method import LOOKS, SequenceMethod
from mame_lab.merging.plan import MergePlan
from mame_lab.merging.schedule import Schedule
from mame_lab.merging.state import MergeState
from mame_lab.models.parts import check_applied, check_hooks, containers, own_signature
from mame_lab.models.split_forward import BlockInput
from mame_lab.models.tracing import Unscripted, refuse_fx


class MergingBlock(Unscripted, nn.Module):
    """A block with one merge step between attention and MLP.

    Attributes:
        takes_mask: whether its attention takes a mask; otherwise PyTorch's attention within is given it.
        halves: `attend` and `transform` as they are called, where they are compiled.
    """

    takes_mask: ClassVar[bool] = True
    halves: tuple[Callable[..., Tensor], Callable[..., Tensor]] | None = None

    @abstractmethod
    def normalized(self, x_BNC: Tensor) -> Tensor:
        """What attention is given."""

    @abstractmethod
    def attend(self, x_BNC: Tensor, input_BNC: Tensor, mask_B11N: Tensor | None, positions: Any) -> Tensor:
        """The tokens after attention and its residual."""

    @abstractmethod
    def transform(self, x_BKC: Tensor) -> Tensor:
        """The tokens after the MLP and its residual."""

    @own_signature
    def forward(
        self, x_BNC: Tensor, state: MergeState, method: SequenceMethod, r: int | None, positions: Any
    ) -> tuple[Tensor, MergeState]:
        attend, transform = self.halves or (self.attend, self.transform)
        input_BNC = self.normalized(x_BNC)
        looks = bool(method.needs & LOOKS)
        with state.attention(looks, None if self.takes_mask else state.mask_B11N) as attention:
            x_BNC = attend(x_BNC, input_BNC, state.mask_B11N, positions)
        x_BKC, state = state.merge(method, x_BNC, input_BNC, attention, r)
        return transform(x_BKC), state

    def compile_halves(self) -> None:
        """Compile what comes before and what comes after the merge step, for any number of tokens."""
        self.halves = torch.compile(self.attend, dynamic=True), torch.compile(self.transform, dynamic=True)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was compiled, as PyTorch has it: copies are not."""
        return {name: value for name, value in super().__getstate__().items() if name != "halves"}


class MergingTransformer(Unscripted, nn.Module):
    """A transformer that carries a `MergeState` from block to block.

    Attributes:
        method, schedule: what was applied.
        methods: the method as each block is given it.
        blocks_at: the path of its blocks.
    """

    method: SequenceMethod
    methods: list[SequenceMethod]
    schedule: Schedule
    blocks_at: ClassVar[str] = "blocks"

    @abstractmethod
    def prefix(self) -> int:
        """Tokens at the front that never merge."""

    @abstractmethod
    def embed(self, x: Tensor, **options: Any) -> tuple[Tensor, Any]:
        """The tokens that enter the first block, and their positions, if the blocks need these."""

    @abstractmethod
    def final_norm(self, x_BNC: Tensor) -> Tensor:
        """The tokens after the norm that follows the last block."""

    def positions(self) -> Any:
        """What `embed` gives beside the tokens, for inputs of the model's own size."""

    def positions_of(self, index: int, state: MergeState, positions: Any) -> Any:
        """What a block is given of the positions."""

    def call_block(self, block: nn.Module, *inputs: Any) -> tuple[Tensor, MergeState]:
        return block(*inputs)

    def start(self, x: Tensor, record: bool = False, **options: Any) -> tuple[Tensor, MergeState, Any]:
        """The tokens and the state that enter the first block, and the positions."""
        refuse_fx(x)
        check_applied(self)
        check_hooks(self, containers(self, self.blocks_at))
        x_BNC, positions = self.embed(x, **options)
        return x_BNC, MergeState(self.prefix(), record, self.packs()), positions

    def packs(self) -> bool:
        """Whether samples of different length run as one sequence."""
        return self.method.packed and not any(module.training for module in self.modules())

    def merging_blocks(self) -> list[nn.Module]:
        return list(cast(nn.ModuleList, self.get_submodule(self.blocks_at)))

    def run(
        self, x_BNC: Tensor, state: MergeState, positions: Any, first: int = 0, last: int | None = None
    ) -> tuple[Tensor, MergeState]:
        """The tokens and the state after the blocks from `first` to `last`, not included."""
        for index, block in list(enumerate(self.merging_blocks()))[first:last]:
            r = self.schedule.removed(index, x_BNC.shape[1] - state.prefix)
            here = self.positions_of(index, state, positions)
            x_BNC, state = self.call_block(block, x_BNC, state, self.methods[index], r, here)
        return x_BNC, state

    def encode(self, x: Tensor, record: bool = False, **options: Any) -> tuple[Tensor, MergeState]:
        """The merged tokens (B, K, C) after the final norm, and the state that came with them.

        Args:
            x: images (B, 3, H, W), or videos (B, T, 3, H, W).
            record: keep the plans in the state, so that `state.restore` brings the tokens back to the full sequence.
            options: of the library's forward pass; most have no meaning for merged tokens (MameLabError).
        """
        return self.normed(*self.run(*self.start(x, record, **options)))

    def normed(self, x_BKC: Tensor, state: MergeState) -> tuple[Tensor, MergeState]:
        """The final norm of the tokens, in the padded layout, and the state."""
        return state.unpack(self.final_norm(x_BKC)), state

    def plans(self, x: Tensor) -> list[MergePlan | None]:
        """The merge step of each block, None where it has none."""
        x_BNC, state, positions = self.start(x, record=True)
        plans = []
        for index in range(len(self.merging_blocks())):
            before = state.plans
            x_BNC, state = self.run(x_BNC, state, positions, index, index + 1)
            plans.append(state.plans[-1] if len(state.plans) > len(before) else None)
        return plans


class MergingClassifier(Unscripted, nn.Module):
    """A head on a merging transformer, which may be the same module: the logits come from the merged tokens."""

    method: SequenceMethod

    def transformer(self) -> MergingTransformer:
        return next(module for module in self.modules() if isinstance(module, MergingTransformer))

    @abstractmethod
    def feature(self, x_BKC: Tensor, state: MergeState) -> Tensor:
        """What enters the head (B, C), from the tokens after the final norm."""

    @abstractmethod
    def classify(self, x_BC: Tensor) -> Tensor:
        """The logits (B, K) of what enters the head."""

    def feature_and_patches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Family.feature_and_patches`."""
        x_BKC, state = self.transformer().encode(x, record=True)
        return self.feature(x_BKC, state), state.restore(x_BKC)[:, state.prefix :]

    def block_input(self, x: Tensor, stage: int) -> BlockInput:
        """What enters a stage (see `split_forward`); `forward` takes it in the place of images or videos."""
        transformer = self.transformer()
        x_BNC, state = transformer.run(*transformer.start(x), last=stage)
        if stage > len(transformer.merging_blocks()):
            return BlockInput(stage, self.feature(*transformer.normed(x_BNC, state))[:, None])
        return BlockInput(stage, state.unpack(x_BNC), state.size_BN1, state.origin_BN, state.valid_BN)

    def logits_from(self, block_input: BlockInput) -> Tensor:
        """The logits from a stage on."""
        transformer = self.transformer()
        if block_input.stage > len(transformer.merging_blocks()):
            return self.classify(block_input.x_BNC[:, 0])
        state = block_input.state(transformer.prefix(), transformer.packs(), self.method)
        tokens = transformer.run(block_input.x_BNC, state, transformer.positions(), first=block_input.stage)
        return self.classify(self.feature(*transformer.normed(*tokens)))
