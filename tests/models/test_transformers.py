"""transformers' own traits: what is refused, what its outputs stay, where weights come from."""

import json

import pytest
import torch
import transformers
import yaml
from commands import ROOT
from families import (
    DEPTH,
    GRID,
    SMALL,
    TRANSFORMERS,
    blocks,
    build,
    copies,
    inputs,
    logits,
    logits_of_features,
)
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers.models.vit.modeling_vit import ViTAttention, ViTLayer

import mame_lab
from mame_lab.data.preprocessing import Preprocessing
from mame_lab.measure import flops, pictures
from mame_lab.merging import Drop, ToMe, Ward
from mame_lab.models import family, family_of, hub
from mame_lab.models.settings import ModelSettings

every_family = pytest.mark.parametrize("name", TRANSFORMERS)
LABELS = torch.tensor([0, 1, 2, 3])


class OverridingModel(transformers.ViTForImageClassification):
    pass


class OverridingLayer(ViTLayer):
    pass


class OverridingAttention(ViTAttention):
    pass


def with_part(at: str, cls: type) -> nn.Module:
    model = build("hf_vit", depth=1)
    model.get_submodule(at).__class__ = cls
    return model


def with_attention(implementation: str) -> nn.Module:
    model = build("videomae", depth=1)
    model.set_attn_implementation(implementation)
    return model


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: with_part("", OverridingModel), "OverridingModel: it has a forward pass of its own"),
        (lambda: with_part("vit.layers.0", OverridingLayer), "layers of class .*OverridingLayer"),
        (lambda: with_part("vit.layers.0.attention", OverridingAttention), "attention of class .*OverridingAttention"),
        (lambda: transformers.DeiTModel(transformers.DeiTConfig(num_hidden_layers=1)), "DeiTModel"),
        (lambda: build("videomae", depth=1, use_mean_pooling=False), "first patch"),
        (lambda: with_attention("eager"), r"here it is eager: call model.set_attn_implementation\('sdpa'\)"),
    ],
)
def test_refused_with_the_class_and_what_is_supported(make, named):
    model = make()
    types = [type(module) for module in model.modules()]
    with pytest.raises(TypeError, match=named) as error:
        mame_lab.apply(model, r=1)
    assert "\n" not in str(error.value)
    assert [type(module) for module in model.modules()] == types


@every_family
@pytest.mark.parametrize("path", ["", "base_model"])
@pytest.mark.parametrize("implementation", ["eager", {"": "eager"}], ids=str)
@torch.no_grad()
def test_attention_changed_afterwards_is_refused_too(name, path, implementation):
    model, x = mame_lab.apply(build(name, depth=2), r=2), inputs(name)
    merged = logits(model, x)
    getattr(model, path, model).set_attn_implementation(implementation)
    for call in (model, model.base_model, lambda x: mame_lab.apply(model, r=3)):
        with pytest.raises(TypeError, match=r"here it is eager: call model.set_attn_implementation\('sdpa'\)"):
            call(x)
    model.set_attn_implementation("sdpa")
    assert torch.equal(logits(model, x), merged)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(logits(mame_lab.remove(model), x), logits(build(name, depth=2), x))


@every_family
def test_attentions_are_refused(name):
    model = mame_lab.apply(build(name, depth=2), r=2)
    for call in (model, model.base_model):
        with pytest.raises(mame_lab.MameLabError, match="output_attentions has no meaning while tokens merge"):
            call(inputs(name), output_attentions=True)
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    model.set_attn_implementation("sdpa")
    with pytest.raises(mame_lab.MameLabError, match="output_attentions has no meaning while tokens merge"):
        model(inputs(name))


@every_family
@pytest.mark.parametrize("asked", [True, False, None, 0, 3, -1, [1, -1], (0, 2), [-7, 99], [99], []], ids=str)
@torch.no_grad()
def test_hidden_states_are_those_that_are_asked_for(name, asked):
    """transformers puts None in the place of the others."""
    x, plain = inputs(name), build(name)
    model = mame_lab.apply(build(name), r=3)
    for found, expected in ((model, plain), (model.base_model, plain.base_model)):
        every = found(x, output_hidden_states=True).hidden_states
        for given in ({"output_hidden_states": asked}, {}):
            found.config.output_hidden_states = expected.config.output_hidden_states = not given and asked
            states, of_plain = (each(x, **given).hidden_states for each in (found, expected))
            if of_plain is None:
                assert states is None
                continue
            for state, at, one in zip(states, of_plain, every, strict=True):
                assert (state is None) == (at is None)
                assert state is None or torch.equal(state, one)


@every_family
@torch.no_grad()
def test_a_classifier_merges_though_its_backbone_does(name):
    model, x = build(name), inputs(name)
    plain, merged = logits(model, x), logits(mame_lab.apply(build(name), r=3), x)
    mame_lab.apply(model.base_model, r=5)
    assert not torch.equal(logits(model, x), plain)
    assert torch.equal(logits(mame_lab.apply(model, r=3), x), merged)
    assert torch.equal(logits(mame_lab.remove(model), x), plain)


def test_reentrant_checkpoints_are_refused():
    model = mame_lab.apply(build("hf_vit", depth=2).train(), r=2)
    model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(mame_lab.MameLabError, match="use_reentrant=True loses gradients"):
        model(inputs("hf_vit"))


@every_family
@torch.no_grad()
def test_outputs_are_those_of_transformers(name):
    model, x = build(name), inputs(name)
    asked = {"pixel_values": x, "labels": LABELS, "output_hidden_states": True}
    plain = model(**asked)
    merged = mame_lab.apply(model, r=3)(**asked)
    assert type(merged) is type(plain)
    assert merged.keys() == plain.keys()
    assert [y.shape for y in merged.hidden_states] == [y.shape for y in plain.hidden_states]
    assert torch.equal(merged.hidden_states[0], plain.hidden_states[0])
    torch.testing.assert_close(merged.loss, F.cross_entropy(merged.logits, LABELS))
    torch.testing.assert_close(model(x, LABELS, num_items_in_batch=8).loss, merged.loss / 2)
    loss, scores = model(x, LABELS, return_dict=False)
    assert torch.equal(loss, merged.loss)
    assert torch.equal(scores, merged.logits)
    assert not torch.equal(scores, plain.logits)


@every_family
@torch.no_grad()
def test_a_backbone_by_itself_gives_the_full_grid(name):
    backbone, x = build(name).base_model, inputs(name)
    plain, types = backbone(x), [type(module) for module in backbone.modules()]
    merged = mame_lab.apply(backbone, r=5)(x)
    assert {key: value.shape for key, value in merged.items()} == {key: value.shape for key, value in plain.items()}
    assert not torch.equal(merged.last_hidden_state, plain.last_hidden_state)
    tokens = [block.tokens for block in mame_lab.summary(backbone, x).blocks]
    assert tokens == [plain.last_hidden_state.shape[1] - 5 * min(left, 4) for left in range(1, DEPTH + 1)]
    mame_lab.remove(backbone)
    assert torch.equal(backbone(x).last_hidden_state, plain.last_hidden_state)
    assert [type(module) for module in backbone.modules()] == types


@torch.no_grad()
def test_registers_never_merge():
    model = build("hf_registers")
    x = copies(model)
    expected = logits(model, x)
    mame_lab.apply(model, r=6, blocks=DEPTH)
    torch.testing.assert_close(logits(model, x), expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(logits_of_features(model, x), expected, rtol=1e-11, atol=1e-11)
    plan = family_of(model).plans(model, x)[-1]
    assert (plan.prefix, plan.index_BK[:, :5].tolist()) == (5, [[0, 1, 2, 3, 4]] * len(x))


@torch.no_grad()
def test_dropped_patches_do_not_count_in_the_mean():
    model, seen = build("hf_dinov2"), []
    mame_lab.apply(model, Drop(r=5))
    model.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = inputs("hf_dinov2")
    torch.manual_seed(0)
    model(x)
    torch.manual_seed(0)
    tokens_BKC = model.base_model.encode(x)[0]
    expected = torch.cat([tokens_BKC[:, 0], tokens_BKC[:, 1:].mean(1)], 1)
    torch.testing.assert_close(seen[0], expected)


class Keys(ToMe):
    """Remembers what it was given."""

    def plan(self, tokens, r):
        self.given = [*getattr(self, "given", ()), tokens]
        return super().plan(tokens, r)


@pytest.mark.parametrize(("name", "key"), [("videomae", "attention.attention.key"), ("hf_vit", "attention.k_proj")])
@torch.no_grad()
def test_keys_are_those_of_the_models_attention(name, key):
    model, method = build(name), Keys(r=5)
    mame_lab.apply(model, method)(inputs(name))
    for block, tokens in zip(blocks(model), method.given, strict=False):
        expected = block.get_submodule(key)(tokens.input_BNC).unflatten(2, (SMALL["num_heads"], -1)).mean(2)
        torch.testing.assert_close(tokens.mean_key(), expected, rtol=1e-12, atol=1e-12)
    assert len(method.given) == DEPTH


@torch.no_grad()
def test_sizes_enter_an_attention_that_takes_no_mask():
    """What VideoMAE's attention gives is what its own eager attention would with the mask."""
    model, seen = mame_lab.apply(build("videomae"), r=20, blocks=1), {}
    attention = blocks(model)[1].attention.attention
    attention.register_forward_hook(lambda _, args, output: seen.update(input=args[0], output=output[0]))
    x = inputs("videomae")
    model(x)
    bias_B11N = model.base_model.encode(x)[1].bias_B11N
    q, k, v = (
        each(seen["input"]).unflatten(2, (SMALL["num_heads"], -1)).transpose(1, 2)
        for each in (attention.query, attention.key, attention.value)
    )
    y = ((q @ k.mT) * q.shape[-1] ** -0.5 + bias_B11N).softmax(-1) @ v
    torch.testing.assert_close(seen["output"], y.transpose(1, 2).flatten(2))


@torch.no_grad()
def test_images_of_other_sizes():
    model, x = mame_lab.apply(build("hf_vit"), r=5), torch.randn(2, 3, 48, 96, dtype=torch.float64)
    assert model(x, interpolate_pos_encoding=True).logits.shape == (2, SMALL["num_classes"])
    model = mame_lab.apply(build("hf_dinov2"), r=5)
    shown = mame_lab.summary(model, x)
    assert (shown.blocks[0].tokens, shown.blocks[0].tokens_unmerged) == (68, 73)


def test_videos_have_a_grid_in_time_and_no_pictures():
    model = load(tiny("videomae"))
    x = torch.randn(1, 8, 3, 32, 32)
    assert family_of(model).grid(model, x) == (4, 4, 4)
    assert family_of(build("hf_vit")).grid(build("hf_vit"), inputs("hf_vit")) == (GRID, GRID)
    with pytest.raises(mame_lab.MameLabError, match="visualize=2 draws images, and this model takes videos"):
        pictures.check(mame_lab.apply(model, r=3), 2, Ward(r=3))


load, build_model, load_weights, match_classes, data_config = (
    getattr(family("transformers"), name) for name in ("load", "build", "load_weights", "match_classes", "data_config")
)


def tiny(name: str, args: dict | None = None, **changes) -> ModelSettings:
    """The settings of a member of `TRANSFORMERS`, with random weights unless they say otherwise."""
    config = build(name, depth=2).config
    keys = "hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", *TRANSFORMERS[name][1]
    args = {"model_type": config.model_type} | {key: getattr(config, key) for key in keys} | (args or {})
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
        model = load(tiny(name, weights=str(path), num_classes=None if path is tmp_path else 7)).eval()
        assert torch.equal(model(x), expected)
        assert model.dtype == torch.float32
    headless = {key: value for key, value in load_file(file).items() if not key.startswith("classifier")}
    save_file(headless, tmp_path / "headless.safetensors", {"format": "pt"})
    model = load(tiny(name, weights=str(tmp_path / "headless.safetensors")))
    assert isinstance(family_of(model).classifier(model), nn.Identity)
    assert match_classes(model, 5)
    assert model.eval()(x).shape == (4, 5)


def test_config_json_rules_and_args_come_on_top(tmp_path):
    build("hf_dinov2", depth=2).save_pretrained(tmp_path)
    folder = {"weights": str(tmp_path), "pretrained": True}
    model = load(ModelSettings(name="any", args={"drop_path_rate": 0.2, "num_labels": 9}, **folder))
    assert (model.num_labels, model.config.drop_path_rate, len(blocks(model))) == (7, 0.2, 2)
    assert model.dtype == torch.float32
    assert load(ModelSettings(name="any", num_classes=0, **folder)).num_labels == 0
    with pytest.raises(mame_lab.MameLabError, match=r"other shapes in 2 tensors, classifier.bias among them"):
        load(ModelSettings(name="any", num_classes=3, **folder))
    assert len(blocks(build_model(ModelSettings(name=str(tmp_path))))) == 2


def test_a_checkpoint_of_training_brings_its_head():
    trained = load(tiny("videomae", num_classes=3))
    model = build_model(tiny("videomae", num_classes=5))
    load_weights(model, trained.state_dict(), "ckpt=x")
    x = inputs("videomae").float()
    assert torch.equal(model.eval()(x), trained.eval()(x))
    assert not match_classes(model, 3)
    without_head = build_model(tiny("videomae", num_classes=0))
    load_weights(without_head, trained.state_dict(), "ckpt=x", head_of_file=False)
    with pytest.raises(mame_lab.MameLabError, match="ckpt=x does not fit the model"):
        load_weights(build_model(tiny("videomae", {"hidden_size": 24})), trained.state_dict(), "ckpt=x")


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
        load(ModelSettings(**{"name": "tiny", "pretrained": False} | changes | {"args": args}))
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
            load(settings)
    with pytest.raises(mame_lab.MameLabError, match=r"model.img_size=32 does not fit .* for 64 px"):
        load(ModelSettings(name="any", weights=str(tmp_path), img_size=32))


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
    found = Preprocessing(**data_config(load(ModelSettings(name="any", weights=str(tmp_path)))))
    frames = 8 if name == "videomae" else None
    interpolation = "bicubic" if name == "hf_dinov2" else "bilinear"
    assert found == Preprocessing(size, (0.1,) * 3, (0.2,) * 3, interpolation, crop_pct, crop_mode, frames)


PUBLISHED = {
    "hf_vit_b": (86.57, 17.56, (224, 224)),
    "hf_dinov2_s": (22.83, 6.12, (224, 224)),
    "hf_dinov2_b": (88.12, 23.16, (224, 224)),
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
        model = load(ModelSettings(**values | {"pretrained": False}))
        found = data_config(model)
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
