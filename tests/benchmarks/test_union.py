"""What a batch does to samples that merge together: the table says what a loop over the batches finds."""

import csv
from types import SimpleNamespace

import pytest
import torch
from families import build, images
from lightning.pytorch.plugins import Precision
from PIL import Image

import mame_lab
from mame_lab.benchmarks import union
from mame_lab.measure import flops
from mame_lab.models import family_of, unmerged_copy


def model(**settings):
    return mame_lab.apply(build("vit").float(), **{"tau": 0.8, "batching": "union"} | settings)


def test_rows_are_means_over_the_same_images():
    merged, x = model(), images(6).float()
    found = union.rows(merged, x)
    assert [row.batch for row in found] == [1, 4]
    family, unmerged = family_of(merged), flops.gflops(unmerged_copy(merged), x[:1])[""]
    with torch.no_grad():
        outputs = [merged(x[i : i + 1])[0] for i in range(4)]
        for row in found:
            tokens, costs, changes = [], [], []
            for start in range(0, 4, row.batch):
                batch = x[start : start + row.batch]
                tokens += family.trace(merged, batch)[-1].tolist()
                costs.append(flops.gflops(merged, batch, together=True)[""] / unmerged)
                for i, output in enumerate(merged(batch), start):
                    changes.append(float((output - outputs[i]).norm() / outputs[i].norm()))
            assert row.tokens == pytest.approx(sum(tokens) / 4)
            assert row.cost == pytest.approx(sum(costs) / len(costs))
            assert row.change == pytest.approx(sum(changes) / 4, abs=1e-6)
    alone, together = found
    assert alone.tokens + 1 < together.tokens
    assert alone.cost + 0.01 < together.cost
    assert alone.change == 0
    assert together.change > 1e-3


@pytest.mark.parametrize("same", ["images", "per_sample"])
def test_a_batch_has_no_effect_on_equal_images_or_separate_samples(same):
    if same == "images":
        merged, x = model(), images(1).float().expand(4, -1, -1, -1)
    else:
        merged, x = model(batching="per_sample"), images(4).float()
    found = union.rows(merged, x)
    assert len({row.tokens for row in found}) == 1
    assert max(row.change for row in found) < 1e-4


def test_table_file_and_figure(tmp_path, capsys):
    class Data:
        splits = SimpleNamespace(test=range(6))

        def sample(self, count: int) -> tuple[torch.Tensor, None]:
            return images(count).float(), None

    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), precision_plugin=Precision())
    merged = model().train()
    union.show(merged, Data(), trainer, 64, tmp_path)
    assert merged.training
    with (tmp_path / "union.csv").open() as file:
        written = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    found = union.rows(merged.eval(), images(6).float())
    assert written == [pytest.approx(row._asdict()) for row in found]
    Image.open(tmp_path / "union.png").verify()
    lines = capsys.readouterr().out.splitlines()
    for row in found:
        assert any(
            f"{row.batch}   " in line and f"{row.tokens:.1f}" in line and f"{row.cost:.3f}" in line for line in lines
        )
    above, below = union.figure(found).axes
    for axis, name in ((above, "cost"), (below, "change")):
        (line,) = axis.lines
        assert list(line.get_xdata()) == [1, 4]
        assert list(line.get_ydata()) == [getattr(row, name) for row in found]


def test_no_batch_is_larger_than_what_was_timed(tmp_path):
    rows = union.rows(model(), images(3).float())
    assert [(row.batch, row.change) for row in rows] == [(1, 0.0)]
