"""What only trained weights show: that they are loaded rightly, and what merging does to their features.

B images, N tokens, C channels; H x W pixels, 1 class token.
"""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images
from timm.layers import resample_abs_pos_embed
from torch import Tensor

import mame_lab
from mame_lab.measure.fidelity import Fidelity
from mame_lab.merging import ToMe, Ward
from mame_lab.models import load, shared_copy
from mame_lab.models.settings import ModelSettings

MEAN, STD = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
GRID, TRAINED_GRID = (16, 16), (37, 37)


@pytest.fixture(scope="module")
def folder():
    folder = os.environ.get("MAME_LAB_TEST_WEIGHTS")
    if not folder:
        pytest.skip("MAME_LAB_TEST_WEIGHTS is not set: it names a folder with dinov2_vits14_fp16.safetensors")
    return Path(folder)


@pytest.fixture(scope="module")
def pretrained(folder):
    weights = str(folder / "dinov2_vits14_fp16.safetensors")
    return load(ModelSettings(name="vit_small_patch14_dinov2", img_size=224, weights=weights)).eval()


@pytest.fixture(scope="module")
def reference(folder):
    """Images, and the tokens and saliency maps that the original network gives for them."""
    return load_file(folder / "reference.safetensors")


@pytest.fixture(scope="module")
def resampled_as_original(folder, pretrained):
    """The loaded model with the one thing that timm does otherwise: the position embedding without antialiasing."""
    model = shared_copy(pretrained)
    trained_1NC = load_file(folder / "dinov2_vits14_fp16.safetensors")["pos_embed"].float()
    model.pos_embed = torch.nn.Parameter(
        resample_abs_pos_embed(trained_1NC, GRID, TRAINED_GRID, num_prefix_tokens=1, antialias=False)
    )
    return model


@torch.no_grad()
def tokens(model, reference) -> Tensor:
    """tokens_BNC after the final norm."""
    return model.forward_features((reference["images"].permute(0, 3, 1, 2) / 255 - MEAN) / STD)


def cosines(tokens_BNC: Tensor, reference) -> tuple[float, float]:
    """Of the class tokens and of the patch tokens with those of the original network, mean."""
    cosine_BN = F.cosine_similarity(tokens_BNC, reference["tokens"], dim=2)
    return cosine_BN[:, 0].mean().item(), cosine_BN[:, 1:].mean().item()


def saliency(tokens_BNC: Tensor, folder) -> Tensor:
    """maps_B1HW by the head that the backbone was trained with."""
    head = {name: tensor.float() for name, tensor in load_file(folder / "saliency_head_fp16.safetensors").items()}
    y = tokens_BNC[:, 1:].mT.unflatten(2, GRID)
    for stage in (1, 2, 3):
        y = F.conv_transpose2d(y, head[f"upconv{stage}.weight"], head[f"upconv{stage}.bias"], stride=2, padding=1)
        norm = (head[f"bn{stage}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        y = F.batch_norm(y, *norm).relu()
    y = F.conv2d(y, head["final_conv.weight"], head["final_conv.bias"])
    return F.interpolate(y, (224, 224), mode="bilinear").sigmoid()


def test_loaded_weights_give_the_tokens_and_maps_of_the_original_network(resampled_as_original, reference, folder):
    tokens_BNC = tokens(resampled_as_original, reference)
    assert min(cosines(tokens_BNC, reference)) > 0.999
    torch.testing.assert_close(saliency(tokens_BNC, folder), reference["maps"], rtol=0, atol=2e-3)


@pytest.mark.parametrize("order", [(1, 2, 0), (1, 0, 2), (0, 2, 1)])
def test_it_would_notice_query_key_and_value_in_another_order(resampled_as_original, reference, folder, order):
    model = shared_copy(resampled_as_original)
    for block in model.blocks:
        for name, tensor in dict(block.attn.qkv.named_parameters()).items():
            reordered = tensor.detach().unflatten(0, (3, -1))[list(order)].flatten(0, 1)
            setattr(block.attn.qkv, name, torch.nn.Parameter(reordered))
    tokens_BNC = tokens(model, reference)
    assert max(cosines(tokens_BNC, reference)) < 0.8
    assert (saliency(tokens_BNC, folder) - reference["maps"]).abs().max() > 0.3


def test_what_timms_resampling_of_the_position_embedding_moves(pretrained, reference):
    class_token, patches = cosines(tokens(pretrained, reference), reference)
    assert class_token == pytest.approx(0.999, abs=5e-4)
    assert patches == pytest.approx(0.998, abs=1e-3)


@torch.no_grad()
def test_merging_moves_features_little_and_less_with_proportional_attention(pretrained):
    """Measured: 0.02 for 8 tokens in 8 blocks, 0.32 for 24 of them, 0.42 where attention forgets the sizes."""
    photos = torch.stack([torch.tensor(image) for image in load_sample_images().images]).permute(0, 3, 1, 2) / 255
    x = (F.interpolate(photos[..., 60:360, :300], (224, 224), mode="bilinear", antialias=True) - MEAN) / STD
    unmerged_BC = pretrained(x)

    def error(method) -> float:
        fidelity = Fidelity()
        fidelity.update(None, None, mame_lab.apply(shared_copy(pretrained), method)(x), unmerged_BC)
        return fidelity.compute().feature_error

    for method in (Ward, ToMe):
        few, many = error(method(r=8, blocks=8)), error(method(r=24, blocks=8))
        forgotten = error(method(r=24, blocks=8, prop_attn=False))
        assert 0 < few < 0.1 < many < 0.5
        assert many < 0.9 * forgotten
