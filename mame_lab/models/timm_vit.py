"""timm's VisionTransformer, made of exactly its plain Block: ViT, DeiT, DeiT-III, MAE, DINOv2, CLIP and SigLIP towers.

B batch, N tokens, K tokens that remain after merging, C channels, D depth.
"""

import difflib
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_session
from timm.data.config import resolve_model_data_config
from timm.layers.attention import Attention
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mame_lab.errors import MameLabError, UnsupportedModelError
from mame_lab.merging.method import Method
from mame_lab.merging.schedule import Schedule
from mame_lab.merging.state import MergeState
from mame_lab.models.settings import ModelSettings

SUPPORTED = (
    "timm's VisionTransformer itself (no subclass) made of its plain Block, with token, avg, map (attention) or no "
    "pooling: ViT and AugReg, DeiT, DeiT-III, MAE, DINOv2, models with registers, CLIP and SigLIP image towers"
)
POOLS = ("", "token", "avg", "map")


class MergingBlock(Block):
    """timm's Block with one merge step between attention and MLP."""

    def forward(self, x_BNC: Tensor, state: MergeState, method: Method, leave: int | None) -> tuple[Tensor, MergeState]:
        x_BNC = x_BNC + self.drop_path1(self.ls1(self.attn(self.norm1(x_BNC), attn_mask=state.bias_B11N)))
        x_BKC, state = state.merge(method, x_BNC, leave)
        return x_BKC + self.drop_path2(self.ls2(self.mlp(self.norm2(x_BKC)))), state


class MergingVisionTransformer(VisionTransformer):
    """timm's VisionTransformer with merging as a way through its blocks; parameters and their names are the same.

    `forward` gives the logits from the merged tokens. `forward_features` and `forward_intermediates` give timm's
    shapes: the tokens are restored (MaRe) to the full grid. So `forward_head(forward_features(x))` equals `forward(x)`,
    for attention pooling as long as every source goes whole to one target (`r` without `tau`).
    """

    method: Method
    schedule: Schedule

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        x_BKC, state = self.encode(x, attn_mask, is_causal, record=self.global_pool == "")
        return self.head(self.head_drop(self.fc_norm(self._pool_merged(x_BKC, state))))

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
        x_BNC, state = self._embed(x, attn_mask, is_causal, record)
        for index in range(len(self.blocks)):
            x_BNC, state = self._run_block(index, x_BNC, state)
        return self.norm(x_BNC), state

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
        x_BNC, state = self._embed(x, attn_mask, is_causal, record=True)
        prefixes, patches = [], []
        for index in range(last + 1 if stop_early else len(self.blocks)):
            x_BNC, state = self._run_block(index, x_BNC, state)
            if index in chosen:
                restored_BNC = state.restore(self.norm(x_BNC) if norm else x_BNC)
                prefixes.append(restored_BNC[:, : self.num_prefix_tokens])
                patches.append(restored_BNC[:, self.num_prefix_tokens :])
        if output_fmt == "NCHW":
            patches = [y_BNC.mT.unflatten(2, grid).contiguous() for y_BNC in patches]
        with_prefix = return_prefix_tokens and self.num_prefix_tokens > 0
        if output_dict:
            result = {"image_intermediates": patches}
            if with_prefix:
                result["image_intermediates_prefix"] = prefixes
            return result if intermediates_only else result | {"image_features": state.restore(self.norm(x_BNC))}
        intermediates = list(zip(patches, prefixes, strict=True)) if with_prefix else patches
        return intermediates if intermediates_only else (state.restore(self.norm(x_BNC)), intermediates)

    def trace(self, x: Tensor) -> list[Tensor]:
        """Tokens of every sample after each block, prefix counted, padding not: D integer tensors of shape (B,)."""
        x_BNC, state = self._embed(x, None, False, record=True)
        counts = []
        for index in range(len(self.blocks)):
            x_BNC, state = self._run_block(index, x_BNC, state)
            counts.append(state.plans[-1].tokens() if state.plans else torch.full((len(x),), x_BNC.shape[1]))
        return counts

    def _embed(self, x: Tensor, attn_mask: Tensor | None, is_causal: bool, record: bool) -> tuple[Tensor, MergeState]:
        if attn_mask is not None or is_causal:
            raise MameLabError("attn_mask and is_causal have no meaning while tokens merge: call mame_lab.remove first")
        x_BNC = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        return x_BNC, MergeState(self.num_prefix_tokens, record)

    def _run_block(self, index: int, x_BNC: Tensor, state: MergeState) -> tuple[Tensor, MergeState]:
        block = self.blocks[index]
        arguments = [x_BNC, state.bias_B11N]
        if isinstance(block, MergingBlock):
            leave = self.schedule.leaving(index, x_BNC.shape[1] - self.num_prefix_tokens)
            arguments = [x_BNC, state, self.method, leave]
        result = checkpoint(block, *arguments, use_reentrant=False) if self.grad_checkpointing else block(*arguments)
        return result if isinstance(block, MergingBlock) else (result, state)

    def _pool_merged(self, x_BKC: Tensor, state: MergeState) -> Tensor:
        skip = 0 if self.pool_include_prefix else self.num_prefix_tokens
        if self.attn_pool is not None:
            bias = None if state.bias_B11N is None else state.bias_B11N[..., skip:]
            return self.attn_pool(x_BKC[:, skip:], attn_mask=bias)
        if self.global_pool == "avg":
            return state.mean(x_BKC, skip)
        if self.global_pool not in POOLS:
            raise unsupported(self, f"it pools by '{self.global_pool}'")
        return x_BKC[:, 0] if self.global_pool == "token" else state.restore(x_BKC)


def attach(model: nn.Module, method: Method) -> None:
    """Give the model its way through merging, replacing an earlier one; a method that is off leaves plain timm.

    Raises:
        UnsupportedModelError: the model is not exactly one of `SUPPORTED`; it is left as it was.
        MameLabError: the schedule does not fit the model; it is left as it was.
    """
    vit = supported(model)
    schedule = method.schedule(len(vit.blocks))
    if vit.patch_embed.num_patches:
        schedule.walk(vit.patch_embed.num_patches)
    detach(vit)
    if schedule.off:
        return
    vit.__class__ = MergingVisionTransformer
    vars(vit).update(method=method, schedule=schedule)
    for block, amount in zip(vit.blocks, schedule.amounts, strict=True):
        if amount != 0:
            block.__class__ = MergingBlock


def detach(model: nn.Module) -> None:
    """Give back timm's own classes, whose parameters never changed."""
    if isinstance(model, MergingVisionTransformer):
        model.__class__ = VisionTransformer
        del model.method, model.schedule
        for block in model.blocks:
            block.__class__ = Block


def supported(model: nn.Module) -> VisionTransformer:
    """The model itself; UnsupportedModelError for every one that would be merged wrongly or not at all."""
    if not isinstance(model, VisionTransformer) or type(model) not in (VisionTransformer, MergingVisionTransformer):
        raise unsupported(model, "it has a forward pass of its own")
    for block in model.blocks:
        if type(block) not in (Block, MergingBlock):
            raise unsupported(model, f"it has blocks of class {_name(block)}")
        if type(block.attn) is not Attention:
            raise unsupported(model, f"it has attention of class {_name(block.attn)}")
    pool = model.attn_pool
    if model.global_pool not in POOLS:
        raise unsupported(model, f"it pools by '{model.global_pool}'")
    if pool is not None and (type(pool) is not AttentionPoolLatent or pool.pos_embed is not None):
        raise unsupported(model, f"its attention pooling {_name(pool)} depends on positions or has another class")
    return model


def unsupported(model: nn.Module, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"mame_lab cannot merge tokens in {_name(model)}: {reason}. Supported: {SUPPORTED}")


def _name(module: object) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def load(settings: ModelSettings) -> VisionTransformer:
    """The timm model that the settings describe, with its weights: a local file's, the published ones, or random.

    Raises:
        MameLabError: an unknown name, weights that cannot be fetched, or a file of another model.
    """
    if settings.weights is not None:
        model = build(settings)
        origin = f"model.weights={settings.weights}"
        load_weights(model, read_weights(settings.weights), origin, head_of_file=settings.num_classes is None)
        return model
    return build(settings, fetch=settings.pretrained)


def build(settings: ModelSettings, fetch: bool = False) -> VisionTransformer:
    """The timm model that the settings describe, with random weights, or the published ones if `fetch`."""
    architecture = settings.name.split(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(["vit_*", "deit*"]), n=4)
        raise MameLabError(f"model.name={settings.name} is not a timm model; near matches: {', '.join(near) or 'none'}")
    options: dict[str, Any] = {"num_classes": settings.num_classes, "img_size": settings.img_size}
    options = {key: value for key, value in options.items() if value is not None} | settings.args
    try:
        with _no_retries_offline() if fetch else nullcontext():
            model = timm.create_model(settings.name, pretrained=fetch, **options)
    except Exception as error:
        if fetch and not isinstance(error, TypeError):
            raise MameLabError(
                f"the pretrained weights of model.name={settings.name} cannot be fetched ({_in_one_line(error)}): "
                f"give a local file with model.weights=FILE, or take random weights with model.pretrained=false"
            ) from error
        raise MameLabError(f"model.name={settings.name} rejects {options}: {_in_one_line(error)}") from error
    vit = supported(model)
    if options.get("in_chans", 3) != 3 or not vit.global_pool:
        raise MameLabError(f"model.name={settings.name} with {options} takes no RGB image or gives no feature of it")
    return vit


@contextmanager
def _no_retries_offline() -> Iterator[None]:
    """Where the hub does not answer, use its local cache at once instead of retrying for a minute."""
    offline = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def read_weights(path: str) -> dict[str, Tensor]:
    """The state dict in a safetensors file, or in a PyTorch file that holds nothing but tensors and plain values."""
    if not Path(path).is_file():
        raise MameLabError(f"model.weights={path} does not exist: give a .safetensors or .pth file")
    try:
        return timm.models.load_state_dict(path, weights_only=True)
    except Exception as error:
        raise MameLabError(f"model.weights={path} cannot be read: {_in_one_line(error)}") from error


def load_weights(model: VisionTransformer, state: dict[str, Tensor], origin: str, head_of_file: bool = True) -> None:
    """Load all tensors into the model, the position embedding resampled to its image size.

    Args:
        model: its architecture must be that of the weights.
        state: the tensors by name, in timm's or another layout that timm knows.
        origin: the key and value of the configuration that the tensors come from, for error messages.
        head_of_file: give the model a head with the classes of the file (none where it has none) instead of its own.
    """
    try:
        state = checkpoint_filter_fn(state, model)
        if head_of_file:
            model.reset_classifier(len(state["head.weight"]) if "head.weight" in state else 0)
        elif model.num_classes == 0:
            state = {key: value for key, value in state.items() if not key.startswith("head.")}
        mismatch = model.load_state_dict(state, strict=False)
    except (RuntimeError, KeyError, ValueError) as error:
        raise MameLabError(
            f"{origin} does not fit the model, choose the one it was made for: {_in_one_line(error)}"
        ) from error
    for kind, keys in (("lacks", mismatch.missing_keys), ("has unknown", mismatch.unexpected_keys)):
        if keys:
            raise MameLabError(f"{origin} does not fit the model: it {kind} {len(keys)} tensors, {keys[0]} among them")


def data_config(model: VisionTransformer) -> dict[str, Any]:
    """What the model expects of its images: size (H, W), mean, std, interpolation, crop_pct, crop_mode."""
    config = resolve_model_data_config(model)
    config["size"] = tuple(model.patch_embed.img_size or config["input_size"][1:])
    del config["input_size"]
    return config


def classifier(model: VisionTransformer) -> nn.Module:
    """The module that features enter and logits leave; an identity where the model has no head."""
    return model.get_classifier()


def match_classes(model: VisionTransformer, classes: int) -> bool:
    """Give the model a fresh head where it has not the classes of the data. Returns whether it did."""
    fits = model.num_classes == classes
    if not fits:
        model.reset_classifier(classes)
    return not fits


def block_names(model: VisionTransformer) -> list[str]:
    """The names of the blocks, in order."""
    return [f"blocks.{index}" for index in range(len(model.blocks))]


def trace(model: VisionTransformer, x: Tensor) -> list[Tensor]:
    """Tokens of every sample after each block, prefix counted, padding not: D integer tensors of shape (B,)."""
    if isinstance(model, MergingVisionTransformer):
        return model.trace(x)
    tokens = math.prod(model.patch_embed.dynamic_feat_size(x.shape[-2:])) + model.num_prefix_tokens
    return [torch.full((len(x),), tokens)] * len(model.blocks)


def _in_one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__
