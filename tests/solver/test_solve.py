"""Targets are met, or say how far one can go."""

import math
from types import SimpleNamespace

import pytest
import timm
import torch
from commands import compose_config
from families import DEPTH, build, images
from lightning.pytorch.plugins import Precision

import mame_lab
from mame_lab.measure import flops, speed
from mame_lab.merging import Drop, EViT, MaMe, ToMe, Ward
from mame_lab.merging.schedule import geometric_blocks
from mame_lab.models import apply, family_of, shared_copy
from mame_lab.runs import config
from mame_lab.solver import on_validation, solve

SHAPED = [Ward(flops=0.6), Ward(flops=0.6, schedule="constant"), ToMe(flops=0.6, schedule="linear"), Drop(flops=0.6)]
SEARCHED = [
    Ward(flops=0.6, solve="adaptive"),
    Ward(flops=0.6, solve="adaptive", batching="packed"),
    MaMe(flops=0.6, solve="adaptive"),
]


def share(model, method, x):
    """Of the multiply-adds, the mean over all images."""
    return flops.gflops(apply(shared_copy(model), method), x)[""] / flops.gflops(model, x)[""]


@pytest.mark.parametrize("method", SHAPED + SEARCHED, ids=str)
def test_a_share_of_the_multiply_adds_is_met(method):
    model, x = build("vit").float(), images(4).float()
    solved = solve.solve(model, method, x)
    assert not solved.has_target
    assert type(model) is type(build("vit"))
    assert share(model, solved, x) == pytest.approx(0.6, rel=0.02)
    if method in SHAPED:
        assert torch.equal(torch.tensor(solved.r), torch.tensor(solve.solve(model, method, x[:1] * 0).r))


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_base_patch16_224", "vit_small_patch14_dinov2"])
def test_half_the_multiply_adds_of_real_models(name):
    model = timm.create_model(name, img_size=224, num_classes=0)
    x = torch.zeros(1, 3, 224, 224)
    assert share(model, solve.solve(model, Ward(flops=0.5), x), x) == pytest.approx(0.5, rel=0.02)


def test_shapes_of_the_lists():
    model, x = build("vit").float(), images(2).float()
    lists = {s: solve.solve(model, Ward(flops=0.7, schedule=s), x).r for s in ("constant", "linear", "geometric")}
    merging = lists["constant"][: 2 * DEPTH // 3]
    assert max(merging) - min(merging) <= 1
    assert lists["constant"][2 * DEPTH // 3 :] == [0] * (DEPTH - len(merging))
    assert lists["linear"] == sorted(lists["linear"], reverse=True)
    assert [block for block, amount in enumerate(lists["geometric"]) if amount] == geometric_blocks(DEPTH, 0.7)
    remaining, fractions = math.prod(family_of(model).grid(model, x)), []
    for r in filter(None, lists["geometric"]):
        fractions.append(r / remaining)
        remaining -= r
    assert max(fractions) - min(fractions) < 2 / remaining


@pytest.mark.parametrize(("share", "first"), [(0.9, 4), (0.8, 3), (0.6, 1), (0.4, 0)])
def test_a_light_budget_spares_the_first_blocks(share, first):
    assert geometric_blocks(12, share) == list(range(first, 11))


def test_thresholds_found_on_copies_still_merge_them():
    model = build("vit").float()
    torch.nn.init.zeros_(model.pos_embed)
    solved = solve.solve(model, MaMe(flops=0.7, solve="adaptive"), torch.ones_like(images(2)).float())
    assert 0.99 < max(tau for tau in solved.tau if tau < 1) < 1


def test_without_pairs_more_than_half_is_removed_in_a_block():
    solved = solve.solve(build("vit").float(), EViT(flops=0.35, schedule="constant"), images(1).float())
    assert isinstance(solved.r, list)
    assert solved.r[1] > 64 // 2


@pytest.fixture
def applied(monkeypatch):
    """The methods that a search runs, in order."""
    methods = []
    monkeypatch.setattr(solve, "apply", lambda model, method: methods.append(method) or apply(model, method))
    return methods


def test_the_closest_of_the_candidates_is_kept(monkeypatch, applied):
    costs = iter([1.0, 0.3, 0.9, 0.61] + [0.9, 0.3] * solve.COST_STEPS)  # The unmerged model's comes first.
    monkeypatch.setattr(solve, "gflops", lambda *_: next(costs))
    solved = solve.solve(build("vit").float(), Ward(flops=0.6), images(2).float())
    assert len(applied) == 1 + solve.COST_STEPS
    assert solved is applied[2]


@pytest.mark.parametrize("solve_to", ["static", "adaptive"])
def test_only_the_blocks_that_were_asked_for_merge(solve_to):
    method, x = Ward(flops=0.6, solve=solve_to, blocks=[1, 3]), images(3).float()
    solved = solve.solve(build("vit").float(), method, x)
    assert [r != 0 for r in solved.schedule_for(DEPTH).amounts] == [block in (1, 3) for block in range(DEPTH)]


@pytest.mark.parametrize("prop_attn", [True, False])
@pytest.mark.parametrize("method", [Ward, MaMe])
def test_thresholds_are_where_the_batch_loses_its_budget(method, prop_attn, applied):
    """Of the sources of all samples the closest, wherever they are; attention is as the method has it."""
    model, x = build("vit"), images(4)
    solve.solve(model, method(flops=0.6, solve="adaptive", prop_attn=prop_attn), x)
    assert {each.prop_attn for each in applied} == {prop_attn}
    tried = list(zip(applied[::2], applied[1::2], strict=True))
    for budget, thresholds in tried[1:]:  # The first removes every source, which is no choice.
        with torch.inference_mode():  # A threshold is a similarity that occurs: another kernel would round it.
            tokens = torch.stack(family_of(model).trace(apply(shared_copy(model), thresholds), x))
        entered = torch.cat([torch.full((1, 4), 65), tokens[:-1]])
        assert ((entered - tokens).sum(1) - 4 * torch.tensor(budget.r)).abs().max() <= 1


def test_a_speed_up_is_measured(monkeypatch):
    """A machine on which the time is the multiply-adds and a constant."""
    model, x = build("vit").float(), images(2).float()

    def timed(calls, *_, **__):
        costs = {name: flops.gflops(call.func, x)[""] for name, call in calls.items()}
        return {name: [0.2 + 0.8 * cost / costs["unmerged"]] * 3 for name, cost in costs.items()}

    monkeypatch.setattr(speed, "time_interleaved", timed)
    solved = solve.solve(model, Ward(speedup=1.4), x)
    assert 1 / (0.2 + 0.8 * share(model, solved, x)) == pytest.approx(1.4, rel=0.04)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            Ward(flops=0.05),
            r"mame.flops=0.05 is out of reach: with mame.schedule=geometric at least 0.\d\d\d of",
        ),
        (Ward(speedup=40), r"mame.speedup=40 is out of reach"),
    ],
    ids=str,
)
def test_out_of_reach(method, message):
    with pytest.raises(mame_lab.MameLabError, match=message):
        solve.solve(build("vit").float(), method, images(2).float())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flops": 1.5}, "mame.flops=1.5 is out of range"),
        ({"speedup": 0.5}, "mame.speedup=0.5 is out of range"),
        ({"flops": 0.5, "r": 8}, "mame.r=8 and mame.flops=0.5 exclude each other"),
        ({"flops": 0.5, "tau": 0.9}, "mame.flops=0.5 and mame.tau=0.9 exclude each other"),
        ({"r": 8, "schedule": "geometric"}, "mame.schedule=geometric is not known here"),
        ({"r": 8, "schedule": "falling"}, "mame.schedule=falling is not known here: choose from constant, linear, di"),
    ],
    ids=str,
)
def test_contradictions(settings, message):
    with pytest.raises(mame_lab.MameLabError, match=message):
        Ward(**settings)


def test_an_unsolved_target_cannot_be_applied():
    with pytest.raises(mame_lab.MameLabError, match=r"apply what mame_lab.solve makes of them"):
        mame_lab.apply(build("vit"), flops=0.5)


def test_a_solved_schedule_can_be_given_back(tmp_path):
    solved = Ward(r=[0, 3, 5, 2, 1, 0], prop_attn=False)
    on_validation.save(solved, tmp_path)
    given = compose_config("eval", [f"hydra.searchpath=[file://{tmp_path}]", "mame=solved"])
    assert Ward(**config.plain(given.mame)) == solved


def trainer(first=True, told=None):
    """One of two processes; `told` is what the first one broadcasts, given to another."""
    said = lambda outcome: outcome if first else told  # noqa: E731
    strategy = SimpleNamespace(
        root_device=torch.device("cpu"), launcher=None, setup_environment=lambda: None, broadcast=said
    )
    return SimpleNamespace(strategy=strategy, precision_plugin=Precision(), world_size=2, is_global_zero=first)


@pytest.mark.parametrize("first", [True, False])
def test_validation_images_are_solved_on_and_the_first_process_tells(first, tmp_path, capsys):
    sampled = []
    data = SimpleNamespace(sample=lambda *asked: sampled.append(asked) or (images(2).float(), None))
    told = Drop(r=[1, 2, 3, 0, 0, 0])
    solved = on_validation.solve_on_validation(
        build("vit").float(), Drop(flops=0.6), data, trainer(first, told), tmp_path
    )
    assert not solved.has_target
    assert (solved == told) != first
    assert sampled == [(solve.CALIBRATION_IMAGES, "val")]
    assert (tmp_path / "mame" / "solved.yaml").exists() == first
    assert ("Solved: drop(r=[" in capsys.readouterr().out) == first


@pytest.mark.parametrize("first", [True, False])
def test_what_is_out_of_reach_for_the_first_process_ends_all(first, tmp_path):
    data = SimpleNamespace(sample=lambda *asked: (images(2).float(), None))
    asked = trainer(first, mame_lab.MameLabError("mame.flops=0.01 is out of reach: as the first process says"))
    with pytest.raises(mame_lab.MameLabError, match=r"mame.flops=0.01 is out of reach"):
        on_validation.solve_on_validation(build("vit").float(), Ward(flops=0.01), data, asked, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_speed_up_is_not_solved_on_many_devices(tmp_path):
    with pytest.raises(mame_lab.MameLabError, match=r"mame.speedup=1.4 is measured on one device, here are 2: "):
        on_validation.solve_on_validation(build("vit"), Ward(speedup=1.4), None, trainer(), tmp_path)
