"""What the README says to write, runs."""

import re
import shlex
from dataclasses import dataclass

import pytest
import torch
from commands import ROOT, compose_config
from families import build, images

import mame_lab
from mame_lab.merging import Method, matching
from mame_lab.merging.bipartite import Bipartite
from mame_lab.merging.plan import make_plan
from mame_lab.models import family_of

README = (ROOT / "README.md").read_text()


def test_a_method_of_your_own():
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "RandomMerge" in block)
    names = {
        "Bipartite": Bipartite,
        "Method": Method,
        "MameLabError": mame_lab.MameLabError,
        "matching": matching,
        "make_plan": make_plan,
        "dataclass": dataclass,
        "torch": torch,
    }
    exec(code, names)
    model, x = build("vit"), images()
    expected = model(x)
    mame_lab.apply(model, names["RandomMerge"](r=5))
    assert [int(tokens[0]) for tokens in family_of(model).trace(model, x)] == [60, 55, 50, 45, 45, 45]
    assert not torch.equal(model(x), expected)


@pytest.mark.parametrize("line", re.findall(r"^python (?:train|eval)\.py [^\n#\\]*", README, re.M))
def test_commands_compose(line):
    words = [word for word in shlex.split(line)[2:] if word not in ("-m", "--help")]
    swept = [re.sub(r"=(?:range\()?([^\[,]+),.*", r"=\1", word) for word in words]
    assert compose_config(line.split()[1].removesuffix(".py"), swept)
