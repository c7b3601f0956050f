"""Which parameters train, under timm's names and any others, and that the frozen rest stays frozen during a fit."""

import io
from pathlib import Path

import pytest
import torch
from families import FAMILIES, build, inputs, logits
from lightning.pytorch import Callback
from omegaconf import OmegaConf
from rich.console import Console
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mame_lab
from mame_lab import Ward
from mame_lab.errors import MameLabError
from mame_lab.models import untrained_parameters
from mame_lab.tasks.classification import Classification
from mame_lab.tasks.optim import AdamW
from mame_lab.training.fit import distillation
from mame_lab.training.freeze import FinetuneSettings, freeze, freeze_table
from mame_lab.training.trainer import TrainerSettings

CONF = Path(__file__).parents[2] / "conf" / "finetune"
VITS = {
    "class token": {},
    "average pooling": {"class_token": False, "global_pool": "avg"},
    "attention pooling": {"class_token": False, "global_pool": "map"},
    "registers": {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5},
}


def vit(**options):
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    return VisionTransformer(**sizes, drop_rate=0.1, proj_drop_rate=0.1, drop_path_rate=0.2, **options)


def shipped(name):
    values = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    return FinetuneSettings(**values.get("finetune", values))


def trains(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def in_train_mode(model):
    return {name for name, module in model.named_modules() if module.training}


def below(model, *roots):
    """Names of the parameters and of the modules of `model` at or below `roots`."""
    return tuple(
        {name for name, _ in named if any(f"{name}.".startswith(f"{root}.") for root in roots)}
        for named in (model.named_parameters(), model.named_modules())
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_trains_gets_a_gradient(family):
    """Else several processes would wait for it for ever."""
    model = build(family)
    freeze(model, shipped("full"))
    mame_lab.apply(model, r=4)
    logits(model, inputs(family)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("options", VITS.values(), ids=VITS)
@pytest.mark.parametrize(
    ("name", "roots"),
    [
        ("last_layer", ["blocks.2", "norm", "fc_norm", "head", "head_drop", "attn_pool"]),
        ("last_n", ["blocks.1", "blocks.2", "norm", "fc_norm", "head", "head_drop", "attn_pool"]),
        ("head", ["head", "head_drop"]),
    ],
)
def test_the_shipped_choices_on_timm_models(name, roots, options):
    model = vit(**options)
    parameters, modules = below(model, *roots)
    freeze(model, shipped(name))
    assert trains(model) == parameters
    assert in_train_mode(model) == modules


@pytest.mark.parametrize(
    ("family", "backbone", "layers", "norm"),
    [
        ("hf_vit", "vit", "layers", "vit.layernorm"),
        ("hf_dinov2", "dinov2", "encoder.layer", "dinov2.layernorm"),
        ("hf_registers", "dinov2_with_registers", "encoder.layer", "dinov2_with_registers.layernorm"),
        ("hf_siglip", "vision_model", "encoder.layers", "vision_model.post_layernorm"),
        ("hf_clip", "vision_model", "encoder.layers", "vision_model.post_layernorm"),
        ("videomae", "videomae", "encoder.layer", "fc_norm"),
    ],
)
def test_the_shipped_choices_on_models_of_transformers(family, backbone, layers, norm):
    model = build(family)
    for name, blocks in (("last_layer", [5]), ("last_n", [4, 5]), ("head", [])):
        tail = [norm, "classifier"] if blocks else ["classifier"]
        parameters, modules = below(model, *(f"{backbone}.{layers}.{block}" for block in blocks), *tail)
        freeze(model, shipped(name))
        assert trains(model) == {name for name in parameters if not name.startswith(untrained_parameters(model))}
        assert in_train_mode(model) == modules


def test_full_trains_everything():
    model = vit().eval().requires_grad_(False)
    summary = freeze(model, shipped("full"))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert summary.trained == summary.total == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("pattern", "modules"),
    [
        ("blocks.-1", ["blocks.11"]),
        ("blocks.-12", ["blocks.0"]),
        ("blocks.1", ["blocks.1"]),
        ("blocks.(0|-2)", ["blocks.0", "blocks.10"]),
        ("blocks.-1.0", ["blocks.11.0"]),
        ("blocks.11.-1", ["blocks.11.1"]),
        (r"blocks\.1[01]", ["blocks.10", "blocks.11"]),
        ("head.*", ["head"]),
        (".*norm", ["norm", "final.norm"]),
    ],
)
def test_patterns_match_whole_names_and_count_from_either_end(pattern, modules):
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(12))
    parts = {"blocks": blocks, "norm": nn.LayerNorm(2), "head": nn.Sequential(nn.Linear(2, 2))}
    model = nn.ModuleDict({**parts, "final": nn.ModuleDict({"norm": nn.LayerNorm(2), "norm_out": nn.LayerNorm(2)})})
    (row,) = freeze(model, FinetuneSettings("mine", [pattern])).rows
    assert row.modules == modules
    assert trains(model) == below(model, *modules)[0]


@pytest.mark.parametrize(("n", "blocks"), [(1, [2]), (2, [1, 2]), (3, [0, 1, 2])])
def test_the_last_n_answer_to_it_and_no_others(n, blocks):
    model = vit()
    norms, mlps = freeze(model, FinetuneSettings("mine", ["norm", "blocks.-n.mlp"], n)).rows
    assert norms.modules == ["norm"]
    assert mlps.modules == [f"blocks.{block}.mlp" for block in blocks]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train": ["head"], "n": 2}, "finetune.n=2 has no meaning for finetune=mine"),
        ({"n": 2}, "finetune.n=2 has no meaning for finetune=mine"),
        ({"train": ["head", "blocks.-n"]}, "finetune.train=blocks.-n does not say how many"),
        ({"train": ["blocks.-n"], "n": 0}, "finetune.n=0: set it to 1 or more"),
        (
            {"train": ["head|blocks.-n"], "n": 4},
            "finetune.n=4 is more than the 4 modules of finetune.train=head|blocks",
        ),
        ({"train": ["blocks.-n"], "n": 9}, "finetune.n=9 is more than the 3 modules of finetune.train=blocks.-n"),
    ],
)
def test_an_n_that_has_no_meaning_is_named(settings, said):
    model = vit()
    before = trains(model)
    with pytest.raises(MameLabError) as caught:
        freeze(model, FinetuneSettings("mine", **settings))
    assert str(caught.value).startswith(said)
    assert trains(model) == before


def test_no_pattern_at_all_is_an_error():
    with pytest.raises(MameLabError, match=r"^finetune.train=\[\] "):
        freeze(vit(), FinetuneSettings("mine", []))


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("block.-1", "name a module such as blocks."),
        ("nothing_like_it", "name a module such as patch_embed, "),
        ("norm", "name a module such as norm, fc_norm"),
        ("(", "not a regular expression"),
    ],
)
def test_a_pattern_that_trains_nothing_is_an_error_and_changes_nothing(pattern, said):
    model = vit(class_token=False, global_pool="avg")
    before = trains(model), in_train_mode(model)
    with pytest.raises(MameLabError) as caught:
        freeze(model, FinetuneSettings("mine", ["head", pattern]))
    assert str(caught.value).startswith(f"finetune.train={pattern} ")
    assert said in str(caught.value)
    assert (trains(model), in_train_mode(model)) == before


def test_the_table_shows_patterns_as_they_are_and_counts_a_parameter_once():
    model = nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in "abcd"})
    out = io.StringIO()
    Console(width=80, file=out).print(freeze_table(freeze(model, FinetuneSettings("mine", ["a", "[ab]"]))))
    assert [line.split() for line in out.getvalue().splitlines() if "│" in line] == [
        ["│", "a", "│", "a", "│", "9", "│"],
        ["│", "[ab]", "│", "a,", "b", "│", "18", "│"],
    ]
    assert "trains 18 of 36 parameters (50.0%)" in out.getvalue()


@pytest.mark.parametrize("family", ["vit", "zero_shot", "eva02", "hf_vit", "videomae"])
def test_the_teacher_is_the_unmerged_model_of_the_start_and_copies_only_what_trains(family):
    model, x = build(family), inputs(family)
    expected = logits(model, x)
    mame_lab.apply(model, Ward(r=5))
    freeze(model, shipped("last_n"))
    teacher = distillation(model, FinetuneSettings("mine", distill=0.5)).teacher
    shared = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    copied = {name for name, tensor in teacher.named_parameters() if id(tensor) not in shared}
    assert copied == trains(model)
    assert trains(teacher) == in_train_mode(teacher) == set()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    assert torch.equal(logits(teacher, x), expected)
    assert not torch.equal(logits(mame_lab.remove(model).eval(), x), expected)


def test_no_teacher_is_none():
    assert distillation(vit(), FinetuneSettings("mine")) is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"distill": 1.5}, r"finetune.distill=1.5: set it to a value in \[0, 1\]"),
        ({"distill": -0.5}, r"finetune.distill=-0.5: set it"),
        ({"distill": 0.5, "temperature": 0.0}, "finetune.temperature=0.0: set it to a value above 0"),
    ],
)
def test_a_teaching_that_has_no_meaning_is_named(settings, said):
    with pytest.raises(MameLabError, match=rf"^{said}"):
        FinetuneSettings("mine", **settings)


class Modes(Callback):
    """Notes the modules in train mode at every training batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, task, *_):
        self.seen.append(in_train_mode(task.model))


def test_a_fit_leaves_the_frozen_part_alone(tmp_path):
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)),
        nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)),
    )
    freeze(model, FinetuneSettings("mine", ["-1"]))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = Modes()
    data = DataLoader(TensorDataset(torch.randn(16, 4), torch.randint(3, (16,))), 8)
    trainer = TrainerSettings(max_epochs=2, accelerator="cpu", enable_progress_bar=False).build(tmp_path, [], [modes])
    trainer.fit(Classification(model, 3, AdamW(), {}), data, data)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.startswith("1.")}
    assert modes.seen == [{"1", "1.0", "1.1", "1.2"}] * 4
