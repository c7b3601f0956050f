"""Learning from a teacher: the loss, what becomes of its gradient, and that the teacher is there but nowhere stored."""

import copy
import csv

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mame_lab.tasks.classification import Classification
from mame_lab.tasks.distillation import Distillation
from mame_lab.tasks.optim import AdamW
from mame_lab.training.trainer import TrainerSettings

TEACHER_BK = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]], dtype=torch.float64)
STUDENT_BK = torch.tensor([[1.0, 1.0, 0.0], [-1.0, 2.0, 0.0]], dtype=torch.float64)


def kl_by_hand(temperature):
    p_BK, q_BK = ((each / temperature).softmax(-1) for each in (TEACHER_BK, STUDENT_BK))
    return (p_BK * (p_BK / q_BK).log()).sum(-1).mean()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_distance_is_from_the_teacher_to_the_student(temperature):
    distillation = Distillation(lambda inputs: TEACHER_BK[inputs], 0.5, "", temperature)
    kl = distillation.kl(torch.tensor([0, 1]), STUDENT_BK)
    torch.testing.assert_close(kl, kl_by_hand(temperature))


@pytest.mark.parametrize(("share", "expected"), [(0.0, 2.0), (0.25, 1.5 + 0.25 * 9 * 0.7), (1.0, 9 * 0.7)])
def test_the_share_is_that_of_the_teacher(share, expected):
    loss = Distillation(lambda inputs: TEACHER_BK, share, "", 3.0).loss(torch.tensor(2.0), torch.tensor(0.7))
    assert float(loss) == pytest.approx(expected)


def test_the_student_alone_takes_a_gradient():
    teacher, student, x = nn.Linear(4, 3), nn.Linear(4, 3), torch.randn(5, 4)
    Distillation(teacher, 1.0, "").kl(x, student(x)).backward()
    assert teacher.weight.grad is None
    p_BK, q_BK = (model(x).softmax(-1) for model in (teacher, student))
    torch.testing.assert_close(student.weight.grad, (q_BK - p_BK).T @ x / 5)


def fit(folder, distillation, **settings):
    """One update of a linear model; returns the model before it, the batch, and the first row of the metrics."""
    torch.manual_seed(0)
    student, (inputs, labels_B) = nn.Linear(4, 3), (torch.randn(8, 4), torch.randint(3, (8,)))
    before = copy.deepcopy(student)
    task = Classification(student, 3, AdamW(label_smoothing=0.2), {}, distillation=distillation)
    trainer = TrainerSettings(1, accelerator="cpu", log_every_n_steps=1, enable_progress_bar=False, **settings)
    data = DataLoader(TensorDataset(inputs, labels_B), 8)
    trainer.build(folder, [CSVLogger(folder, name="", version="")]).fit(task, data, data)
    with (folder / "metrics.csv").open() as file:
        return before, (inputs, labels_B), next(csv.DictReader(file))


def test_a_fit_learns_from_both_and_stores_no_teacher(tmp_path):
    teacher = nn.Linear(4, 3).eval()
    unchanged = teacher.weight.clone()
    before, (inputs, labels_B), row = fit(tmp_path, Distillation(teacher, 0.3, "a1", 2.0))
    kl = F.kl_div((before(inputs) / 2).log_softmax(-1), (teacher(inputs) / 2).softmax(-1), reduction="batchmean")
    loss = 0.7 * F.cross_entropy(before(inputs), labels_B, label_smoothing=0.2) + 0.3 * 4 * kl
    assert (float(row["train/kl"]), float(row["train/loss"])) == pytest.approx((kl.item(), loss.item()))
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {"model.weight", "model.bias"}
    assert checkpoint["teacher"] == "a1"
    assert torch.equal(teacher.weight, unchanged)
    assert not teacher.training


def test_the_teacher_follows_the_task():
    student, teacher = nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    task = Classification(student, 3, AdamW(), {}, distillation=Distillation(teacher, 0.5, ""))
    task.double()
    assert {tensor.dtype for tensor in teacher.state_dict().values()} == {torch.float64, torch.int64}
    task.to("meta")
    assert all(tensor.is_meta for tensor in teacher.state_dict().values())
    assert set(task.state_dict()) == {"model.weight", "model.bias"}


def test_a_teacher_in_the_precision_of_the_run(tmp_path):
    teacher = Distillation(nn.Linear(4, 3).eval(), 0.5, "")
    assert float(fit(tmp_path, teacher, precision="bf16-mixed")[2]["train/kl"]) > 0
