"""train.py with a teacher: where it comes from, that a resumed run has the same, and what has none."""

import shutil

import pytest
import torch
from commands import TINY

from mame_lab import MameLabError
from mame_lab.training import resume

FAST = [
    *(override for override in TINY if "max_epochs" not in override and "limit_train" not in override),
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=4",
    "trainer.log_every_n_steps=1",
    "trainer.checkpoint_every_n_steps=3",
    "dataset.num_workers=0",
    "mame.r=20",
    "optim.layer_decay=0.5",
]
TAUGHT = [*FAST, "finetune=last_n", "finetune.n=2", "finetune.distill=0.5", "finetune.temperature=2"]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A folder for the checkpoint of a run, whose head is trained."""
    return tmp_path_factory.mktemp("head")


@pytest.fixture
def best(head, entry_point):
    """model.weights=CKPT, the checkpoint of a run."""
    path = head / "checkpoints/best.ckpt"
    if not path.exists():
        entry_point("train", head, *TINY, "mame=off")
    return f"model.weights={path}"


def last(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


def rows(folder):
    """All rows of the metrics but the result's: that one holds timings."""
    return (folder / "metrics.csv").read_text().splitlines()[:-1]


def stopped_at(step, monkeypatch):
    """The next run stops before this update."""
    start = resume.PerStepSeed.on_train_batch_start

    def on_train_batch_start(self, trainer, *arguments):
        if trainer.global_step == step:
            raise RuntimeError("killed")
        start(self, trainer, *arguments)

    monkeypatch.setattr(resume.PerStepSeed, "on_train_batch_start", on_train_batch_start)


@pytest.mark.slow
def test_a_resumed_run_has_the_teacher_of_its_start(entry_point, best, tmp_path, monkeypatch):
    entry_point("train", tmp_path / "whole", *TAUGHT, best)
    assert "train/kl" in rows(tmp_path / "whole")[0]
    with monkeypatch.context() as patched:
        stopped_at(7, patched)
        with pytest.raises(RuntimeError, match="killed"):
            entry_point("train", tmp_path / "killed", *TAUGHT, best)
    assert last(tmp_path / "killed")["global_step"] == 6
    entry_point("train", tmp_path / "killed", *TAUGHT, best, "resume=auto")
    whole, resumed = (last(tmp_path / name) for name in ("whole", "killed"))
    assert resumed["global_step"] == whole["global_step"] == 8
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert set(whole["state_dict"]) == set(torch.load(best.partition("=")[2])["state_dict"])


def test_a_run_does_not_go_on_with_another_teacher(entry_point, best, tmp_path):
    file = shutil.copy(best.partition("=")[2], tmp_path / "teacher.ckpt")
    taught = [*TAUGHT, f"model.weights={file}"]
    entry_point("train", tmp_path / "run", *taught)
    content = torch.load(file, weights_only=True)
    content["state_dict"]["model.head.bias"] += 1
    torch.save(content, file)
    with pytest.raises(MameLabError, match=r"^finetune.distill: the teacher has not the weights .*run started"):
        entry_point("train", tmp_path / "run", *taught, "resume=auto")


def test_who_has_nothing_to_teach_is_named(entry_point, best, tmp_path):
    has_none = r"^finetune.distill=0.5 has no teacher, for the weights of the head are random: give model.weights=CKPT"
    cases = [
        ([], has_none),
        (["model.pretrained=true"], has_none),
        ([best, "model.num_classes=0"], has_none),
        (
            [best, "trainer=fsdp"],
            "^finetune.distill=0.5 and trainer.strategy=fsdp exclude each other, .* whole weights",
        ),
    ]
    for overrides, said in cases:
        with pytest.raises(MameLabError, match=said) as error:
            entry_point("train", tmp_path, *TAUGHT, *overrides)
        assert "\n" not in str(error.value)
