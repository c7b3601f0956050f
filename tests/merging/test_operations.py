"""How few operations a merge step takes, and that it waits for nothing."""

import pytest
import torch
from made_tokens import advance
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mame_lab.merging import MaMe, ToMe, Ward
from mame_lab.merging.state import MergeState, merge_step
from mame_lab.merging.tokens import Tokens

# Views in all but name, and what is computed of types alone.
NO_KERNELS = (torch.ops.aten._unsafe_view.default, torch.ops.aten.promote_types.default)
# What a GPU is waited for.
WAITS = ("_local_scalar_dense", "item", "aten.nonzero.default", "masked_select", "is_nonzero", "unique")


class Operations(TorchDispatchMode):
    """Writes down the operations on tensors, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func not in NO_KERNELS:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def tokens(padded: bool = False, channels: int = 64, batch: int = 3) -> Tokens:
    """Those of a step after the first: of uneven sizes, with an attention bias."""
    generator = torch.Generator().manual_seed(0)
    x_BNC = torch.randn(batch, 41, channels, generator=generator)
    qkv_3BHND = torch.randn(batch, 41, 3, 4, channels // 4, generator=generator).permute(2, 0, 3, 1, 4)
    valid_BN = torch.arange(41) < torch.tensor([41, 38, 40][:batch])[:, None]
    size_BN1 = (1 + torch.arange(41.0) % 3).expand(batch, 41)[..., None] * (valid_BN[..., None] if padded else 1)
    real = (41, 38, 40)[:batch] if padded else None
    bias_B11N, numbers = size_BN1.log().mT[:, None], torch.arange(batch * 41 + 1)
    looks = {"key_BHND": qkv_3BHND[1], "query_BHND": qkv_3BHND[0], "scale": 0.25, "bias_B11N": bias_B11N, "real": real}
    return Tokens(x_BNC, x_BNC, size_BN1, 1, valid_BN if padded else None, **looks, numbers=numbers)


@pytest.mark.parametrize(
    ("method", "most"),
    [
        (Ward(r=4), 30),
        (ToMe(r=4), 23),
        (MaMe(r=4), 22),
        (MaMe(r=4, tau=0.1), 38),
        (Ward(tau=0.2), 35),  # Samples become uneven.
        (MaMe(tau=0.1), 42),
    ],
    ids=str,
)
def test_a_step_is_few_operations(method, most):
    given = tokens()
    with torch.no_grad(), Operations() as operations:
        merge_step(method, given, method.r)
    assert len(operations.names) <= most, operations.names


@pytest.mark.parametrize(
    ("method", "most"), [(Ward(tau=0.2), 45), (MaMe(tau=0.1), 47), (Ward(r=4), 40), (ToMe(r=4), 28)], ids=str
)
def test_a_step_of_padded_samples_is_more(method, most):
    given = tokens(padded=True)
    with torch.no_grad(), Operations() as operations:
        merge_step(method, given, method.r)
    assert len(operations.names) <= most, operations.names


@pytest.mark.parametrize(("method", "most"), [(Ward(tau=0.2), 32), (MaMe(tau=0.1), 38)], ids=str)
def test_a_step_by_threshold_of_one_sample_is_fewer(method, most):
    given = tokens(batch=1)
    with torch.no_grad(), Operations() as operations:
        plan, *_ = merge_step(method, given, None)
    assert plan.layout.source_R.shape[0]
    assert len(operations.names) <= most, operations.names


@pytest.mark.parametrize("method", [Ward(r=4), ToMe(r=4), MaMe(r=4), MaMe(r=4, tau=0.1)], ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_a_budget_waits_for_nothing(method, padded):
    given = tokens(padded)
    with torch.no_grad(), Operations() as operations:
        merge_step(method, given, method.r)
    assert [name for name in operations.names if any(wait in name for wait in WAITS)] == []


class Largest(TorchDispatchMode):
    """The most elements that a tensor has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.elements = max(
            self.elements, *(each.numel() for each in tree_leaves(result) if isinstance(each, Tensor)), 0
        )
        return result


@pytest.mark.parametrize("method", [Ward(r=4), ToMe(r=4), MaMe(r=4), MaMe(r=4, tau=0.1), Ward(tau=0.2)], ids=str)
def test_nothing_grows_with_the_square_of_all_tokens(method):
    given = tokens(channels=8)
    with torch.no_grad(), Largest() as largest:
        merge_step(method, given, method.r)
    assert largest.elements <= 3 * (41 + 2 * 20) * 8 < 3 * 41 * 41


@pytest.mark.parametrize("method", [Ward(tau=1 - 1e-9), MaMe(tau=1 - 1e-9)], ids=str)
@pytest.mark.parametrize("pack", [False, True])
def test_where_nothing_is_removed_the_state_stays_as_it_was(method, pack):
    x, start = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(0)), MergeState(1, True, pack)
    y, state = advance(start, method, x, None)
    assert y is x
    assert state._replace(plans=()) == start
