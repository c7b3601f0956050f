"""open_clip's towers with a zero-shot head: small real models, a tokenizer made here, no network."""

import json
import logging

import open_clip
import pytest
import torch
from runs import TINY
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

import mame_lab
from mame_lab import hub
from mame_lab.models import family, family_of
from mame_lab.models.open_clip import text
from mame_lab.models.open_clip.text import TextTower
from mame_lab.models.settings import ModelSettings
from mame_lab.results import Result

TEXT = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
# Six blocks of 64 channels; at 64 px 16 patches.
SIGLIP = {
    "embed_dim": 64,
    "custom_text": True,
    "init_logit_bias": -10,
    "vision_cfg": {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
}
CLIP = {
    "embed_dim": 48,
    "vision_cfg": {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": "token", "timm_proj": "linear"},
    "text_cfg": TEXT | {"vocab_size": 49408},
}
HEAD_IN_TRUNK = CLIP | {"custom_text": True, "vision_cfg": CLIP["vision_cfg"] | {"timm_proj": None}}
MODELS = {"tiny-siglip": SIGLIP, "tiny-clip": CLIP, "tiny-clip-trunk": HEAD_IN_TRUNK}
DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module", autouse=True)
def tokenizer(tmp_path_factory) -> str:
    """The folder of a tokenizer of letters, which tiny-siglip names as its own; the models are made known."""
    folder = tmp_path_factory.mktemp("open_clip")
    letters = {
        letter: number for number, letter in enumerate(["<pad>", "<unk>", *"abcdefghijklmnopqrstuvwxyz0123456789"])
    }
    made = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>")
    wrapped.save_pretrained(folder / "tokenizer")
    named = {"hf_tokenizer_name": str(folder / "tokenizer")}
    for name, config in MODELS.items():
        if name == "tiny-siglip":
            config = config | {"text_cfg": config["text_cfg"] | named}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return str(folder / "tokenizer")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAME_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/text"


def settings(name: str = "tiny-siglip", **changes) -> ModelSettings:
    return ModelSettings(**{"family": "open_clip", "name": name, "pretrained": False, "img_size": 64} | changes)


def load(name: str = "tiny-siglip", **changes) -> nn.Module:
    torch.manual_seed(0)
    return family("open_clip").load(settings(name, **changes)).eval()


def zero_shot(classes: list[str] = DIGITS, name: str = "tiny-siglip", **changes) -> nn.Module:
    model = load(name, **changes)
    family("open_clip").name_classes(model, classes)
    return model


def own(name: str) -> nn.Module:
    """open_clip's own model, with the same weights."""
    torch.manual_seed(0)
    return open_clip.create_model(name, force_image_size=64).eval()


def images(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_are_those_of_open_clip(name):
    clip, x = own(name), images()
    tokens = open_clip.get_tokenizer(name)([f"a photo of a {digit}." for digit in DIGITS])
    expected, _ = clip.get_logits(x, tokens)
    logits = zero_shot(name=name, templates=["a photo of a {}."])(x)
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


@torch.no_grad()
def test_text_features_are_those_of_open_clip():
    """Averaged over templates, with ImageNet's names for WordNet ids and spaces for underscores."""
    clip = own("tiny-siglip")
    names, ids = ["tench", "goldfish", "sea lion", "my class"], ["n01440764", "n01443537", "n02077923", "my_class"]
    for templates, known in (
        ("imagenet", open_clip.OPENAI_IMAGENET_TEMPLATES),
        ("simple", open_clip.SIMPLE_IMAGENET_TEMPLATES),
        (["a {}.", "the {}."], ["a {}.", "the {}."]),
    ):
        expected = open_clip.build_zero_shot_classifier(clip, open_clip.get_tokenizer("tiny-siglip"), names, known)
        torch.testing.assert_close(zero_shot(ids, templates=templates).head.text_KC.T, expected, rtol=1e-5, atol=1e-6)
