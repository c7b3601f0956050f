import pytest
from omegaconf import OmegaConf

from mame_lab import MameLabError
from mame_lab.merging import MaMe
from mame_lab.merging.schedule import make_schedule


@pytest.mark.parametrize(
    ("settings", "depth", "patches", "leaving"),
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
    ],
)
def test_tokens_that_leave(settings, depth, patches, leaving):
    assert MaMe(**settings).schedule(depth).walk(patches) == leaving


def test_too_large_names_the_block_and_the_way_out():
    """ViT-B/16 at 224 px cannot lose 16 in all 12 blocks."""
    with pytest.raises(MameLabError, match=r"mame.r=16 is too large for block 11: 20 patch tokens.* 10 are sources"):
        make_schedule(16, 12, 12).walk(196)


def test_clamp_says_what_results(caplog):
    make_schedule(0.7, 1, 2, clamp=True).walk(100)
    assert "[50, 0]" in caplog.text
    make_schedule(16, 12, 12, clamp=True).walk(196)
    assert "[16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 10]" in caplog.text


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
        ({"batch": "mean"}, "mame.batch=mean"),
    ],
)
def test_values_out_of_range_name_the_key(settings, named):
    with pytest.raises(MameLabError, match=named):
        MaMe(**settings)


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
        MaMe(**settings).schedule(3)


def test_defaults_are_those_of_the_dataclass():
    assert OmegaConf.to_object(OmegaConf.structured(MaMe)) == MaMe()
