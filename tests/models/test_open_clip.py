"""open_clip's towers with a zero-shot head, and the text features that it is written from."""

import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml
from clips import MODELS, register
from commands import ROOT, TINY
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import mame_lab
from mame_lab.measure.result import Result
from mame_lab.models import family, hub, load, tensor_file
from mame_lab.models.open_clip import loading
from mame_lab.models.open_clip.text import TextTower
from mame_lab.models.settings import ModelSettings

DIGITS = [str(digit) for digit in range(10)]
SIGLIP2 = "ViT-B-16-SigLIP2-512:webli"
# What a run takes: a small model at 96 px, 37 tokens, on a handful of digits.
RUN = [
    *("model=siglip2_b_512", "model.name=tiny-siglip", "model.pretrained=false", "model.img_size=96", "mame.r=4"),
    'model.templates=["a photo of a {}.", "the digit {}"]',
    *(override for override in TINY if not override.startswith("model.")),
]


@pytest.fixture(scope="module", autouse=True)
def tokenizer(tmp_path_factory) -> Path:
    return register(tmp_path_factory.mktemp("open_clip"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MAME_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch):
    """The hub does not answer; asking it again and again would take 47 seconds."""
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://localhost:9")


def settings(name: str = "tiny-siglip", **changes) -> ModelSettings:
    return ModelSettings(**{"family": "open_clip", "name": name, "pretrained": False, "img_size": 64} | changes)


def zero_shot(classes: list[str] = DIGITS, name: str = "tiny-siglip", **changes) -> nn.Module:
    torch.manual_seed(0)
    model = family("open_clip").load(settings(name, **changes)).eval()
    family("open_clip").name_classes(model, classes)
    return model


def own(name: str, **options) -> nn.Module:
    """open_clip's own model, with the same weights."""
    torch.manual_seed(0)
    return open_clip.create_model(name, **{"force_image_size": 64} | options).eval()


def images(size: int = 64) -> torch.Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def never(*_, **__):
    raise AssertionError("not to be called")


@torch.no_grad()
def logits_of(clip: nn.Module, name: str, x: torch.Tensor) -> torch.Tensor:
    """As open_clip gives them for one template."""
    return clip.get_logits(x, open_clip.get_tokenizer(name)([f"a photo of a {digit}." for digit in DIGITS]))[0]


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_are_those_of_open_clip(name):
    model, x = zero_shot(name=name, templates=["a photo of a {}."]), images()
    expected = logits_of(own(name), name, x)
    assert type(model) is VisionTransformer
    assert (model(x) - expected).abs().max() <= 1e-6 * expected.abs().max()
    merged = mame_lab.apply(model, r=2)(x)
    assert 1e-6 < (merged - expected).abs().max() < expected.abs().max()
    assert (mame_lab.remove(model)(x) - expected).abs().max() <= 1e-6 * expected.abs().max()


@torch.no_grad()
def test_text_features_are_those_of_open_clip():
    """Averaged over templates, with ImageNet's names for WordNet ids, and spaces for underscores."""
    clip, tokenize = own("tiny-siglip"), open_clip.get_tokenizer("tiny-siglip")
    ids, names = ["n01440764", "n01443537", "n02077923", "my_class"], ["tench", "goldfish", "sea lion", "my class"]
    for templates, known in (
        ("imagenet", open_clip.OPENAI_IMAGENET_TEMPLATES),
        ("simple", open_clip.SIMPLE_IMAGENET_TEMPLATES),
        (["a {}.", "the {}."], ["a {}.", "the {}."]),
    ):
        expected = open_clip.build_zero_shot_classifier(clip, tokenize, names, known).T
        torch.testing.assert_close(zero_shot(ids, templates=templates).head.text_KC, expected, rtol=1e-5, atol=1e-6)


def test_a_named_model_has_let_go_of_its_text_tower():
    model = zero_shot(name="tiny-clip")
    assert "text" not in vars(model)
    assert set(model.head.state_dict()) == {"text_KC", "scale", "bias", "projection.1.weight"}
    assert [name for name, _ in model.head.named_parameters()] == ["projection.1.weight"]
    bare = family("timm").build(ModelSettings(name="test_vit", num_classes=0, pretrained=False))
    assert {key for key in model.state_dict() if not key.startswith("head.")} == set(bare.state_dict())


def test_text_features_are_computed_once(cache, monkeypatch):
    first = zero_shot()
    (file,) = cache.iterdir()
    monkeypatch.setattr(TextTower, "_encode", never)
    assert torch.equal(zero_shot().head.text_KC, first.head.text_KC)
    assert list(cache.iterdir()) == [file]


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": [*DIGITS[:-1], "ten"]},
        {"templates": "simple"},
        {"templates": ["a photo of a {}.", "a photo of the {}."]},
        {"args": {"quick_gelu": True}},
        {"weights": "other.pt"},
    ],
    ids=str,
)
def test_other_text_features_are_not_taken_for_these(changes, cache, tmp_path):
    zero_shot()
    if "weights" in changes:
        torch.save(open_clip.create_model("tiny-siglip").state_dict(), tmp_path / "other.pt")
        changes = {"weights": str(tmp_path / "other.pt")}
    zero_shot(**changes)
    assert len(list(cache.iterdir())) == 2


def test_a_tokenizer_that_reads_otherwise_has_text_features_of_its_own(cache, tokenizer, tmp_path):
    zero_shot()
    other = tmp_path / "tokenizer"
    other.mkdir()
    for file in tokenizer.iterdir():
        (other / file.name).write_text(file.read_text().replace('"a": 4', '"a": 44'))
    zero_shot(tokenizer=str(other))
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: content[:-1] + b"?", lambda _: b""])
def test_damaged_text_features_are_computed_again(damage, cache, capsys):
    expected = zero_shot().head.text_KC
    (file,) = cache.iterdir()
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert torch.equal(zero_shot().head.text_KC, expected)
    assert f"{file} is damaged" in capsys.readouterr().out
    assert file.read_bytes() == content


def test_a_cache_that_cannot_be_written_is_told(cache, capsys):
    cache.write_text("no folder")
    zero_shot()
    assert "set MAME_LAB_CACHE to another folder" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@torch.no_grad()
def test_weights_of_a_local_file(suffix, tmp_path):
    """Of both towers, as open_clip saves them, the position embedding resampled to the image size."""
    torch.manual_seed(7)
    state = open_clip.create_model("tiny-siglip").state_dict()
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save({"state_dict": state, "best": np.float64(81.2)}, file)
    else:
        save_file(state, file)
    with tensor_file.plain_objects():
        clip = own("tiny-siglip", pretrained=str(file), force_image_size=96)
    model, x = zero_shot(weights=str(file), img_size=96, templates=["a photo of a {}."]), images(96)
    torch.testing.assert_close(model(x), logits_of(clip, "tiny-siglip", x), rtol=1e-5, atol=1e-5)


def test_a_file_that_open_clip_could_not_read_is_named(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "w.SAFETENSORS")
    (tmp_path / "w.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    for name, fault in (("w.SAFETENSORS", "is a safetensors file: let its name end so"), ("w.pt", "is a pointer")):
        with pytest.raises(mame_lab.MameLabError, match=f"^model.weights={tmp_path / name} {fault}"):
            family("open_clip").load(settings(weights=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (SIGLIP2, ((512, 512), "squash", "bicubic", (0.5, 0.5, 0.5), 1.0)),
        ("PE-Core-B-16", ((224, 224), "squash", "bilinear", (0.5, 0.5, 0.5), 1.0)),
        ("EVA02-B-16", ((224, 224), "center", "bicubic", open_clip.OPENAI_DATASET_MEAN, 1.0)),
    ],
)
def test_images_are_prepared_as_open_clip_does(name, expected):
    with torch.device("meta"):
        found = family("open_clip").data_config(family("open_clip").build(settings(name, img_size=None)))
    assert tuple(found[key] for key in ("size", "crop_mode", "interpolation", "mean", "crop_pct")) == expected


def test_models_are_published_by_open_clip():
    models = [yaml.safe_load(path.read_text()) for path in (ROOT / "conf/model").glob("*.yaml")]
    names = {model["name"] for model in models if model.get("family") == "open_clip"}
    assert SIGLIP2 in names
    assert names <= set(open_clip.list_pretrained(as_str=True))


def test_the_image_tower_must_be_timms(offline):
    for name, named in (
        ("ViT-B-16:openai", "open_clip.transformer.VisionTransformer, the image tower of model.name=ViT-B-16:openai"),
        ("RN50:openai", "open_clip.modified_resnet.ModifiedResNet"),
        ("convnext_base", "timm.models.convnext.ConvNeXt"),
        ("EVA02-E-14", "timm.models.eva.EvaBlockPostNorm"),
    ):
        with pytest.raises(mame_lab.UnsupportedModelError, match=named) as error:
            family("open_clip").load(settings(name, pretrained=True, img_size=None))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"name": SIGLIP2, "pretrained": True},
            "weights of model.name=.* fetched .*model.weights=FILE.*pretrained=false",
        ),
        ({"name": "ViT-B-16-SigLIP2-512:web"}, "does not say which weights: choose from ViT-B-16-SigLIP2-512:webli$"),
        ({"name": "EVA02-L-14-336:x"}, "does not say which weights"),
        ({"name": "ViT-B-16-SigLIP3"}, "is not an open_clip model; near matches: .*ViT-B-16-SigLIP2"),
        ({"pretrained": True}, "model.name=tiny-siglip has no published weights: .*model.pretrained=false"),
        ({"weights": "no/such"}, "model.weights=no/such does not exist"),
        ({"weights": __file__}, r"model.weights=.* does not fit model.name=tiny-siglip"),
        ({"num_classes": 7}, "model.num_classes=7 does not go with"),
        ({"args": {"depth": 2}}, "model.name=tiny-siglip rejects .*depth"),
        ({"templates": "clip"}, "model.templates=clip is not known: choose imagenet or simple"),
        ({"templates": ["a photo"]}, "model.templates="),
        ({"templates": []}, "model.templates="),
        ({"tokenizer": "no/such"}, "the tokenizer model.tokenizer=no/such cannot be loaded"),
        (
            {"tokenizer": str(ROOT / "conf")},
            "the tokenizer model.tokenizer=.*conf cannot be loaded .*model.tokenizer=FOLDER",
        ),
    ],
)
@pytest.mark.timeout(30)
def test_bad_settings_name_the_key(changes, named, offline):
    with pytest.raises(mame_lab.MameLabError, match=named) as error:
        family("open_clip").load(settings(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.timeout(30)
def test_a_missing_tokenizer_is_named(offline, monkeypatch):
    """With SigLIP2's own name and a small stand-in for its towers: their random weights would take long."""
    create = open_clip.create_model
    monkeypatch.setattr(
        open_clip, "create_model", lambda name, *args, **options: create("tiny-siglip", *args, **options)
    )
    named = (
        "the tokenizer timm/ViT-B-16-SigLIP2-512 of .* cannot be loaded .*model.tokenizer=FOLDER.*model.num_classes=0"
    )
    with pytest.raises(mame_lab.MameLabError, match=named) as error:
        family("open_clip").load(settings(SIGLIP2))
    assert "\n" not in str(error.value)
    assert isinstance(family("open_clip").load(settings(SIGLIP2, num_classes=0)).head, nn.Identity)


def test_a_file_of_another_model_is_named(tmp_path):
    save_file(family("timm").build(ModelSettings(name="test_vit")).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(mame_lab.MameLabError, match="takes open_clip's file of both towers"):
        family("open_clip").load(settings(weights=str(tmp_path / "w.safetensors")))


def test_without_the_library_a_line_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("mame_lab.models.open_clip")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(mame_lab.MameLabError, match=r"pip install 'mame_lab\[open_clip\]'"):
        family("open_clip")
    with pytest.raises(
        mame_lab.MameLabError, match=r"model.family=openclip is not known: choose from timm, .*open_clip"
    ):
        family("openclip")


def test_zero_shot_then_the_last_layer_then_the_checkpoint(entry_point, tmp_path, capsys, monkeypatch):
    entry_point("eval", tmp_path / "zero", *RUN)
    assert "Accuracy, zero-shot" in capsys.readouterr().out
    zero = Result.load(tmp_path / "zero/result.json")
    assert (zero.evaluated_by, zero.merged.top1.total) == ("zero-shot", 32)
    assert [round(tokens) for tokens in zero.merged.tokens] == [33, 29, 25, 21, 21, 21]

    monkeypatch.setattr(TextTower, "_encode", never)  # From here on they are known.
    entry_point("train", tmp_path / "run", *RUN, "finetune=last_layer")
    trained, told = Result.load(tmp_path / "run/result.json"), capsys.readouterr().out
    assert "The head is new" not in told
    assert trained.evaluated_by == "classifier"
    assert trained.conditions.weights != zero.conditions.weights
    state = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(
        state["model.head.text_KC"], zero_shot(templates=["a photo of a {}.", "the digit {}"]).head.text_KC
    )

    monkeypatch.setattr(loading, "tokenizer_of", never)  # Nor is a tokenizer needed.
    machine = [override for override in RUN if override.split(".")[0] in ("trainer", "speed")]
    best = f"ckpt={tmp_path / 'run/checkpoints/best.ckpt'}"
    entry_point("eval", tmp_path / "same", *machine, best)
    entry_point("eval", tmp_path / "features", *machine, best, "model.num_classes=0")
    same, features = (Result.load(tmp_path / name / "result.json") for name in ("same", "features"))
    assert same.conditions.weights == trained.conditions.weights
    assert (same.merged.top1, same.unmerged.top1) == (trained.merged.top1, trained.unmerged.top1)
    assert (same.evaluated_by, features.evaluated_by) == ("classifier", "k-NN")
    entry_point("eval", tmp_path / "weights", *RUN, best.replace("ckpt", "model.weights", 1))
    again = Result.load(tmp_path / "weights/result.json")
    assert (again.conditions.weights, again.evaluated_by) == (trained.conditions.weights, "classifier")


def test_a_run_that_gave_a_tower_a_head_of_numbers(tmp_path):
    model, x, path = zero_shot(), images(), tmp_path / "best.ckpt"
    assert family("timm").match_classes(model, 3)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    config = {"model": {}, "mame": {}, "dataset": {}, "seed": 0}
    torch.save({"config": config, "state_dict": state, "global_step": 1}, path)
    assert torch.equal(load(settings(weights=str(path))).eval()(x), model(x))
