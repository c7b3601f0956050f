"""How transformers models are made, and where their weights and their preprocessing come from."""

import json

import pytest
import torch
import transformers
import yaml
from commands import ROOT
from families import TOWERS, TRANSFORMERS, backbone, blocks, build, inputs, logits
from safetensors.torch import load_file, save_file
from torch import nn

import mame_lab
from mame_lab.data.preprocessing import Preprocessing
from mame_lab.measure import flops, pictures
from mame_lab.models import family, family_of, hub
from mame_lab.models.settings import ModelSettings

every_family = pytest.mark.parametrize("name", TRANSFORMERS)
library = family("transformers")


def tiny(name: str, args: dict | None = None, **changes) -> ModelSettings:
    """The settings of a member of `TRANSFORMERS`, with random weights unless they say otherwise."""
    source = build(name, depth=2)
    config = backbone(source).config
    keys = "hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", *TRANSFORMERS[name][1]
    sizes = {key: getattr(config, key) for key in keys}
    sizes = {"vision_config": sizes} if name in TOWERS else sizes
    args = {"model_type": source.config.model_type} | sizes | (args or {})
    return ModelSettings(**{"family": "transformers", "name": "tiny", "pretrained": False, "args": args} | changes)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://localhost:9")


@every_family
@torch.no_grad()
def test_a_saved_folder_and_its_file_are_the_model(name, tmp_path):
    """Saved while it merges; transformers names tensors otherwise in files than in models."""
    source, x = build(name, depth=2).float(), inputs(name).float()
    expected = logits(source, x)
    mame_lab.apply(source, r=3).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(build(name)).__name__]
    file = tmp_path / "model.safetensors"
    for path in (tmp_path, file):
        model = library.load(tiny(name, weights=str(path), num_classes=None if path is tmp_path else 7)).eval()
        assert torch.equal(model(x), expected)
        assert model.dtype == torch.float32
    headless = {key: value for key, value in load_file(file).items() if not key.startswith("classifier")}
    save_file(headless, tmp_path / "headless.safetensors", {"format": "pt"})
    model = library.load(tiny(name, weights=str(tmp_path / "headless.safetensors")))
    assert isinstance(family_of(model).classifier(model), nn.Identity)
    assert library.match_classes(model, 5)
    assert model.eval()(x).shape == (4, 5)


@pytest.mark.parametrize(("name", "both"), [("hf_siglip", "SiglipModel"), ("hf_clip", "CLIPModel")])
@torch.no_grad()
def test_an_image_tower_comes_out_of_the_published_pair(name, both, tmp_path):
    """Without a head, as the text tower is left out; its feature is that of the tokens of the pair's image tower."""
    vision = backbone(build(name, depth=2)).config.to_dict()
    text = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 32}
    config = getattr(transformers, both).config_class(vision_config=vision, text_config=text, projection_dim=48)
    pair = getattr(transformers, both)(config).eval()
    pair.save_pretrained(tmp_path)
    model, x = library.load(ModelSettings(name="any", weights=str(tmp_path))).eval(), inputs(name).float()
    assert isinstance(library.classifier(model), nn.Identity)
    tokens_BNC = pair.vision_model(x).last_hidden_state
    torch.testing.assert_close(backbone(model)(x).last_hidden_state, tokens_BNC)
    torch.testing.assert_close(model(x), tokens_BNC[:, library.prefix(model) :].mean(1))
    merged = mame_lab.apply(model, r=3)(x)
    assert merged.shape == (4, 48)


def test_config_json_rules_and_args_come_on_top(tmp_path):
    build("hf_dinov2", depth=2).save_pretrained(tmp_path)
    folder = {"weights": str(tmp_path), "pretrained": True}
    model = library.load(ModelSettings(name="any", args={"drop_path_rate": 0.2, "num_labels": 9}, **folder))
    assert (model.num_labels, model.config.drop_path_rate, len(blocks(model))) == (7, 0.2, 2)
    assert model.dtype == torch.float32
    assert library.load(ModelSettings(name="any", num_classes=0, **folder)).num_labels == 0
    with pytest.raises(mame_lab.MameLabError, match=r"other shapes in 2 tensors, classifier.bias among them"):
        library.load(ModelSettings(name="any", num_classes=3, **folder))
    assert len(blocks(library.build(ModelSettings(name=str(tmp_path))))) == 2


def test_a_checkpoint_of_training_brings_its_head():
    trained = library.load(tiny("videomae", num_classes=3))
    model = library.build(tiny("videomae", num_classes=5))
    library.load_weights(model, trained.state_dict(), "ckpt=x")
    x = inputs("videomae").float()
    assert torch.equal(model.eval()(x), trained.eval()(x))
    assert not library.match_classes(model, 3)
    without_head = library.build(tiny("videomae", num_classes=0))
    library.load_weights(without_head, trained.state_dict(), "ckpt=x", head_of_file=False)
    with pytest.raises(mame_lab.MameLabError, match="ckpt=x does not fit the model"):
        library.load_weights(library.build(tiny("videomae", {"hidden_size": 24})), trained.state_dict(), "ckpt=x")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"args": {"dept": 3}}, r"model.args.dept is not known to transformers' ViTConfig"),
        ({"args": {"model_type": "bert"}}, "model_type=bert is not supported: choose from .*ViTForImage"),
        ({"args": {"model_type": "vitt"}}, "rejects .*vitt"),
        ({"args": {"hidden_act": "no"}}, "rejects .*'hidden_act': 'no'"),
        ({"weights": "no/such/file"}, "model.weights=no/such/file does not exist"),
        ({"pretrained": True}, "weights of model.name=tiny cannot be .* model.weights=FOLDER.*model.pretrained=false"),
    ],
)
def test_bad_settings_name_the_key(changes, named):
    args = {"model_type": "vit", "num_hidden_layers": 1, "hidden_size": 24, "num_attention_heads": 2}
    args |= changes.get("args", {})
    with pytest.raises(mame_lab.MameLabError, match=named) as error:
        library.load(ModelSettings(**{"name": "tiny", "pretrained": False} | changes | {"args": args}))
    assert "\n" not in str(error.value)


def test_files_of_another_model_are_named(tmp_path):
    build("hf_vit", depth=2).save_pretrained(tmp_path)
    for changes, misfit in (
        ({"num_hidden_layers": 3}, "lacks 16 tensors"),
        ({"num_hidden_layers": 1}, "has unknown 16 tensors"),
        ({"image_size": 32}, "has other shapes in 1 tensors, vit.embeddings.position_embeddings"),
    ):
        settings = tiny("hf_vit", changes, weights=str(tmp_path / "model.safetensors"))
        with pytest.raises(mame_lab.MameLabError, match=f"does not fit the model: it {misfit}"):
            library.load(settings)
    with pytest.raises(mame_lab.MameLabError, match=r"model.img_size=32 does not fit .* for 64 px"):
        library.load(ModelSettings(name="any", weights=str(tmp_path), img_size=32))


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(mame_lab.models, "import_module", lambda _: __import__("no_such_library"))
    with pytest.raises(mame_lab.MameLabError, match=r"needs no_such_library: pip install 'mame_lab\[transformers\]'"):
        family("transformers")
    with pytest.raises(mame_lab.MameLabError, match=r"model.family=timn is not known: choose from timm, transformers"):
        family("timn")


PROCESSORS = {
    "hf_vit": (transformers.ViTImageProcessor, {"size": {"height": 60, "width": 72}}, (60, 72), 1.0, "squash"),
    "hf_dinov2": (
        transformers.BitImageProcessor,
        {"size": {"shortest_edge": 80}, "crop_size": 64, "resample": 3},
        (64, 64),
        0.8,
        "center",
    ),
    "videomae": (
        transformers.VideoMAEImageProcessor,
        {"size": {"shortest_edge": 32}, "crop_size": 32},
        (32, 32),
        1.0,
        "center",
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_preprocessing_is_that_of_the_folder(name, tmp_path):
    processor, settings, size, crop_pct, crop_mode = PROCESSORS[name]
    build(name, depth=2).save_pretrained(tmp_path)
    processor(image_mean=[0.1] * 3, image_std=[0.2] * 3, **settings).save_pretrained(tmp_path)
    found = Preprocessing(**library.data_config(library.load(ModelSettings(name="any", weights=str(tmp_path)))))
    frames = 8 if name == "videomae" else None
    interpolation = "bicubic" if name == "hf_dinov2" else "bilinear"
    assert found == Preprocessing(size, (0.1,) * 3, (0.2,) * 3, interpolation, crop_pct, crop_mode, frames)


PUBLISHED = {
    "hf_vit_b": (86.57, 17.56, (224, 224)),
    "hf_dinov2_s": (22.83, 6.12, (224, 224)),
    "hf_dinov2_b": (88.12, 23.16, (224, 224)),
    "hf_siglip_b": (92.88, 17.71, (224, 224)),
    "hf_clip_b": (85.80, 17.56, (224, 224)),
    "videomae_b": (86.53, 180.3, (224, 224)),
    "videomae_l": (304.1, 596.8, (224, 224)),
    "videomae_mini": (0.965, 0.06449, (32, 32)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_models_have_the_published_sizes(name):
    """Parameters in millions; multiply-adds of one image or clip in 1e9, counted without computing."""
    values = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())
    parameters, gflops, size = PUBLISHED[name]
    with torch.device("meta"):
        model = library.load(ModelSettings(**values | {"pretrained": False}))
        found = library.data_config(model)
        x = torch.empty(1, *([found["frames"]] if "frames" in found else []), 3, *found["size"])
    assert found["size"] == size
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(parameters, rel=1e-3)
    assert flops.gflops(model, x)[""] == pytest.approx(gflops, rel=1e-3)


def test_trains_and_is_evaluated_from_its_checkpoint(entry_point, tmp_path, capsys):
    sizes = "hidden_size=16", "num_hidden_layers=3", "num_attention_heads=2", "intermediate_size=32", "patch_size=8"
    small = [f"+model.args.{size}" for size in sizes]
    limits = ["trainer.accelerator=cpu", "trainer.limit_test_batches=1", "trainer.enable_progress_bar=false"]
    fast = [*limits, "speed.batch_size=4", "speed.max_rounds=2", "speed.seconds=0.1", "speed.cost_samples=2"]
    train = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
    model = ["model=hf_vit_b", "model.pretrained=false", "model.img_size=32", *small]
    entry_point("train", tmp_path / "train", *model, "finetune=last_layer", "mame.r=2", *train, *fast)
    assert "gets the 10 classes" in " ".join(capsys.readouterr().out.split())
    entry_point(
        "eval", tmp_path / "eval", f"ckpt={tmp_path / 'train' / 'checkpoints' / 'last.ckpt'}", "visualize=2", *fast
    )
    trained, evaluated = (json.loads((tmp_path / run / "result.json").read_text()) for run in ("train", "eval"))
    assert evaluated["merged"]["tokens"] == [15, 13, 13]
    assert evaluated["conditions"]["more"]["attention"] == "scaled_dot_product_attention"
    assert trained["merged"]["top1"] == evaluated["merged"]["top1"]
    assert (tmp_path / "eval" / "merging.png").stat().st_size > 0


def test_videos_have_no_pictures():
    model = mame_lab.apply(library.load(tiny("videomae")), r=3)
    with pytest.raises(mame_lab.MameLabError, match="visualize=2 draws images, and this model takes videos"):
        pictures.check(model, 2, mame_lab.Ward(r=3))
