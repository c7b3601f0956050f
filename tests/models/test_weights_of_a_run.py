"""model.weights=CKPT: the weights of a run of train.py, with its head, in every family but that of pipelines."""

import pytest
import torch
from families import inputs

from mame_lab import MameLabError
from mame_lab.models import family_of, load
from mame_lab.models.settings import ModelSettings

WIDTH = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 64, "patch_size": 8}
TINY = {
    "vit": {"name": "vit_tiny_patch16_224", "args": {"depth": 2, "embed_dim": 48, "patch_size": 8}, "img_size": 64},
    "hf_vit": {"family": "transformers", "name": "tiny", "args": {"model_type": "vit"} | WIDTH},
    "hf_dinov2": {"family": "transformers", "name": "tiny", "args": {"model_type": "dinov2"} | WIDTH},
}


def settings(name, **changes):
    return ModelSettings(**{"pretrained": False, "num_classes": 5} | TINY[name] | changes)


@pytest.fixture
def save(tmp_path):
    """Saves a model as a run does, beside what else trains; returns the path."""

    def saved(model, **config):
        path = tmp_path / "best.ckpt"
        state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()} | {"other": torch.zeros(3)}
        parts = {"model": {}, "mame": {}, "dataset": {}, "seed": 0}
        torch.save({"config": parts, "state_dict": state, "global_step": 7} | config, path)
        return str(path)

    return saved


@pytest.mark.parametrize("name", TINY)
def test_model_and_head_are_those_of_the_run(name, save):
    torch.manual_seed(0)
    run, x = load(settings(name)).eval(), inputs(name).float()
    path = save(run)
    for classes in (5, 1000, None):
        model = load(settings(name, weights=path, num_classes=classes)).eval()
        assert torch.equal(model(x), run(x))
        assert not family_of(model).match_classes(model, 5)
    headless = load(settings(name, weights=path, num_classes=0))
    assert isinstance(family_of(headless).classifier(headless), torch.nn.Identity)
    assert torch.equal(next(headless.parameters()), next(run.parameters()))


@pytest.mark.parametrize("name", TINY)
def test_of_another_architecture(name, save):
    path = save(load(settings(name)))
    depth = "depth" if name == "vit" else "num_hidden_layers"
    for layers in (1, 3):
        args = TINY[name]["args"] | {depth: layers}
        with pytest.raises(MameLabError, match=r"^model.weights=.*best.ckpt does not fit the model") as error:
            load(settings(name, args=args, weights=path))
        assert "\n" not in str(error.value)


def test_a_position_embedding_of_another_size_is_resampled(save):
    path = save(load(settings("vit")))
    assert load(settings("vit", weights=path, img_size=32)).pos_embed.shape == (1, 1 + 4 * 4, 48)


def test_what_is_none_is_named(save, tmp_path):
    for path, said in (
        (save(torch.nn.Linear(1, 1), config={}), "is no checkpoint of train.py"),
        ("no.ckpt", "not exist"),
    ):
        with pytest.raises(MameLabError, match=rf"^model.weights={path} .*{said}"):
            load(settings("vit", weights=path))
