"""Parts that change their class: whose forward was replaced, and what goes by the names of classes."""

import copy
import pickle
from functools import partial
from pathlib import Path
from types import MethodType

import accelerate
import pytest
import torch
import transformers
from accelerate.hooks import remove_hook_from_submodules
from families import FAMILIES, TOWERS, TRANSFORMERS, backbone, build, inputs, logits
from test_diffusers import run, unet_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

import mame_lab
from mame_lab import UnsupportedModelError

ON_THE_CPU = {"device_map": {"": "cpu"}, "force_hooks": True}
EVERY_KIND = [*FAMILIES, "unet"]


def make(family: str) -> nn.Module:
    return unet_of() if family == "unet" else build(family)


@torch.no_grad()
def output(model: nn.Module, family: str) -> torch.Tensor:
    return run(model) if family == "unet" else logits(model, inputs(family))


PATCHES = {
    "partial": lambda part, name: partial(getattr(part, name)),
    "method": lambda part, name: MethodType(lambda self, *args: getattr(type(self), name)(self, *args), part),
    "compiled": lambda part, name: torch.compile(getattr(part, name), backend="eager"),
}


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize(
    ("family", "path"),
    [
        ("vit", ""),
        ("vit", "blocks"),
        ("eva02", "blocks.1"),
        ("registers", "blocks.2.attn"),
        ("siglip", "attn_pool"),
        ("hf_vit", ""),
        ("hf_vit", "vit"),
        ("hf_vit", "vit.layers.1"),
        ("hf_vit", "vit.layers.1.attention"),
        ("hf_dinov2", "dinov2.encoder"),
        ("videomae", "videomae.encoder.layer.0.attention"),
        ("videomae", "videomae.encoder.layer.0.attention.attention"),
        ("unet", "mid_block.attentions.0"),
        ("unet", "mid_block.attentions.0.transformer_blocks.0"),
        ("unet", "mid_block.attentions.0.transformer_blocks.0.attn1"),
    ],
)
def test_a_replaced_forward_is_refused_by_its_path(family, path, patch):
    model = make(family)
    part = model.get_submodule(path)
    part.forward = PATCHES[patch](part, "forward")
    types = [type(module) for module in model.modules()]
    with pytest.raises(
        UnsupportedModelError, match=rf"the forward of {path or 'the model'} was replaced: undo"
    ) as error:
        mame_lab.apply(model, r=0.1)
    assert "\n" not in str(error.value)
    assert [type(module) for module in model.modules()] == types
    assert "forward" in vars(part)
    del part.forward
    assert torch.equal(
        output(mame_lab.apply(model, r=0.1), family), output(mame_lab.apply(make(family), r=0.1), family)
    )


@pytest.mark.parametrize("family", EVERY_KIND)
def test_a_hook_runs_while_tokens_merge_or_is_refused(family):
    plain, ran, refused = set(), set(), set()
    model = make(family)
    for path, part in model.named_modules():
        part.register_forward_hook(lambda *_, path=path: plain.add(path))
    output(model, family)

    model = make(family)
    for path, part in model.named_modules():
        hook = part.register_forward_hook(lambda *_, path=path: ran.add(path))
        try:
            mame_lab.apply(model, r=0.1)
        except UnsupportedModelError as error:
            refused.add(str(error).split(": ")[1].removesuffix(" has a hook, and is not called while tokens merge"))
            hook.remove()
    output(mame_lab.apply(model, r=0.1), family)

    assert ran >= plain - refused
    assert not ran & refused
    for path in refused:
        hook = model.get_submodule(path).register_forward_hook(lambda *_: None)
        with pytest.raises(UnsupportedModelError, match=f": {path} has a hook, and is not called while tokens merge"):
            output(model, family)
        hook.remove()


@pytest.mark.parametrize("name", ["forward_features", "forward_head", "forward_intermediates", "pool"])
def test_the_other_ways_into_timm_are_refused_too(name):
    model = build("vit")
    setattr(model, name, PATCHES["partial"](model, name))
    with pytest.raises(UnsupportedModelError, match=f"the {name} of the model was replaced"):
        mame_lab.apply(model, r=5)


@pytest.mark.parametrize("family", EVERY_KIND)
def test_a_dispatched_model_is_refused_until_its_hooks_are_removed(family):
    plain, merged = output(make(family), family), output(mame_lab.apply(make(family), r=0.1), family)
    model = accelerate.dispatch_model(make(family), **ON_THE_CPU)
    with pytest.raises(UnsupportedModelError, match=r"accelerate.hooks.remove_hook_from_submodules\(model\)"):
        mame_lab.apply(model, r=0.1)
    assert torch.equal(output(mame_lab.remove(model), family), plain)
    remove_hook_from_submodules(model)
    assert torch.equal(output(mame_lab.apply(model, r=0.1), family), merged)
    assert torch.equal(output(mame_lab.remove(model), family), plain)


@pytest.mark.parametrize("family", EVERY_KIND)
def test_a_forward_in_mixed_precision_is_refused_until_it_is_the_original(family):
    plain, merged = make(family), mame_lab.apply(make(family), r=0.1)
    expected = [output(merged, family), output(plain, family)]
    acts = (partial(mame_lab.apply, r=0.1), mame_lab.remove)
    for model, act, output_then in zip((plain, merged), acts, expected, strict=True):
        part = model.mid_block.attentions[0] if family == "unet" else model
        accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare_model(part)
        with pytest.raises(UnsupportedModelError, match=r"replaced: .* set its forward to its _original_forward"):
            act(model)
        part.forward = part._original_forward
        assert torch.equal(output(act(model), family), output_then)


@pytest.mark.parametrize("family", EVERY_KIND)
def test_a_merged_model_can_be_dispatched(family):
    plain, merged = output(make(family), family), output(mame_lab.apply(make(family), r=0.1), family)
    model = accelerate.dispatch_model(mame_lab.apply(make(family), r=0.1), **ON_THE_CPU)
    assert torch.equal(output(model, family), merged)
    for act in (mame_lab.remove, partial(mame_lab.apply, r=0.2), partial(mame_lab.apply, r=0)):
        with pytest.raises(UnsupportedModelError, match="was replaced: undo that patch"):
            act(model)
        assert torch.equal(output(copy.deepcopy(model), family), merged)
    remove_hook_from_submodules(model)
    assert torch.equal(output(model, family), merged)
    assert torch.equal(output(mame_lab.remove(model), family), plain)


class Wrapped(nn.Module):
    """What a library of adapters puts in the place of a part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *args, **kwargs):
        return self.part(*args, **kwargs)


@pytest.mark.parametrize("wrapped", ["attention", "block"])
@pytest.mark.parametrize(
    ("family", "block", "attention"),
    [
        ("vit", "blocks.1", "attn"),
        ("eva02", "blocks.1", "attn"),
        ("hf_vit", "vit.layers.1", "attention"),
        ("hf_dinov2", "dinov2.encoder.layer.1", "attention"),
        ("videomae", "videomae.encoder.layer.1", "attention"),
        ("unet", "mid_block.attentions.0.transformer_blocks.0", "attn1"),
    ],
)
def test_merging_is_removed_whatever_was_wrapped_since(family, block, attention, wrapped):
    plain, types = output(make(family), family), [type(module) for module in make(family).modules()]
    model = mame_lab.apply(make(family), r=0.1)
    path = f"{block}.{attention}" if wrapped == "attention" else block
    model.set_submodule(path, Wrapped(model.get_submodule(path)))
    if wrapped == "attention":
        assert not torch.equal(output(model, family), plain)
    assert torch.equal(output(mame_lab.remove(model), family), plain)
    assert [type(module) for module in model.modules() if type(module) is not Wrapped] == types
    with pytest.raises(UnsupportedModelError, match="Wrapped"):
        mame_lab.apply(model, r=0.1)


@pytest.mark.parametrize(
    "offload", [accelerate.cpu_offload_with_hook, accelerate.cpu_offload], ids=["model", "sequential"]
)
@pytest.mark.parametrize("first", ["offload", "apply"])
def test_a_unet_merges_while_it_is_offloaded(offload, first):
    unet, merged = unet_of(), run(mame_lab.apply(unet_of(), r=0.5))
    steps = [lambda: offload(unet, "cpu"), lambda: mame_lab.apply(unet, r=0.5)]
    for step in steps if first == "offload" else reversed(steps):
        step()
    assert torch.equal(run(unet), merged)
    assert torch.equal(run(mame_lab.remove(unet)), run(unet_of()))


@pytest.mark.parametrize("family", EVERY_KIND)
def test_names_of_classes_are_those_of_the_plain_model(family):
    """So are its text and the modules of its multiply-adds; pickle finds the classes that merge."""
    model = make(family).requires_grad_(False)
    text, names = repr(model), [type(module).__name__ for module in model.modules()]
    mame_lab.apply(model, r=0.1)
    assert repr(model) == text
    assert [type(module).__name__ for module in model.modules()] == names
    with FlopCounterMode(display=False) as counter:
        merged = output(model, family)
    assert names[0] in counter.flop_counts
    assert torch.equal(output(pickle.loads(pickle.dumps(model)), family), merged)


class OwnConfig(PreTrainedConfig):
    model_type = "own"


class Own(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, part: PreTrainedModel) -> None:
        super().__init__(OwnConfig())
        self.part = part
        self.post_init()


def with_decoder(part: PreTrainedModel) -> PreTrainedModel:
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 32}
    config = transformers.BertGenerationConfig(**sizes, vocab_size=50, is_decoder=True, add_cross_attention=True)
    torch.manual_seed(0)
    return transformers.VisionEncoderDecoderModel(encoder=part, decoder=transformers.BertGenerationDecoder(config))


def saved(model: PreTrainedModel, folder: Path) -> dict[str, bytes]:
    model.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("container", [lambda part: part, Own, with_decoder], ids=["itself", "own", "with_decoder"])
@pytest.mark.parametrize("family", TRANSFORMERS)
def test_what_holds_a_merged_model_saves_the_same_files(family, container, tmp_path):
    """transformers names tensors otherwise in files than in models."""
    parts = [backbone(build(family))]
    if family not in TOWERS or container is not with_decoder:  # Which takes no configuration with another in it.
        parts.append(build(family))
    for part in parts:
        plain = saved(container(part), tmp_path / f"plain {type(part).__name__}")
        assert saved(container(mame_lab.apply(part, r=3)), tmp_path / f"merged {type(part).__name__}") == plain


def test_a_pipeline_of_transformers_knows_the_class(caplog, monkeypatch):
    monkeypatch.setattr(transformers.logging.get_logger("transformers"), "propagate", True)
    model = mame_lab.apply(build("hf_vit"), r=3)
    transformers.pipeline("image-classification", model=model, image_processor=transformers.ViTImageProcessor())
    assert "not supported" not in caplog.text


@pytest.mark.parametrize("family", ["vit", "eva02", "hf_vit", "hf_dinov2", "videomae"])
def test_a_model_made_by_the_class_of_a_merged_one_says_so(family):
    """As a test suite or a trainer makes one: `type(model)(config)`."""
    model = mame_lab.apply(build(family), r=0.1)
    library = type(model).__bases__[-1]
    made = type(model)(model.config) if family in TRANSFORMERS else type(model)(depth=1, embed_dim=64, num_heads=2)
    with pytest.raises(UnsupportedModelError, match=f"make it by {library.__module__}.{library.__name__}, then"):
        logits(made, inputs(family))
