"""What a method sees of the attention of its block: keys, queries, and how the class token attends."""

import pytest
import torch
from families import DEPTH, build, inputs, logits
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import mame_lab
from mame_lab.merging import Ward

FAMILIES = ("vit", "registers", "eva02", "dinov3", "hf_dinov2")


class Looks(Ward):
    """Remembers the tokens of all steps."""

    needs = frozenset({"keys", "queries"})

    def plan(self, tokens, r):
        self.seen = [*getattr(self, "seen", ()), tokens]
        return super().plan(tokens, r)


class Calls(TorchFunctionMode):
    """Remembers what PyTorch's attention is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.seen.append((*args[:2], kwargs.get("attn_mask"), kwargs.get("scale")))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def looked(family: str, **settings):
    """The tokens of the steps of all blocks, and what PyTorch's attention was given in each."""
    model, method = build(family), Looks(**settings, blocks=DEPTH)
    with Calls() as calls:
        logits(mame_lab.apply(model, method), inputs(family))
    return method.seen, calls.seen


@pytest.mark.parametrize("settings", [{"r": 5}, {"tau": 0.8}], ids=["r", "tau"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_class_attention_is_that_of_the_model(family, settings):
    seen, calls = looked(family, **settings)
    assert len(seen) == len(calls) == DEPTH
    for tokens, (q, k, mask, scale) in zip(seen, calls, strict=True):
        assert torch.equal(tokens.query_BHND, q)
        assert torch.equal(tokens.key_BHND, k)
        logits_BHNN = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale) + (0 if mask is None else mask)
        expected_BN = logits_BHNN.softmax(-1)[:, :, 0].mean(1)
        torch.testing.assert_close(tokens.class_attention(), expected_BN, rtol=1e-12, atol=1e-14)
    assert seen[-1].bias_B11N is not None
    assert (seen[-1].valid_BN is None) == ("r" in settings)
    if "tau" in settings:
        assert (tokens.class_attention()[~tokens.valid_BN] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_same_where_samples_are_packed(family):
    padded, _ = looked(family, tau=0.8)
    packed, _ = looked(family, tau=0.8, batching="packed")
    assert any(tokens.valid_BN is not None for tokens in packed)
    for one, other in zip(packed, padded, strict=True):
        torch.testing.assert_close(one.class_attention(), other.class_attention(), rtol=1e-11, atol=1e-14)
