"""Budgets through torch.export and ONNX, with any batch size: the same tokens stay, the logits are the same."""

from unittest.mock import patch

import onnxruntime
import pytest
import torch
from families import build, images
from torch import nn

import mame_lab
from mame_lab.merging import MaMe, ToMe, Ward

BUDGETS = {
    "list": Ward(r=[0.2, 5]),
    "paper, spread": MaMe(r=5, tau=0.5, blocks=1),
    "tome": ToMe(r=5, blocks=1),
}
BATCH = torch.export.Dim("batch", min=1, max=64)


class WithPlaces(nn.Module):
    """The logits, and for each merge step the places of the tokens that stay."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        method, places = self.model.method, []

        def plan(tokens, r):
            made = type(method).plan(method, tokens, r)
            places.append(made.index_BK)
            return made

        with patch.object(method, "plan", plan):
            logits_BK = self.model(x)
        return logits_BK, *places


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(model, (images(3).float(),), dynamic_shapes={"x": {0: BATCH}})


def assert_same(actual, expected, tolerance: float) -> None:
    (logits_BK, *places), (expected_logits_BK, *expected_places) = actual, expected
    assert [each.tolist() for each in places] == [each.tolist() for each in expected_places]
    torch.testing.assert_close(logits_BK, expected_logits_BK, rtol=tolerance, atol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "budget", "onnx"),
    [
        ("registers", "list", True),
        ("siglip", "paper, spread", False),
        ("eva02", "tome", False),
        pytest.param("siglip", "paper, spread", True, marks=pytest.mark.slow),
        pytest.param("vit_avg", "tome", True, marks=pytest.mark.slow),
        pytest.param("eva02", "list", True, marks=pytest.mark.slow),
    ],
)
def test_exports_for_any_batch_size(family, budget, onnx):
    model = WithPlaces(mame_lab.apply(build(family, depth=2).float(), BUDGETS[budget]))
    program = exported(model)
    if onnx:
        proto = torch.onnx.export(program, dynamo=True, verbose=False).model_proto
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        x = images(batch, seed=batch).float()
        expected = model(x)
        assert len(expected) > 1
        assert_same(program.module()(x), expected, 1e-6)
        if onnx:
            outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            assert_same([torch.from_numpy(each) for each in outputs], expected, 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("method", [Ward(tau=0.8, blocks=1), MaMe(tau=0.3, batching="union", blocks=1)], ids=str)
def test_adaptive_merging_is_not_exported_with_the_counts_of_one_batch(method):
    with pytest.raises(Exception, match="data-dependent"):
        exported(mame_lab.apply(build("vit", depth=1).float(), method))
