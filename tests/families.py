"""The model families that every contract is tested on: small members with all the traits of the real ones."""

import timm
import torch
from torch import nn

from mame_lab.models.zero_shot import ZeroShotHead

GRID = 8
DEPTH = 6
SMALL = {"img_size": 8 * GRID, "patch_size": 8, "embed_dim": 48, "depth": DEPTH, "num_heads": 3, "num_classes": 7}
LAYER_SCALE = {"init_values": 0.5}

TIMM = {
    "vit": ("vit_tiny_patch16_224", {}),
    "vit_avg": ("vit_base_patch16_gap_224", LAYER_SCALE),
    "deit3": ("deit3_small_patch16_224", LAYER_SCALE),
    "dinov2": ("vit_small_patch14_dinov2", LAYER_SCALE),
    "registers": ("vit_small_patch14_reg4_dinov2", LAYER_SCALE),
    "clip": ("vit_base_patch16_clip_224", {}),
    "siglip": ("vit_base_patch16_siglip_224", {}),
    "zero_shot": ("vit_base_patch16_siglip_224", {}),
    "eva02": ("eva02_base_patch14_224", {}),
    "dinov3": ("vit_small_patch16_dinov3", LAYER_SCALE | {"global_pool": "token"}),
    "rope_mixed": ("vit_small_patch16_rope_mixed_224", LAYER_SCALE),
    "perception": ("vit_pe_core_tiny_patch16_384", LAYER_SCALE | {"qk_norm": True}),
}
FAMILIES = sorted(TIMM)


def build(family: str, **arguments) -> nn.Module:
    """A small random model in float64 and eval mode, with weights wide enough that every token matters."""
    torch.manual_seed(0)
    name, traits = TIMM[family]
    model = timm.create_model(name, **(SMALL | traits | arguments)).double().eval()
    if family == "zero_shot":
        model.head = zero_shot_head(model)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.15)
    return model


def zero_shot_head(model: nn.Module) -> ZeroShotHead:
    """As open_clip's towers have it: a projection, and texts for as many classes as the model has."""
    head = ZeroShotHead(nn.Linear(model.num_features, 32), torch.tensor(5.0), torch.tensor(-2.0)).double()
    head.text_KC = nn.functional.normalize(torch.randn(model.num_classes, 32, dtype=torch.float64), dim=-1)
    return head


def images(batch: int = 4, seed: int = 0) -> torch.Tensor:
    """Images of one repeated patch, with noise that grows from image to image: they merge to different extents."""
    generator = torch.Generator().manual_seed(seed)
    patch = torch.randn(batch, 3, 8, 8, generator=generator, dtype=torch.float64)
    noise = torch.randn(batch, 3, 8 * GRID, 8 * GRID, generator=generator, dtype=torch.float64)
    return patch.repeat(1, 1, GRID, GRID) + torch.linspace(0.1, 1.2, batch).view(-1, 1, 1, 1) * noise


def copies(model: nn.Module, batch: int = 3) -> torch.Tensor:
    """Images of 5 kinds of patches, unevenly often; the model forgets positions, so tokens of a kind are equal."""
    forget_positions(model)
    generator = torch.Generator().manual_seed(1)
    kinds = torch.randn(5, 3, 8, 8, generator=generator, dtype=torch.float64)
    odds = torch.tensor([1.0, 2, 4, 8, 16]).expand(batch, 5)
    kind = torch.multinomial(odds, GRID * GRID, replacement=True, generator=generator)
    kind[:, 0:10:2] = torch.arange(5)
    x = kinds[kind].view(batch, GRID, GRID, 3, 8, 8)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(batch, 3, 8 * GRID, 8 * GRID)


def forget_positions(model: nn.Module) -> None:
    """No position embedding, and every patch turned by the same rotary embedding."""
    if model.pos_embed is not None:
        nn.init.zeros_(model.pos_embed)
    rope = getattr(model, "rope", None)
    if rope is not None:
        embed = rope.get_embed
        rope.get_embed = lambda *args, **kwargs: _last_row(embed(*args, **kwargs))


def _last_row(x_NC: torch.Tensor) -> torch.Tensor:
    return x_NC[..., -1:, :].expand_as(x_NC)
