"""Settings given as numbers of numpy, torch and other sequences are those of Python."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from families import DEPTH, build
from omegaconf import OmegaConf

import mame_lab
from mame_lab import MameLabError
from mame_lab.merging import METHODS, MaMe, Ward
from mame_lab.merging.grid.settings import Grid
from mame_lab.merging.numbers import plain


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.arange(8)[4], 4),
        (np.uint8(4), 4),
        (np.array(4), 4),
        (torch.tensor(4), 4),
        (np.float64(0.25), 0.25),
        (np.float32(0.29), 0.29),
        (np.float16(0.25), 0.25),
        (torch.tensor(0.29), 0.29),
        (torch.tensor(0.29, dtype=torch.float64), 0.29),
        (np.linspace(0.1, 0.3, 3, dtype=np.float32), [0.1, 0.2, 0.3]),
        (torch.arange(3), [0, 1, 2]),
        (torch.nn.Parameter(torch.tensor([0.1, 0.2])), [0.1, 0.2]),
        ((1, np.int64(2), torch.tensor(0.5)), [1, 2, 0.5]),
        (range(3), [0, 1, 2]),
        (OmegaConf.create([1, 0.5]), [1, 0.5]),
        (np.longdouble(0.9), 0.9),
        (np.array([0.25, 0.9], dtype=np.longdouble), [0.25, 0.9]),
        (np.bool_(True), True),
        ("0.5", "0.5"),
        (None, None),
    ],
    ids=repr,
)
def test_a_number_is_that_of_python(given, expected):
    found = plain(given)
    assert found == expected
    assert type(found) is type(expected)
    if isinstance(expected, list):
        assert [type(each) for each in found] == [type(each) for each in expected]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_plain_numbers(name):
    given = METHODS[name](r=np.int64(4), blocks=np.arange(3), prop_attn=np.bool_(False), grid=Grid(np.int64(8)))
    expected = METHODS[name](r=4, blocks=[0, 1, 2], prop_attn=False, grid=Grid(8))
    assert str(given) == str(expected)
    assert asdict(given) == asdict(expected)
    assert OmegaConf.to_yaml(OmegaConf.create(asdict(given))) == OmegaConf.to_yaml(OmegaConf.create(asdict(expected)))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (MaMe(tau=np.float32(0.9)), MaMe(tau=0.9)),
        (MaMe(tau=torch.linspace(0.8, 0.9, 2)), MaMe(tau=[0.8, 0.9])),
        (Ward(r=(4, np.float32(0.25))), Ward(r=[4, 0.25])),
        (Ward(flops=np.float32(0.6)), Ward(flops=0.6)),
        (Ward(speedup=torch.tensor(1.5)), Ward(speedup=1.5)),
        (Ward(tau=0.9).with_budget(np.int64(4)), Ward(r=4)),
        (replace(Ward(r=4), r=np.array([4, 0])), Ward(r=[4, 0])),
    ],
    ids=repr,
)
def test_thresholds_targets_and_budgets(given, expected):
    assert given == expected
    assert str(given) == str(expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": np.arange(8)[4]},
        {"r": range(DEPTH)},
        {"r": np.full(DEPTH, 0.25)},
        {"tau": np.float32(0.9)},
        {"blocks": (0, 1)},
    ],
    ids=repr,
)
def test_models_merge_by_them(settings):
    assert mame_lab.apply(build("vit"), **settings).method == Ward(**{key: plain(x) for key, x in settings.items()})


def test_solve_takes_them():
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert mame_lab.solve(build("vit"), Ward(flops=np.float32(0.8)), images) == mame_lab.solve(
        build("vit"), Ward(flops=0.8), images
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"grid": 8}, r"mame.grid=8 is not valid: give its settings, such as dict\(window=8\)"),
        ({"grid": None}, "mame.grid=None is not valid"),
        ({"prop_attn": "false"}, "mame.prop_attn='false' is not valid: give true or false"),
        ({"prop_attn": None}, "mame.prop_attn=None is not valid"),
        ({"clamp": 1}, "mame.clamp=1 is not valid"),
        ({"clamp": np.array([True])}, r"mame.clamp=\[True\] is not valid"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", METHODS)
def test_what_is_no_grid_and_no_bool_is_refused_as_what_it_is(name, settings, named):
    with pytest.raises(MameLabError, match=named):
        METHODS[name](r=8, **settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"r": np.float64(8)}, r"mame.r=8.0 is not valid: give a whole number of tokens \(8, not 8.0"),
        ({"r": np.bool_(True)}, "mame.r=True is not valid"),
        ({"r": np.ma.masked}, "mame.r=nan is not valid"),
        ({"r": np.ma.array([8, 4], mask=[False, True])}, r"mame.r=\[8, nan\] is not valid"),
        ({"tau": np.ma.masked}, "mame.tau=nan is out of range or no number"),
        ({"blocks": np.ma.masked}, "mame.blocks=nan is not valid"),
        ({"speedup": np.ma.masked}, "mame.speedup=nan is out of range or no number"),
        ({"prop_attn": np.ma.masked}, "mame.prop_attn=nan is not valid"),
        ({"r": torch.tensor(float("nan"))}, "mame.r=nan is not valid"),
        ({"r": np.ones((2, 2), dtype=int)}, r"mame.r=\[\[1, 1\], \[1, 1\]\] is not valid"),
        ({"r": np.array(["8"])}, r"mame.r=\['8'\] is not valid"),
        ({"tau": np.float32("nan")}, "mame.tau=nan is out of range or no number"),
        ({"tau": True}, "mame.tau=True is out of range or no number"),
        ({"tau": [[0.5]]}, r"mame.tau=\[\[0.5\]\] is out of range or no number"),
        ({"blocks": np.float32(2)}, "mame.blocks=2.0 is not valid"),
        ({"blocks": np.zeros((1, 1), int)}, r"mame.blocks=\[\[0\]\] is not valid"),
        ({"flops": "0.5"}, "mame.flops='0.5' is out of range or no number"),
        ({"flops": [0.5]}, r"mame.flops=\[0.5\] is out of range or no number"),
        ({"speedup": float("nan")}, "mame.speedup=nan is out of range or no number"),
        ({"speedup": "2"}, "mame.speedup='2' is out of range or no number"),
    ],
    ids=repr,
)
def test_what_is_no_number_is_refused_as_what_it_is(settings, named):
    with pytest.raises(MameLabError, match=named) as error:
        Ward(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("r", ["8", [8], np.array([8]), None], ids=repr)
def test_a_budget_is_one_number(r):
    with pytest.raises(MameLabError, match="is no budget"):
        Ward().with_budget(r)


@pytest.mark.parametrize("window", [8.5, "8", True, float("nan"), [8], None], ids=repr)
def test_a_window_is_a_whole_number(window):
    with pytest.raises(MameLabError, match=r"mame.grid.window=.* is no window"):
        Grid(window)
