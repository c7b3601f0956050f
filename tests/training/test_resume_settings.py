"""What a resumed run may change, what it may not, and which checkpoint it takes."""

import pytest
import torch
from commands import TINY
from resumed import RUN, last, metrics

from mame_lab import MameLabError
from mame_lab.tasks.optim import lr_factor


def rates(folder):
    header, rows = metrics(folder)
    column = header.split(",").index("train/lr")
    return [float(row.split(",")[column]) for row in rows if row.split(",")[column]]


@pytest.mark.parametrize("nth", [3, None], ids=["within an epoch", "done"])
def test_a_run_may_go_on_for_longer(entry_point, killed, tmp_path, nth):
    run = [each for each in RUN if "max_epochs" not in each]
    short, long = ([*run, f"trainer.max_epochs={epochs}", "resume=auto"] for epochs in (1, 3))
    if nth:
        killed(tmp_path, *short, nth=nth)
    else:
        entry_point("train", tmp_path, *short)
    done = len(rates(tmp_path)) if nth is None else 2
    entry_point("train", tmp_path, *long)
    assert last(tmp_path)["epoch"] == 2
    assert last(tmp_path)["config"]["trainer"]["max_epochs"] == 3
    expected = [1e-3 * lr_factor(step, 15, 5, 0) for step in range(15)]
    assert rates(tmp_path)[done:] == pytest.approx(expected[done:])
    assert [row.split(",")[0] for row in metrics(tmp_path)[1]].count("14") == 2  # of training and validation
    entry_point("train", tmp_path, *long)
    assert len(rates(tmp_path)) == 15
    with pytest.raises(MameLabError, match=r"trainer.max_epochs=3, and this run has trainer.max_epochs=1: .* or more"):
        entry_point("train", tmp_path, *short)


def test_a_target_goes_on_with_what_met_it_and_with_no_other(entry_point, tmp_path):
    run = [*TINY, "mame.flops=0.8", "resume=auto"]
    entry_point("train", tmp_path, *run)
    path = tmp_path / "checkpoints/last.ckpt"
    content = torch.load(path)
    solved = content["config"]["mame"]["r"]
    refused = [
        (["mame.flops=0.6"], "mame.flops=0.8, and this run has mame.flops=0.6"),
        (["mame=tome"], "mame.method=ward, and this run has mame.method=tome"),
        (["mame.schedule=linear"], "mame.schedule=None, and this run has mame.schedule=linear"),
        (["mame.flops=null", "mame.r=10"], r"mame.r=\[.*\], and this run has mame.r=10"),
    ]
    for others, message in refused:
        with pytest.raises(MameLabError, match=message):
            entry_point("train", tmp_path, *run, *others)
    given_back = ["mame.flops=null", f"mame.r={solved}"]
    for others in ([], given_back, []):
        entry_point("train", tmp_path, *run, *others)
        assert last(tmp_path)["config"]["mame"]["r"] == solved
    del content["config"]["asked"]
    torch.save(content, path)
    entry_point("train", tmp_path, *run)
    torch.save(content, path)
    with pytest.raises(MameLabError, match=r"mame.method=ward, and this run has mame.method=tome"):
        entry_point("train", tmp_path, *run, "mame=tome")


def test_what_does_not_shape_the_result_is_free(entry_point, tmp_path):
    entry_point("train", tmp_path, *TINY)
    free = ["trainer.checkpoint_every_n_steps=1", "trainer.log_every_n_steps=1", "speed.max_rounds=1"]
    free += ["trainer.limit_test_batches=1"]
    entry_point("train", tmp_path, *TINY, "resume=auto", *free)
    for fixed in ("compile=true", "optim.lr=1", "finetune=head", "trainer.precision=64-true", "dataset.batch_size=2"):
        with pytest.raises(MameLabError, match=r"resume: .* and this run has .*: give what it had, or start anew"):
            entry_point("train", tmp_path, *TINY, "resume=auto", fixed)


def test_auto_starts_anew_where_nothing_is_saved_and_ends_at_once_where_all_is_done(entry_point, tmp_path, capsys):
    entry_point("train", tmp_path, *TINY, "resume=auto")
    before = last(tmp_path)["state_dict"]
    rows = metrics(tmp_path)
    entry_point("train", tmp_path, *TINY, "resume=auto")
    assert "Going on from" in capsys.readouterr().out
    assert all(torch.equal(tensor, last(tmp_path)["state_dict"][name]) for name, tensor in before.items())
    assert metrics(tmp_path) == rows
    with pytest.raises(MameLabError, match=r"resume: .* was made with mame.r=None, and this run has mame.r=20: give"):
        entry_point("train", tmp_path, *TINY, "resume=auto", "mame.r=20")
    with pytest.raises(MameLabError, match=r"^resume=no.ckpt does not exist"):
        entry_point("train", tmp_path, *TINY, "resume=no.ckpt")
    with pytest.raises(MameLabError, match=r"resume: .* with seed=0, and this run has seed=1"):
        entry_point("train", tmp_path, *TINY, f"resume={tmp_path / 'checkpoints/last.ckpt'}", "seed=1")


def test_a_run_from_before_a_key_was_there_goes_on(entry_point, tmp_path, capsys):
    entry_point("train", tmp_path, *TINY)
    path = tmp_path / "checkpoints/last.ckpt"
    content = torch.load(path)
    before = content["config"]
    del before["finetune"]["distill"], before["mame"]["prop_attn"], before["optim"]["betas"]
    torch.save(content, path)
    entry_point("train", tmp_path, *TINY, "resume=auto")
    assert "Going on from" in capsys.readouterr().out
    with pytest.raises(MameLabError, match=r"was made with mame.prop_attn=True, and this run has mame.prop_attn=False"):
        entry_point("train", tmp_path, *TINY, "resume=auto", "mame.prop_attn=false")
