"""The model families that every contract is tested on: small members with all the traits of the real ones.

What timm and transformers say differently, the helpers below say in one way. B batch, N tokens, C channels.
"""

import timm
import torch
from torch import nn

from mame_lab.models import family_of
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
# Of 4 tubelets of 4 x 4 patches; the classes are those of transformers, without "Config" and "For...".
VIDEO = {"num_frames": 8, "tubelet_size": 2, "image_size": 32}
TRANSFORMERS = {
    "hf_vit": ("ViT", {"intermediate_size": 192}),
    "hf_dinov2": ("Dinov2", {"layerscale_value": 0.5}),
    "hf_registers": ("Dinov2WithRegisters", {"layerscale_value": 0.5}),
    "videomae": ("VideoMAE", {"intermediate_size": 192} | VIDEO),
    "hf_siglip": ("Siglip", {"intermediate_size": 192}),
    "hf_clip": ("CLIP", {"intermediate_size": 192}),
}
# What the classifier's configuration has within, that of its image tower.
TOWERS = ("hf_clip", "hf_siglip")
FAMILIES = [*sorted(TIMM), "hf_clip", "hf_dinov2", "hf_siglip", "hf_vit", "videomae"]


def build(family: str, **arguments) -> nn.Module:
    """A small random model in float64 and eval mode, with weights wide enough that every token matters."""
    torch.manual_seed(0)
    make = _build_transformers if family in TRANSFORMERS else _build_timm
    model = make(family, **arguments).double().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.15)
    return model


def _build_timm(family: str, **arguments) -> nn.Module:
    name, traits = TIMM[family]
    model = timm.create_model(name, **(SMALL | traits | arguments))
    if family == "zero_shot":
        model.head = zero_shot_head(model)
    return model


def zero_shot_head(model: nn.Module) -> ZeroShotHead:
    """As open_clip's towers have it: a projection, and texts for as many classes as the model has."""
    head = ZeroShotHead(nn.Linear(model.num_features, 32), torch.tensor(5.0), torch.tensor(-2.0)).double()
    head.text_KC = nn.functional.normalize(torch.randn(model.num_classes, 32, dtype=torch.float64), dim=-1)
    return head


def _build_transformers(family: str, **arguments) -> nn.Module:
    import transformers

    names = {
        "embed_dim": "hidden_size",
        "depth": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_classes": "num_labels",
        "img_size": "image_size",
        "proj_drop_rate": "hidden_dropout_prob",
    }
    name, traits = TRANSFORMERS[family]
    sizes = {names.get(key, key): value for key, value in (SMALL | arguments).items()}
    head = "ForVideoClassification" if family == "videomae" else "ForImageClassification"
    if family in TOWERS:
        sizes = {"num_labels": sizes.pop("num_labels"), "vision_config": sizes | traits}
    else:
        sizes |= traits
    config = getattr(transformers, f"{name}Config")(**sizes)
    return getattr(transformers, f"{name}{head}")(config)


def inputs(family: str, batch: int = 4, seed: int = 0) -> torch.Tensor:
    """`images`, or videos of their patches, for a family that takes these."""
    x = images(batch, seed)
    return _video(x) if family == "videomae" else x


def _video(x_B3HW: torch.Tensor) -> torch.Tensor:
    """Videos (B, T, 3, H, W) of all patches of images, two frames of each patch."""
    tubelets = x_B3HW.unflatten(3, (2, -1)).unflatten(2, (2, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    return tubelets.repeat_interleave(2, 1)


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
    x = x.permute(0, 3, 1, 4, 2, 5).reshape(batch, 3, 8 * GRID, 8 * GRID)
    return _video(x) if hasattr(model, "videomae") else x


def forget_positions(model: nn.Module) -> None:
    """No position embedding, and every patch turned by the same rotary embedding."""
    if of_transformers(model):
        embeddings = backbone(model).embeddings
        if hasattr(backbone(model), "rope_embeddings"):
            backbone(model).rope_embeddings.inv_freq.zero_()
            return
        learned = getattr(embeddings, "position_embedding", None)
        (embeddings.position_embeddings if learned is None else learned.weight).data.zero_()
        return
    if model.pos_embed is not None:
        nn.init.zeros_(model.pos_embed)
    rope = getattr(model, "rope", None)
    if rope is not None:
        embed = rope.get_embed
        rope.get_embed = lambda *args, **kwargs: _last_row(embed(*args, **kwargs))


def _last_row(x_NC: torch.Tensor) -> torch.Tensor:
    return x_NC[..., -1:, :].expand_as(x_NC)


def backbone(model: nn.Module) -> nn.Module:
    """The part of a model that holds its blocks."""
    return family_of(model).transformer(model)


def of_transformers(model: nn.Module) -> bool:
    return family_of(model).name == "transformers"


def logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    output = model(x)
    return output if isinstance(output, torch.Tensor) else output.logits


def features(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The full grid (B, N, C), prefix in front: after the final norm, and after each block."""
    if of_transformers(model):
        output = backbone(model)(x, output_hidden_states=True)
        return output.last_hidden_state, list(output.hidden_states[1:])
    last, pairs = model.forward_intermediates(x, return_prefix_tokens=True, output_fmt="NLC")
    return last, [torch.cat(pair[::-1], 1) if model.num_prefix_tokens else pair for pair in pairs]


def logits_of_features(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the library's own head makes of the full grid."""
    if of_transformers(model):
        plain = next(base for base in type(model).__mro__ if base.__module__.startswith("transformers."))
        return plain.forward(model, x).logits
    return model.forward_head(model.forward_features(x))


def state(model: nn.Module, x: torch.Tensor):
    """The MergeState after the last block."""
    return backbone(model).encode(x)[1]


def blocks(model: nn.Module) -> list[nn.Module]:
    return [model.get_submodule(name) for name in family_of(model).block_names(model)]


def norms(block: nn.Module) -> list[nn.Module]:
    """The norms before attention and before the MLP."""
    return [module for module in block.children() if isinstance(module, nn.LayerNorm)]


def checkpointing(model: nn.Module, enable: bool) -> None:
    if not of_transformers(model):
        model.set_grad_checkpointing(enable)
    elif enable:
        model.activation_checkpointing_enable()
    else:
        model.activation_checkpointing_disable()
