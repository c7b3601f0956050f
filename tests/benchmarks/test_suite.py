"""The suite: each row is there once it is measured, what cannot be measured is named, and the table is the CSV."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from commands import ROOT
from torch import nn
from torch.nn.attention import SDPBackend

from mame_lab.benchmarks.merge_steps import MergeSteps
from mame_lab.benchmarks.suite import attention, families, timing
from mame_lab.benchmarks.suite import run as suite
from mame_lab.benchmarks.suite.rows import Rows, SuiteRow, markdown, read
from mame_lab.benchmarks.suite.settings import Suite
from mame_lab.errors import MameLabError
from mame_lab.merging import Ward
from mame_lab.models.compilation import compile_models

MACHINE = timing.Machine(torch.device("cpu"), torch.float32, 10.0, 0.01)
SETTINGS = {"img_size": 32, "patch_size": 4, "depth": 4, "embed_dim": 48, "num_heads": 3}
TINY = families.of_timm("tiny", "vit_tiny_patch16_224", 32, 4, 4, **SETTINGS)


def test_a_forward_pass_has_a_row_for_each_arm_and_for_its_steps():
    rows = list(timing.forward(MACHINE, TINY, 2))
    assert [(row.what, row.arm) for row in rows] == [
        *(("forward", arm) for arm in ("unmerged", "ward", "mame", "tome")),
        *(("merge steps", arm) for arm in ("ward", "mame", "tome")),
    ]
    unmerged, ward, *_ = rows
    assert (unmerged.speedup, unmerged.ideal, unmerged.batch) == (1, 1, 2)
    assert ward.ideal > 1.2
    assert all(row.ms > 0 for row in rows)
    assert all(row.bandwidth > 0 for row in rows[4:])


def test_thresholds_run_padded_and_packed_at_the_same_cost():
    _, padded, packed = timing.adaptive(MACHINE, TINY, 8)
    assert (padded.arm, packed.arm) == ("ward, per_sample", "ward, packed")
    assert padded.ideal == packed.ideal == pytest.approx(1 / timing.ADAPTIVE_COST, rel=0.1)


def test_thresholds_compiled_stand_beside_the_compiled_unmerged_model(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(timing, "compile_models", partial(compile_models, graphs=False))
    assert [row.arm for row in timing.adaptive_compiled(MACHINE, TINY, 8)] == ["unmerged", "ward, per_sample"]


def test_every_way_of_attention_gives_the_same_and_what_refuses_is_named(monkeypatch, capsys):
    given = attention.Inputs.random(MACHINE, 2, 3, 7)
    for way in (attention.in_channels, attention.masked_by(SDPBackend.MATH)):
        torch.testing.assert_close(way(given), attention.masked(given))
    assert not torch.allclose(attention.unbiased(given), attention.masked(given))
    cudnn = {"cuDNN": attention.masked_by(SDPBackend.CUDNN_ATTENTION)}
    monkeypatch.setattr(attention, "ways", lambda device: ways | cudnn)
    ways = {"no bias": attention.unbiased, "mask": attention.masked}
    assert [row.arm for row in attention.attention(MACHINE, 3, 7, 2)] == list(ways)
    assert capsys.readouterr().out.startswith("left out: attention by cuDNN (")


def test_a_training_step_leaves_only_the_head_to_train():
    assert [row.arm for row in timing.training(MACHINE, TINY, 2)] == ["unmerged", "ward"]


def test_a_denoising_step_sets_ward_beside_tome():
    pytest.importorskip("diffusers")
    build = lambda: families.unet((32, 64, 64, 64), (2, 4, 4, 4), 16)  # noqa: E731
    rows = list(timing.denoising(MACHINE, "U-Net", build, 16, 16))
    assert [row.arm for row in rows] == ["unmerged", "ward", "tomesd"]


def test_what_steps_have_to_move_is_tokens_keys_and_what_remains():
    model, x = TINY.build().eval(), TINY.inputs(2, torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        steps = MergeSteps(model, Ward(r=8, blocks=1), x)
    assert steps.least_bytes() == 2 * 48 * 4 * (65 + 65 + 57)


def test_each_row_is_written_as_it_comes_and_a_fault_leaves_the_others(tmp_path, capsys):
    def rows(machine):
        yield SuiteRow("a", 1, "forward", "unmerged", 2.0, 1.0, 1.0, 3.5)
        assert len(read(tmp_path / "suite.csv")) == 1
        raise ModuleNotFoundError("no", name="diffusers")

    def uncompiled(machine):
        raise RuntimeError("\nno C++ compiler\nset VERBOSE")

    found = Rows(tmp_path)
    assert suite._time(suite.Item("a", rows), MACHINE, found, float("inf")) == "diffusers is not installed"
    assert suite._time(suite.Item("b", rows), MACHINE, found, 0) == "no time left"
    assert suite._time(suite.Item("c", uncompiled), MACHINE, found, float("inf")) == "no C++ compiler"
    assert read(tmp_path / "suite.csv") == found.found
    assert capsys.readouterr().out == "a  1  forward  unmerged  2  1.00x  1.00x  4\n"


def test_the_most_important_comes_first_on_a_gpu_and_all_families_come():
    names = [item.name for item in suite.items(small=False)]
    assert names[0] == "ViT-B/16 224, batch 64, forward"
    assert {name.split(",")[0] for name in names} == {
        "ViT-B/16 224", "SD 2.1 U-Net", "ViT-L/16 384", "SigLIP2-B/16 512", "DINOv2-B/14 518", "VideoMAE-L",
        "attention",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "subject",
    [families.VIT_B, families.SIGLIP, families.DINOV2, families.VIDEOMAE],
    ids=lambda subject: subject.name,
)
def test_the_models_are_those_that_they_are_called(subject):
    model = subject.build()
    depth = sum(isinstance(module, nn.ModuleList) and len(module) == subject.depth for module in model.modules())
    assert depth or len(model.blocks) == subject.depth


def test_markdown_is_what_the_csv_says(tmp_path):
    row = SuiteRow("ViT", 8, "merge steps", "ward", 1.5, None, None, None, 0.25)
    assert markdown([row]).splitlines()[2:] == ["| ViT | 8 | merge steps | ward | 1.5 |  |  |  |  | 25% |"]


def test_minutes_are_positive():
    with pytest.raises(MameLabError, match=r"benchmark\.minutes=0"):
        Suite(minutes=0)


MISSING = ("rich", "matplotlib", "wandb", "altair", "vl_convert", "jinja2", "transformers", "diffusers", "open_clip")


@pytest.mark.slow
def test_the_command_runs_with_few_packages_and_stops_in_time(tmp_path):
    """As on a machine that has only torch, timm, lightning, torchmetrics, scikit-learn and hydra."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({MISSING}))\n"
        "import importlib.util as u\nfind = u.find_spec\n"
        f"u.find_spec = lambda name, package=None: None if name.split('.')[0] in {MISSING} else find(name, package)\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "eval.py", "benchmark=suite", "benchmark.minutes=0.3", f"hydra.run.dir={out}"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert read(out / "suite.csv")
    assert (out / "suite.md").read_text().startswith("| model |")
    assert "no time left" in done.stdout
