"""timm's own traits: what is refused, where weights come from, how the model is wrapped."""

from pathlib import Path

import pytest
import timm
import torch
from families import SMALL, build, images
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mame_lab
from mame_lab.merging.state import MergeState
from mame_lab.models import family, hub
from mame_lab.models.merging_transformer import MergingBlock
from mame_lab.models.settings import ModelSettings

load = family("timm").load
TINY = {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 32, "patch_size": 8, "num_classes": 3}


class Overriding(VisionTransformer):
    def forward_features(self, x):
        return super().forward_features(x)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Overriding(**TINY), "Overriding"),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224"), "SwinTransformer"),
        (lambda: timm.create_model("beit_base_patch16_224", depth=1), "Beit"),
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224"), "VisionTransformerDistilled"),
        (lambda: timm.create_model("vit_small_patch16_18x2_224", depth=2), "ParallelThingsBlock"),
        (lambda: timm.create_model("resnet18"), "ResNet"),
        (lambda: VisionTransformer(**TINY, global_pool="max"), "'max'"),
        (lambda: VisionTransformer(**TINY, global_pool="avgmax"), "'avgmax'"),
        (lambda: VisionTransformer(**TINY, global_pool="prr"), "'prr'"),
        (lambda: VisionTransformer(**TINY, attn_layer="diff"), "DiffAttention"),
        (lambda: torch.compile(VisionTransformer(**TINY)), "OptimizedModule"),
        (lambda: nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_refused_with_the_class_and_what_is_supported(make, named):
    model = make()
    with pytest.raises(TypeError, match=named) as error:
        mame_lab.apply(model, r=1)
    assert "timm" in str(error.value)
    assert "\n" not in str(error.value)
    assert not any(isinstance(m, MergingBlock) for m in model.modules())


def test_a_merging_block_that_merges_nothing_is_timms_block():
    """All of it: LayerScale, drop path and dropouts, to the bit."""
    model = build("deit3", drop_path_rate=0.5, proj_drop_rate=0.1).train()
    x = torch.randn(8, 20, SMALL["embed_dim"], dtype=torch.float64)
    torch.manual_seed(0)
    expected = model.blocks[-1](x)
    mame_lab.apply(model, r=1, blocks=[-1])
    torch.manual_seed(0)
    actual, _ = model.blocks[-1](x, MergeState(0), model.method, 0, None)
    assert torch.equal(actual, expected)


def test_pooling_changed_afterwards_is_refused_too():
    model = mame_lab.apply(VisionTransformer(**TINY), r=2)
    model.reset_classifier(3, global_pool="max")
    with pytest.raises(TypeError, match="'max'"):
        model(torch.randn(1, 3, 32, 32))


def test_no_pooling_gives_logits_of_the_full_grid():
    model, x = VisionTransformer(**TINY, global_pool="").eval(), torch.randn(2, 3, 32, 32)
    shape = model(x).shape
    assert mame_lab.apply(model, r=2)(x).shape == shape


def test_prefix_tokens_can_be_pooled():
    model = build("registers", global_pool="avg", pool_include_prefix=True)
    mame_lab.apply(model, r=5)
    x = images()
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x), rtol=1e-12, atol=1e-12)


def test_intermediates_as_a_dictionary():
    model, x, options = build("registers"), images(), {"output_dict": True, "return_prefix_tokens": True}
    plain = model.forward_intermediates(x, **options)
    merged = mame_lab.apply(model, r=5).forward_intermediates(x, **options)
    assert list(merged) == list(plain)
    for key, value in plain.items():
        assert [part.shape for part in merged[key]] == [part.shape for part in value]


def test_any_image_size():
    model = mame_lab.apply(build("dinov2", dynamic_img_size=True), r=5)
    for size in ((64, 64), (48, 96)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        assert model(x).shape == (2, SMALL["num_classes"])
        assert model.forward_intermediates(x, 1, intermediates_only=True)[0].shape[2:] == (size[0] // 8, size[1] // 8)
    shown = mame_lab.summary(model, torch.randn(1, 3, 48, 96, dtype=torch.float64))
    assert (shown.blocks[0].tokens, shown.blocks[0].tokens_unmerged) == (68, 73)
    with pytest.raises(mame_lab.MameLabError, match="too large for block"):
        model(torch.randn(2, 3, 16, 16, dtype=torch.float64))


def test_pruned_model_still_merges():
    model = mame_lab.apply(build("vit"), r=5)
    expected = model.forward_intermediates(images(), [2], intermediates_only=True)[0]
    model.prune_intermediate_layers([2])
    assert torch.equal(model.forward_intermediates(images(), [2], intermediates_only=True)[0], expected)


def test_under_ddp(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, x = mame_lab.apply(build("vit"), tau=0.8), images()
        expected = model(x)
        wrapped = DistributedDataParallel(model)
        assert torch.equal(wrapped(x), expected)
        wrapped(x).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
    finally:
        torch.distributed.destroy_process_group()


def settings(**changes) -> ModelSettings:
    arguments = {key: value for key, value in TINY.items() if key not in ("img_size", "num_classes")}
    return ModelSettings(
        **{"name": "vit_tiny_patch16_224", "img_size": 32, "args": arguments, "pretrained": False} | changes
    )


def test_position_embedding_is_resampled_to_the_image_size(tmp_path):
    source = load(settings(num_classes=3))
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = load(settings(img_size=64, weights=str(tmp_path / "w.safetensors")))
    assert model.pos_embed.shape[1] == 65
    assert model.num_classes == 3
    assert torch.equal(model.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)


def test_weights_without_a_head_make_a_backbone(tmp_path):
    state = {key: value for key, value in load(settings()).state_dict().items() if not key.startswith("head")}
    save_file(state, tmp_path / "w.safetensors")
    assert load(settings(weights=str(tmp_path / "w.safetensors"))).num_classes == 0


def test_a_head_can_be_left_out(tmp_path):
    save_file(load(settings(num_classes=3)).state_dict(), tmp_path / "w.safetensors")
    assert load(settings(num_classes=0, weights=str(tmp_path / "w.safetensors"))).num_classes == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"name": "vit_tiny_patch16_244"}, "model.name=vit_tiny_patch16_244 .*vit_tiny_patch16_224"),
        ({"weights": "no/such/file"}, "model.weights=no/such/file does not exist"),
        ({"args": {"dept": 3}}, "rejects.*dept"),
        ({"args": {"dept": 3}, "pretrained": True}, "rejects.*dept"),
        ({"args": {"in_chans": 1}}, "no RGB image"),
        ({"args": {"global_pool": ""}}, "no feature"),
        ({"pretrained": True, "args": {}, "img_size": None}, "model.weights=FILE.*model.pretrained=false"),
    ],
)
def test_bad_settings_name_the_key(changes, named, monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://localhost:9")
    with pytest.raises(mame_lab.MameLabError, match=named) as error:
        load(settings(**changes))
    assert "\n" not in str(error.value)


def test_files_of_another_model_are_named(tmp_path):
    broken, other, pickled = (tmp_path / name for name in ("broken.safetensors", "other.safetensors", "pickled.pth"))
    broken.write_bytes(b"not a checkpoint")
    save_file(build("deit3").state_dict(), other)
    torch.save({"state_dict": nn.Linear(2, 2), "code": Path("x")}, pickled)
    for file, message in ((broken, "cannot be read"), (other, "does not fit"), (pickled, "cannot be read")):
        with pytest.raises(mame_lab.MameLabError, match=f"model.weights={file} {message}"):
            load(settings(weights=str(file)))
