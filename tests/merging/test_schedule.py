import pytest
from omegaconf import OmegaConf

from mame_lab import MameLabError
from mame_lab.merging import ATC, MCTF, METHODS, Drop, EViT, MaMe, PiToMe, ToFu, ToMe, Ward


@pytest.mark.parametrize(
    ("settings", "depth", "patches", "removed"),
    [
        ({"r": 8}, 12, 196, [8] * 8 + [0] * 4),
        ({"r": 8, "blocks": 3}, 4, 64, [8, 8, 8, 0]),
        ({"r": 8, "blocks": [1, -1]}, 4, 64, [0, 8, 0, 8]),
        ({"r": [0, 1, 2, 0.5]}, 4, 64, [0, 1, 2, 30]),
        ({"r": 0.1, "blocks": 4}, 4, 100, [10, 9, 8, 7]),
        ({"tau": 0.9}, 3, 64, [None, None, 0]),
        ({}, 5, 64, [None, None, None, 0, 0]),
        ({"r": 0}, 3, 64, [0, 0, 0]),
        ({"tau": 1}, 3, 64, [0, 0, 0]),
        ({"r": 0.29, "blocks": 1}, 2, 100, [29, 0]),
        ({"r": 16, "blocks": 12, "clamp": True}, 12, 196, [16] * 11 + [10]),
        ({"r": 6, "schedule": "linear"}, 4, 64, [12, 8, 4, 0]),
        ({"r": 6, "schedule": "linear", "blocks": 3}, 4, 64, [12, 6, 0, 0]),
        ({"r": 6, "schedule": "linear", "blocks": [-1, 1]}, 4, 64, [0, 12, 0, 0]),
        ({"r": 0.3, "schedule": "linear"}, 3, 100, [50, 15, 0]),
        ({"r": 8, "schedule": "diffrate"}, 12, 256, [0, 1, 9, 10, 7, 4, 6, 7, 9, 12, 4, 26]),
        ({"r": 8, "schedule": "diffrate"}, 3, 256, [0, 5, 26]),
    ],
)
def test_tokens_that_leave(settings, depth, patches, removed):
    assert MaMe(**settings).schedule_for(depth).walk(patches) == removed


@pytest.mark.parametrize(
    ("settings", "removed"),
    [
        ({}, [15, 11, 9, 6]),
        ({"blocks": 1}, [32, 0, 0, 0]),
        ({"tau": 0.9}, [None] * 4),
        ({"tau": 0.9, "batching": "packed"}, [None] * 4),
        ({"tau": 0.9, "blocks": 1}, [None, 0, 0, 0]),
        ({"blocks": 0}, [0] * 4),
        ({"tau": 1}, [0] * 4),
        ({"r": 0}, [0] * 4),
        ({"r": 8}, [8, 8, 0, 0]),
    ],
)
def test_ward_without_a_budget(settings, removed):
    assert Ward(**settings).schedule_for(4).walk(64) == removed


TWELVE_TIMES_16 = [16] * 11 + [10]


@pytest.mark.parametrize(
    ("method", "depth", "removed"),
    [
        (ToMe(r=16), 12, TWELVE_TIMES_16),
        (ToFu(r=16), 12, TWELVE_TIMES_16),
        (PiToMe(r=16), 12, TWELVE_TIMES_16),
        (MCTF(r=16), 12, [0] + [16] * 11),
        (ToMe(r=16, blocks=2), 12, [16, 16] + [0] * 10),
        (ToMe(r=0.5), 3, [98, 49, 24]),
        (EViT(r=0.3), 12, [0, 0, 0, 58, 0, 0, 41, 0, 0, 29, 0, 0]),
        (ATC(r=60), 12, [0, 0, 0, 60, 0, 0, 60, 0, 0, 60, 0, 0]),
        (ATC(r=[0, 195, 0]), 3, [0, 195, 0]),
        (EViT(r=10, schedule="linear"), 3, [20, 10, 0]),
        (EViT(r=10), 2, [10, 10]),
    ],
)
def test_a_published_method_merges_where_it_is_published(method, depth, removed):
    assert method.schedule_for(depth).walk(196) == removed


def test_what_a_method_truncates_of_its_own_accord_is_logged(caplog):
    ToMe(r=16).schedule_for(12).walk(196, warn=True)
    assert str(TWELVE_TIMES_16) in caplog.text


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_shallowest_models_merge_in_one_block_at_the_least(name, depth):
    """A U-Net with self-attention at one resolution is such a model."""
    for schedule in (None, "linear", "diffrate"):
        assert not METHODS[name](r=0.5, schedule=schedule).schedule_for(depth).off


def test_a_fraction_that_is_no_token_is_logged(caplog):
    Ward(r=0.01).schedule_for(3).walk(64, warn=True)
    assert "mame.r=(0.01, 0.01, 0) merges nowhere: of 64 patch tokens that is none" in caplog.text
    caplog.clear()
    for settings in ({"r": 0.02}, {"r": 0}, {"r": 8, "blocks": 0}, {"tau": 0.9}):
        Ward(**settings).schedule_for(3).walk(64, warn=True)
    assert not caplog.text


@pytest.mark.parametrize("method", [EViT, ATC])
def test_one_token_stays_at_the_least(method):
    with pytest.raises(MameLabError, match=r"mame.r=196 is too large for block 0: 196 patch tokens.* 195 are sources"):
        method(r=[196]).schedule_for(1).walk(196)
    assert method(r=[300], clamp=True).schedule_for(1).walk(196) == [195]


def test_too_large_names_the_block_and_the_way_out():
    """ViT-B/16 at 224 px cannot lose 16 in all 12 blocks."""
    with pytest.raises(MameLabError, match=r"mame.r=16 is too large for block 11: 20 patch tokens.* 10 are sources"):
        MaMe(r=16, blocks=12).schedule_for(12).walk(196)


def test_clamp_says_what_results(caplog):
    MaMe(r=0.7, blocks=1, clamp=True).schedule_for(2).walk(100, warn=True)
    assert "[50, 0]" in caplog.text
    MaMe(r=16, blocks=12, clamp=True).schedule_for(12).walk(196, warn=True)
    assert "[16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 10]" in caplog.text
    caplog.clear()
    MaMe(r=16, blocks=12, clamp=True).schedule_for(12).walk(196)
    MaMe(r=8, blocks=12, clamp=True).schedule_for(12).walk(196, warn=True)
    assert not caplog.text


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"r": -1}, "mame.r=-1"),
        ({"r": 1.0}, "mame.r=1.0"),
        ({"r": "8"}, "mame.r='8'"),
        ({"r": True}, "mame.r=True"),
        ({"r": [1, None]}, r"mame.r=\[1, None\]"),
        ({"tau": 1.5}, "mame.tau=1.5"),
        ({"tau": -1.1}, "mame.tau=-1.1"),
        ({"blocks": -2}, "mame.blocks=-2"),
        ({"blocks": 0.5}, "mame.blocks=0.5"),
        ({"batching": "mean"}, "mame.batching=mean"),
    ],
)
def test_values_out_of_range_name_the_key(settings, named):
    with pytest.raises(MameLabError, match=named):
        MaMe(**settings)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Ward(batching="union"), "mame.batching=union is for adaptive merging"),
        (lambda: MaMe(r=8, batching="packed"), "mame.batching=packed is for adaptive merging"),
        (lambda: MaMe(r=8, tau=0.9, batching="packed"), "mame.batching=packed is for adaptive merging"),
        (lambda: Ward(flops=0.5, batching="packed"), "mame.batching=packed is for adaptive merging"),
        (lambda: MaMe(flops=0.5, tau=0.9, batching="packed"), "mame.batching=packed is for adaptive merging"),
        (lambda: MaMe(clamp=True), "mame.clamp=true truncates a budget"),
        (lambda: Ward(clamp=True), "mame.clamp=true truncates a budget"),
        (lambda: Ward(tau=[0.9, 1], clamp=True), "mame.clamp=true truncates a budget"),
        (lambda: ToMe(flops=0.5, solve="adaptive"), "mame.solve=adaptive is not for mame=tome, which has no thresh"),
        (lambda: Ward(r=8, solve="adaptive"), "mame.solve=adaptive says how a target is met: set mame.flops or"),
        (lambda: Ward(flops=0.5, solve="learned"), "mame.solve=learned is not known: choose from static, adapt"),
        (lambda: Ward(flops=0.5, schedule="adaptive"), "mame.schedule=adaptive is called mame.solve=adaptive now"),
        (lambda: Ward(flops=0.5, solve="adaptive", clamp=True), "mame.clamp=true truncates a budget"),
        (lambda: MaMe(flops=0.5, solve="adaptive", tau=0.9), "mame.tau=0.9 and mame.solve=adaptive exclude"),
        (lambda: MaMe(tau=0.9, schedule="linear"), "mame.schedule=linear shares out a budget or a target"),
        (lambda: Ward(r=8, tau=0.9), r"mame.r=8 and mame.tau=0.9 exclude each other for mame=ward"),
        (lambda: ToMe().schedule_for(4), "mame=tome needs a budget: set mame.r"),
        (lambda: Drop(blocks=2).schedule_for(4), "mame=drop needs a budget: set mame.r"),
    ],
)
def test_what_a_method_cannot_do_names_it(make, named):
    with pytest.raises(MameLabError, match=named):
        make()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"r": [1, 2]}, "has 2 entries"),
        ({"r": [1, 2, 3], "blocks": 2}, "contradicts"),
        ({"r": 1, "blocks": 4}, "mame.blocks=4"),
        ({"r": 1, "blocks": [0, 3]}, "mame.blocks"),
        ({"r": 1, "blocks": [1, 1]}, "mame.blocks"),
    ],
)
def test_what_does_not_fit_the_model_names_the_key(settings, named):
    with pytest.raises(MameLabError, match=named):
        MaMe(**settings).schedule_for(3)


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_those_of_the_dataclass(name):
    method = METHODS[name]
    assert OmegaConf.to_object(OmegaConf.structured(method)) == method()
    assert method().method == name
