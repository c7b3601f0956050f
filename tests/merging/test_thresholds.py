"""Thresholds that learn: what runs is what is deployed, and the gradients are those of the documented surrogates."""

from dataclasses import replace

import pytest
import torch
from families import DEPTH, FAMILIES, build, images, inputs, logits
from made_tokens import rand

import mame_lab
from mame_lab import MameLabError
from mame_lab.merging import Drop, MaMe, ToMe, Ward
from mame_lab.merging.state import merge_step
from mame_lab.merging.thresholds import Learning, Thresholds, soft_count
from mame_lab.merging.tokens import Tokens
from mame_lab.models import family_of

TEMPERATURE = 0.1
TAUS = [0.9, 0.8, 1.0, 0.9, 0.85, 0.9]


def learning(base, taus, block=0):
    thresholds = Thresholds(taus, TEMPERATURE).double()
    return Learning(base=base, thresholds=thresholds, prop_attn=base.prop_attn, block=block)


def tokens(batch=3, patches=14, prefix=1):
    """Of uneven sizes, the last sample with padding."""
    generator = torch.Generator().manual_seed(0)
    x = rand(generator, batch, prefix + patches, 5) + 0.7
    size = torch.randint(1, 5, (batch, prefix + patches, 1), generator=generator).double()
    valid = torch.ones(batch, prefix + patches, dtype=torch.bool)
    valid[-1, -3:] = False
    return Tokens(x, x + rand(generator, *x.shape) / 4, size * valid[..., None], prefix, valid)


def test_the_soft_count_is_differentiable_in_tau_and_ignores_padding():
    best_BS = torch.tensor([[0.9, 0.5, 0.2], [0.7, 0.6, -torch.inf]], dtype=torch.float64)
    tau = torch.tensor(0.55, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda tau: soft_count(best_BS, tau, TEMPERATURE), tau)
    hard_B = (best_BS > tau).sum(1)
    assert torch.allclose(soft_count(best_BS, tau, 1e-6), hard_B.double())
    one = torch.sigmoid(torch.tensor(0.15 / TEMPERATURE)) + torch.sigmoid(torch.tensor(0.05 / TEMPERATURE))
    assert soft_count(best_BS, tau, TEMPERATURE)[1].item() == pytest.approx(one.item())


def test_thresholds_are_between_1_and_minus_1_and_one_stays_off():
    thresholds = Thresholds([0.9, 1.0, -0.5], 0.1)
    torch.testing.assert_close(thresholds(), torch.tensor([0.9, 1.0, -0.5]))
    thresholds.logit_D.data += 100
    assert thresholds().tolist() == [-1, 1, -1]
    thresholds.logit_D.data -= 20
    thresholds().sum().backward()
    assert thresholds.logit_D.grad.isfinite().all()


@pytest.mark.parametrize("base", [Ward(tau=0.3), MaMe(tau=0.7), Ward(tau=0.3, prop_attn=False)], ids=str)
def test_a_step_is_to_the_bit_that_of_the_method(base):
    learner = learning(base, [base.tau])
    expected = merge_step(learner.learned().of_block(0, 1), tokens(), None)
    plan, *made = merge_step(learner, tokens(), None)
    assert all(tensor.requires_grad for tensor in made[:2])
    for ours, theirs in zip(made, expected[1:], strict=True):
        assert ours is theirs or torch.equal(ours, theirs)
    assert torch.equal(plan.index_BK, expected[0].index_BK)


def naive(base, given, shares_BS):
    """A merge step source by source, where any share of a source goes to its target and the rest stays."""
    similarity_BTS = base.similarity(given)
    targets = base.targets(similarity_BTS, similarity_BTS.max(1).indices)
    results = []
    for b, shares_S in enumerate(shares_BS):
        x_NC, size_N, p = given.x_BNC[b], given.size_BN1[b, :, 0], given.prefix
        total_N, sums_NC, norms_N = size_N.clone(), x_NC * size_N[:, None], x_NC.norm(dim=1) * size_N
        for s, share in enumerate(shares_S):
            source = p + 2 * s + 1
            for t in range(similarity_BTS.shape[1]):
                weight = targets[b, t, s] if targets.dim() == 3 else float(targets[b, s] == t)
                mass, target = share * weight * size_N[source], p + 2 * t
                total_N = total_N.index_add(0, torch.tensor([target]), mass[None])
                sums_NC = sums_NC.index_add(0, torch.tensor([target]), (mass * x_NC[source])[None])
                norms_N = norms_N.index_add(0, torch.tensor([target]), (mass * x_NC[source].norm())[None])
        mean_NC, norm_N = sums_NC / total_N[:, None], norms_N / total_N
        is_source_N = torch.zeros(len(x_NC), dtype=torch.bool).index_fill(0, torch.arange(p + 1, len(x_NC), 2), True)
        y_NC = mean_NC * (norm_N / mean_NC.norm(dim=1))[:, None] ** base.keep_norm
        left_N = size_N.index_add(0, torch.arange(p + 1, len(x_NC), 2), -shares_S * size_N[p + 1 :: 2])
        stays_N = given.valid_BN[b].clone()
        stays_N[p + 1 :: 2] &= shares_S < 0.5
        results.append((torch.where(is_source_N[:, None], x_NC, y_NC)[stays_N],
                        torch.where(is_source_N, left_N, total_N)[stays_N]))  # fmt: skip
    return results


@pytest.mark.parametrize("base", [Ward(tau=0.3), MaMe(tau=0.7)], ids=str)
def test_the_gradient_is_that_of_the_share_that_would_move(base):
    """Central differences of the naive step in each gate, times the derivative of the sigmoid."""
    given, learner = tokens(), learning(base, [base.tau])
    base = learner.learned().of_block(0, 1)
    plan, x_BKC, size_BK1, _ = merge_step(learner, given, None)
    weight_BKC, weight_BK = (rand(torch.Generator().manual_seed(1), *shape) for shape in (x_BKC.shape, x_BKC.shape[:2]))

    def loss(pairs):
        return sum(
            (x_KC * weight_BKC[b, : len(x_KC)]).sum() + (size_K.square() * weight_BK[b, : len(size_K)]).sum()
            for b, (x_KC, size_K) in enumerate(pairs)
        )

    valid_BK = torch.ones(x_BKC.shape[:2]) > 0 if plan.valid_BK is None else plan.valid_BK
    ours = loss([(x_BKC[b][valid_BK[b]], size_BK1[b, valid_BK[b], 0]) for b in range(len(x_BKC))])
    (gradient,) = torch.autograd.grad(ours, learner.thresholds.logit_D)

    best_BS = base.similarity(given).amax(1)
    leaves_BS = (best_BS > base.tau).double()
    real_BS = best_BS > -torch.inf
    assert ours.item() == pytest.approx(loss(naive(base, given, leaves_BS)).item())
    sigma_BS = ((best_BS - base.tau) / TEMPERATURE).sigmoid()
    expected = 0.0
    for b, s in (real_BS & (leaves_BS == 0)).nonzero().tolist():
        ends = []
        for step in (1e-5, -1e-5):
            shares_BS = leaves_BS.clone()
            shares_BS[b, s] = step
            ends.append(loss(naive(base, given, shares_BS)))
        slope = (ends[0] - ends[1]) / 2e-5
        expected += slope * -sigma_BS[b, s] * (1 - sigma_BS[b, s]) / TEMPERATURE
    of_logit = -(1 - torch.tensor(base.tau).double() ** 2) / 2
    assert 2 < (real_BS & (leaves_BS == 0)).sum() < real_BS.sum()
    assert gradient.item() == pytest.approx((expected * of_logit).item(), rel=1e-5)


@pytest.mark.parametrize("family", ["vit", "eva02", "siglip", "hf_dinov2", "videomae"])
def test_a_model_runs_as_with_these_numbers_and_its_thresholds_get_gradients(family):
    model, x = build(family), inputs(family)
    learner = learning(Ward(tau=TAUS), TAUS)
    names = list(model.state_dict())
    mame_lab.apply(model, learner)
    assert list(model.state_dict()) == names
    made = logits(model, x)
    (gradient_D,) = torch.autograd.grad(made.square().sum(), learner.thresholds.logit_D, retain_graph=True)
    pooled = family == "vit"  # By the class token, which what merges in the last block does not reach any more.
    assert (gradient_D != 0).tolist() == [tau < 1 for tau in TAUS[:-1]] + [not pooled]
    leaving_DB = learner.leaving_DB()
    (cost_D,) = torch.autograd.grad(leaving_DB.sum(), learner.thresholds.logit_D)
    assert ((cost_D > 0) | torch.tensor(TAUS).eq(1)).all()

    learned = learner.learned()
    assert learned.tau == pytest.approx(TAUS)
    with torch.no_grad():
        ungraded = logits(model, x)
        assert torch.equal(logits(mame_lab.apply(model, learned), x), ungraded)
    torch.testing.assert_close(made, ungraded)  # Attention takes another kernel for a bias with a gradient.
    tokens_DB = torch.stack(family_of(model).trace(model, x))
    first_B = tokens_DB[:1] + leaving_DB[:1].round().long()
    assert torch.equal(leaving_DB.detach().double(), (torch.cat([first_B, tokens_DB[:-1]]) - tokens_DB).double())


def test_checkpointed_blocks_give_the_same_gradients():
    gradients = []
    for enable in (False, True):
        model, learner = build("vit"), learning(Ward(tau=0.8), [0.8] * DEPTH)
        mame_lab.apply(model, learner)
        model.set_grad_checkpointing(enable)
        loss = model(images()).square().sum() + learner.leaving_DB().square().sum()
        gradients.append(torch.autograd.grad(loss, learner.thresholds.logit_D)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_block_has_its_own_threshold(family):
    """So only the blocks before the first that merges see all tokens."""
    model, x = build(family), inputs(family)
    all_of = int(family_of(model).trace(model, x)[0][0])
    mame_lab.apply(model, tau=[1, 1, 0.3, 1, 0.1, 1])
    tokens_DB = torch.stack(family_of(model).trace(model, x))
    assert (tokens_DB[:2] == all_of).all()
    assert (tokens_DB[2] < all_of).all()
    assert torch.equal(tokens_DB[3], tokens_DB[2])
    assert (tokens_DB[4] < tokens_DB[3]).any()
    expected = logits(mame_lab.apply(model, tau=0.7), x)
    assert torch.equal(logits(mame_lab.apply(model, tau=[0.7] * DEPTH), x), expected)
    assert "methods" not in vars(mame_lab.remove(model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": [0.9, 2.0]}, r"mame.tau=\[0.9, 2.0\] is out of range"),
        ({"tau": "high"}, "mame.tau=high is out of range"),
        ({"tau": [0.9], "blocks": 3}, r"mame.blocks=3 contradicts mame.tau=\[0.9\]"),
        ({"tau": [0.9], "r": 3}, r"mame.r=3 contradicts mame.tau=\[0.9\]"),
        ({"tau": [0.9], "schedule": "linear"}, r"mame.schedule=linear contradicts mame.tau=\[0.9\]"),
        ({"speedup": 2.0, "schedule": "learned"}, "mame.speedup=2.0 and mame.schedule=learned do not go together"),
        ({"r": 3, "schedule": "learned"}, "mame.flops=null and mame.schedule=learned do not go together"),
        ({"flops": 0.5, "schedule": "learned", "batch": "union"}, "mame.batch=union has no counts"),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", [Ward, MaMe])
def test_contradictions(method, settings, message):
    with pytest.raises(MameLabError, match=message):
        method(**settings)


def test_what_cannot_be_learned_or_applied_says_so():
    with pytest.raises(MameLabError, match=r"mame.schedule=learned is not for mame=tome, which has no threshold"):
        ToMe(flops=0.5, schedule="learned")
    with pytest.raises(MameLabError, match=r"mame.schedule=learned is not for mame=drop"):
        replace(Drop(flops=0.5), schedule="learned")
    with pytest.raises(MameLabError, match=r"run train.py with it, or solve with schedule=adaptive"):
        mame_lab.solve(build("vit").float(), Ward(flops=0.5, schedule="learned"), images(2).float())
    with pytest.raises(MameLabError, match=r"mame.tau=\[0.9, 0.8\] has 2 entries: give one for each of 6 blocks"):
        mame_lab.apply(build("vit"), tau=[0.9, 0.8])


def test_a_list_of_ones_is_off():
    model = build("vit")
    assert mame_lab.apply(model, tau=[1] * DEPTH) is model
    assert "method" not in vars(model)
