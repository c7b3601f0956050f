"""A batch as one packed sequence gives what padded samples give, and computes no padding."""

import pytest
import torch
from families import DEPTH, FAMILIES, blocks, build, checkpointing, copies, features, images, inputs, logits, state
from torch import nn

import mame_lab
from mame_lab.merging import MaMe, Method, ToMe, Ward
from mame_lab.models import family_of

# Families with a class token, registers, average pooling and attention pooling.
SOME = ("vit", "registers", "vit_avg", "siglip")
METHODS = {"ward": (Ward, {"tau": 0.8}), "mame": (MaMe, {"tau": 0.85, "blocks": DEPTH})}
CASES = [
    pytest.param(family, *METHODS[name], prop_attn, id=f"{family}-{name}-{prop_attn}")
    for family in FAMILIES
    for name in METHODS
    for prop_attn in (True, False)
    if family in SOME or (name == "ward" and prop_attn)
]


@torch.no_grad()
def outputs(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """All that a model gives: logits, features, and the tokens after each block."""
    last, by_block = features(model, x)
    return {"logits": logits(model, x), "features": last} | {f"block {i}": y for i, y in enumerate(by_block)}


def assert_equal(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    for key, value in expected.items():
        assert actual[key].shape == value.shape
        assert (actual[key] - value).norm() <= tolerance * value.norm(), key


@pytest.mark.parametrize(("family", "method", "settings", "prop_attn"), CASES)
def test_packed_equals_padded(family, method, settings, prop_attn):
    model, x = build(family), inputs(family, 5)
    expected = outputs(mame_lab.apply(model, method(**settings, prop_attn=prop_attn)), x)
    mame_lab.apply(model, method(**settings, prop_attn=prop_attn, batching="packed"))
    assert_equal(outputs(model, x), expected, 1e-12)
    with torch.no_grad():
        tokens_B, counts = state(model, x).valid_BN.sum(1), family_of(model).trace(model, x)
    assert tokens_B.unique().numel() > 2
    assert torch.equal(counts[-1], tokens_B)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_padded_in_float32(family):
    model, x = build(family).float(), inputs(family, 5).float()
    expected = outputs(mame_lab.apply(model, tau=0.8), x)
    assert_equal(outputs(mame_lab.apply(model, tau=0.8, batching="packed"), x), expected, 1e-5)


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("x", [images(1), images(1).expand(3, -1, -1, -1)], ids=["one sample", "equal samples"])
def test_samples_that_keep_equally_many_need_no_packing(family, x):
    model = build(family)
    expected = outputs(mame_lab.apply(model, tau=0.8), x)
    assert_equal(outputs(mame_lab.apply(model, tau=0.8, batching="packed"), x), expected, 0)


def tokens_in_mlps(model: nn.Module, x: torch.Tensor) -> list[int]:
    """The tokens of the whole batch, padding included, that enter the MLP of each block."""
    seen, mlps = [], [getattr(block, "mlp", None) or block.intermediate for block in blocks(model)]
    hooks = [
        mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0] * args[0].shape[1])) for mlp in mlps
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_no_padding_is_computed_but_in_training(family):
    model, x = mame_lab.apply(build(family), tau=0.8, batching="packed"), inputs(family, 5)
    counts = family_of(model).trace(model, x)
    true, padded = [int(tokens_B.sum()) for tokens_B in counts], [5 * int(tokens_B.max()) for tokens_B in counts]
    assert tokens_in_mlps(model, x) == true
    assert all(a < b for a, b in zip(true, padded, strict=True))
    assert tokens_in_mlps(model.train(), x) == padded
    model.eval()
    blocks(model)[-1].train()  # As where the last layer alone trains.
    assert tokens_in_mlps(model, x) == padded
    assert tokens_in_mlps(mame_lab.apply(model.eval(), tau=0.8), x) == padded


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    logits(model, x).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("mode", ["train", "eval", "checkpointing"])
def test_gradients_are_those_of_padded_samples(family, mode):
    """Of the same computation while the model trains."""
    model, x = build(family).train(mode == "train"), inputs(family)
    checkpointing(model, mode == "checkpointing")
    expected = gradients(mame_lab.apply(model, MaMe(tau=0.8, blocks=DEPTH)), x)
    packed = gradients(mame_lab.apply(model, MaMe(tau=0.8, blocks=DEPTH, batching="packed")), x)
    assert len(packed) == len(expected) > 20
    for actual, gradient in zip(packed, expected, strict=True):
        assert (actual - gradient).norm() <= (0 if mode == "train" else 1e-11) * gradient.norm()


@pytest.mark.parametrize("method", [Ward(tau=0.8, batching="packed"), ToMe(r=5)], ids=lambda method: method.method)
@pytest.mark.parametrize("family", ["vit", "eva02"])
@torch.no_grad()
def test_unfused_attention_is_refused(family, method):
    model = mame_lab.apply(build(family), method)
    for block in model.blocks:
        block.attn.fused_attn = False
    with pytest.raises(mame_lab.MameLabError, match=r"fused attention.* TIMM_FUSED_ATTN"):
        model(images())
    for other in (MaMe(tau=0.8), MaMe(r=5)):
        assert mame_lab.apply(model, other)(images()).isfinite().all()


@pytest.mark.parametrize("method", [Ward, MaMe])
def test_a_budget_is_not_packed(method):
    with pytest.raises(mame_lab.MameLabError, match=r"^mame.batching=packed is for adaptive merging"):
        method(r=5, batching="packed")


class Keys(MaMe):
    """MaMe on attention keys; remembers what it was given."""

    needs = frozenset({"keys", "input"})

    def similarity(self, tokens):
        self.given = [*getattr(self, "given", ()), tokens]
        return super().similarity(tokens._replace(x_BNC=tokens.mean_key()))


def keys_by_hand(model: nn.Module, index: int, input_BNC: torch.Tensor) -> torch.Tensor:
    """Mean over heads of the normalised keys of one block."""
    attn = model.blocks[index].attn
    _, k_BNC, _ = attn.qkv(input_BNC).chunk(3, -1)
    return attn.k_norm(k_BNC.unflatten(2, (attn.num_heads, -1))).mean(2)


@pytest.mark.parametrize("batch", ["per_sample", "packed"])
@pytest.mark.parametrize("qk_norm", [False, True])
@torch.no_grad()
def test_keys_are_those_of_the_models_attention(qk_norm, batch):
    model, method = build("registers", qk_norm=qk_norm), Keys(tau=0.8, batching=batch)
    for parameter in model.blocks[0].attn.k_norm.parameters():
        parameter.uniform_(0.5, 2)
    mame_lab.apply(model, method)(images(5))
    for index, tokens in enumerate(method.given):
        expected = keys_by_hand(model, index, tokens.input_BNC)
        valid_BN = torch.ones(expected.shape[:2], dtype=torch.bool) if tokens.valid_BN is None else tokens.valid_BN
        torch.testing.assert_close(tokens.mean_key()[valid_BN], expected[valid_BN], rtol=1e-12, atol=1e-12)
    assert len(method.given) == 2 * DEPTH // 3
    assert method.given[-1].valid_BN is not None


@torch.no_grad()
def test_packed_on_keys_equals_padded():
    model, x = build("registers"), images(5)
    expected = outputs(mame_lab.apply(model, Keys(tau=0.85)), x)
    assert_equal(outputs(mame_lab.apply(model, Keys(tau=0.85, batching="packed")), x), expected, 1e-12)


@pytest.mark.parametrize("method", [Ward(tau=0.8), ToMe(r=5)], ids=lambda method: method.method)
@torch.no_grad()
def test_a_step_is_given_what_its_block_computed(method: Method):
    """Inputs are what attention was given, tokens what the MLP gets where nothing merges."""
    model, seen = build("registers"), {}
    plan = type(method).plan

    class Seen(type(method)):
        needs = method.needs | {"input"}

        def plan(self, tokens, r):
            seen["tokens"] = tokens
            return plan(self, tokens, r)

    model.blocks[0].attn.register_forward_pre_hook(lambda _, args: seen.update(input=args[0]))
    mame_lab.apply(
        model, Seen(**{key: value for key, value in vars(method).items() if key != "method"} | {"blocks": 1})
    )
    x = images()
    model(x)
    assert torch.equal(seen["tokens"].input_BNC, seen["input"])
    assert seen["tokens"].prefix == model.num_prefix_tokens
    assert (seen["tokens"].size_BN1 == 1).all()
    norm2 = {}
    model.blocks[0].norm2.register_forward_pre_hook(lambda _, args: norm2.update(x=args[0]))
    mame_lab.remove(model)(x)
    assert torch.equal(seen["tokens"].x_BNC, norm2["x"])


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", SOME)
@torch.no_grad()
def test_packed_equals_padded_in_half_precision(family, dtype, device):
    """On copies, whose selection has a margin. A GPU packs with one variable-length kernel."""
    model = build(family)
    x = copies(model).to(device, dtype)
    model = model.to(device, dtype)
    expected = outputs(mame_lab.apply(model, tau=0.9), x)
    actual = outputs(mame_lab.apply(model, tau=0.9, batching="packed"), x)
    assert any(plan is not None and plan.valid_BK is not None for plan in family_of(model).plans(model, x))
    assert_equal(actual, expected, 4 * torch.finfo(dtype).eps)
