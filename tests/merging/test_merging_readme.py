"""The code of the README of merging runs as it stands."""

import re

import torch
from commands import ROOT
from families import build, images

import mame_lab
from mame_lab.models import family_of

EXAMPLE, METHOD = re.findall(r"^```python\n(.*?)^```", (ROOT / "mame_lab/merging/README.md").read_text(), re.M | re.S)


def test_the_example_of_eight_tokens():
    exec(EXAMPLE, {})


def test_the_method():
    names, model = {}, build("vit")
    exec(METHOD, names)
    mame_lab.apply(model, names["Quiet"](r=5))
    tokens_DB = torch.stack(family_of(model).trace(model, images(2)))
    assert tokens_DB.tolist() == [[60] * 2, [55] * 2, [50] * 2, *[[45] * 2] * 3]
