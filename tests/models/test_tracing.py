"""Tools that follow a model's code: which go while tokens merge, and what the others are told."""

import pytest
import torch
from families import FAMILIES, TIMM, build, inputs, logits
from test_diffusers import inputs as inputs_of_unet
from test_diffusers import run, unet_of
from timm.models._features_fx import FeatureGraphNet
from torch import nn
from torch.fx import symbolic_trace
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import mame_lab
from mame_lab import MameLabError, UnsupportedModelError
from mame_lab.merging import ATC, MCTF, EViT, MaMe, Method, ToMe, Ward

REFUSED = "is not supported while tokens merge: use torch.export or torch.jit.trace, .* or call mame_lab.remove first"


class Within(nn.Module):
    """A model in another one, whose output is a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return logits(self.model, x)


class Denoiser(nn.Module):
    """A U-Net whose output is a tensor."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample, timestep, encoder_hidden_states):
        return self.unet(sample, timestep, encoder_hidden_states).sample


@pytest.mark.parametrize("wrap", [lambda model: model, Within], ids=["itself", "within"])
@pytest.mark.parametrize("trace", [symbolic_trace, torch.jit.script], ids=["fx", "script"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_takes_code_apart_is_refused(family, trace, wrap):
    model = mame_lab.apply(build(family), r=3)
    with pytest.raises(UnsupportedModelError, match=REFUSED) as error:
        trace(wrap(model))
    assert "\n" not in str(error.value)
    assert torch.equal(logits(model, inputs(family)), logits(mame_lab.apply(build(family), r=3), inputs(family)))


@pytest.mark.parametrize("trace", [symbolic_trace, torch.jit.script], ids=["fx", "script"])
def test_it_is_refused_with_a_unet(trace):
    with pytest.raises(UnsupportedModelError, match=REFUSED):
        trace(Denoiser(mame_lab.apply(unet_of(), r=0.5)))


@pytest.mark.parametrize(
    ("family", "path"),
    [
        ("vit", "blocks.0"),
        ("eva02", "blocks.0"),
        ("hf_vit", "vit.layers.0"),
        ("hf_dinov2", "dinov2.encoder.layer.0"),
        ("hf_registers", "dinov2_with_registers.encoder.layer.0"),
        ("videomae", "videomae.encoder.layer.0"),
        ("unet", "mid_block.attentions.0"),
        ("unet", "mid_block.attentions.0.transformer_blocks.0.attn1"),
        ("unet", "mid_block.attentions.0.transformer_blocks.0.attn2"),
    ],
)
def test_so_is_a_part_that_merges(family, path):
    model = mame_lab.apply(unet_of() if family == "unet" else build(family), r=0.1)
    with pytest.raises(UnsupportedModelError, match=REFUSED):
        torch.jit.script(model.get_submodule(path))


@pytest.mark.parametrize(
    "extract",
    [
        lambda model: create_feature_extractor(model, ["blocks.1"]),
        get_graph_node_names,
        lambda model: FeatureGraphNet(model, (0, 1)),
    ],
    ids=["torchvision", "names", "timm"],
)
@pytest.mark.parametrize("family", ["vit", "eva02"])
def test_extractors_of_features_are_refused_and_go_once_it_is_removed(family, extract):
    model = mame_lab.apply(build(family, depth=2), r=3)
    with pytest.raises(UnsupportedModelError, match=f"torch.fx .* {REFUSED}"):
        extract(model)
    extract(mame_lab.remove(model))


@pytest.mark.parametrize("family", sorted(TIMM))
@torch.no_grad()
def test_the_plain_model_is_traced_as_before(family):
    model = mame_lab.remove(mame_lab.apply(build(family, depth=2), r=3))
    x, plain = inputs(family), build(family, depth=2)
    assert symbolic_trace(model).code == symbolic_trace(plain).code
    assert torch.equal(torch.jit.script(model)(x), plain(x))


TRACED = [Ward(r=3), Ward(r=0.1), MaMe(r=3, tau=0.5), ToMe(r=3), MCTF(r=3), EViT(r=3)]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("family", "method"),
    [*(("vit", method) for method in TRACED), *((family, Ward(r=3)) for family in FAMILIES if family != "vit")],
    ids=str,
)
@torch.no_grad()
def test_budgets_are_traced_by_inputs_for_any_batch(family, method: Method):
    model = Within(mame_lab.apply(build(family, depth=3), method))
    traced = torch.jit.trace(model, inputs(family, 3))
    for batch in (1, 3, 4):
        x = inputs(family, batch, seed=batch)
        torch.testing.assert_close(traced(x), model(x), rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("method", [Ward(r=0.5), MaMe(r=0.5)], ids=str)
@torch.no_grad()
def test_a_unet_is_traced_for_any_batch(method):
    unet = mame_lab.apply(unet_of(), method)
    traced = torch.jit.trace(Denoiser(unet), tuple(inputs_of_unet(2).values()))
    for batch in (1, 3):
        given = inputs_of_unet(batch)
        torch.testing.assert_close(traced(*given.values()), run(unet, **given), rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("method", [Ward(tau=0.8), MaMe(tau=0.3, batching="union"), ATC(r=3)], ids=str)
def test_what_one_batch_decides_is_not_traced(method):
    model = mame_lab.apply(build("vit", depth=2), method)
    with pytest.raises(
        MameLabError, match=r"torch.jit.trace would keep what mame=.* decides for one batch: set a budget"
    ):
        torch.jit.trace(model, inputs("vit"))
