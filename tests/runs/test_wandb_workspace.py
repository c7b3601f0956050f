"""The workspace compares runs by the metrics that they have; without a login it is shown instead of saved."""

import os
import sys
from unittest import mock

import pytest

from mame_lab.runs import loggers, wandb_workspace

pytest.importorskip("wandb_workspaces")


@pytest.fixture
def saved(monkeypatch):
    """Stands for W&B's server; lists what was saved."""
    from wandb_workspaces.workspaces import Workspace

    views = []
    monkeypatch.setattr(Workspace, "save", lambda view: views.append(view))
    return views


def told(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_without_a_login_it_is_shown(saved, capsys, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    nowhere = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    with mock.patch.dict(os.environ, {**environment, **nowhere}, clear=True):
        wandb_workspace.main(["--entity", "team", "--project", "merging", "--blocks", "2"])
    said = told(capsys)
    assert not saved
    assert "team/merging: " in said
    assert "Accuracy against speed: speed/samples_per_s, test/top1" in said
    assert "Accuracy against GFLOPs: cost/gflops, test/top1" in said
    assert "Tokens by block: tokens/block_00, tokens/block_01" in said
    assert "`wandb login`" in said


def test_with_a_login_it_is_saved(saved, monkeypatch):
    monkeypatch.setattr(loggers, "logged_in", lambda: True)
    wandb_workspace.main(["--entity", "team"])
    (view,) = saved
    model = view._to_model().model_dump(by_alias=True)
    panels = [p for section in model["spec"]["section"]["panelBankConfig"]["sections"] for p in section["panels"]]
    assert [panel["viewType"] for panel in panels] == ["Scatter Plot", "Scatter Plot", "Parallel Coordinates Plot"]
    axes = [(panel["config"]["xAxis"], panel["config"]["yAxis"]) for panel in panels[:2]]
    assert axes == [("summary:speed/samples_per_s", "summary:test/top1"), ("summary:cost/gflops", "summary:test/top1")]
    assert len(panels[2]["config"]["columns"]) == 12


def test_what_goes_wrong_is_one_line(saved, monkeypatch):
    from wandb_workspaces.workspaces import Workspace

    monkeypatch.setattr(loggers, "logged_in", lambda: True)
    monkeypatch.setattr(Workspace, "save", mock.Mock(side_effect=ValueError("no such\nteam")))
    with pytest.raises(SystemExit, match=r"error: the workspace was not saved \(no such team\)"):
        wandb_workspace.main(["--entity", "team"])
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(SystemExit, match=r"pip install 'mame_lab\[workspace\]'"):
        wandb_workspace.main(["--entity", "team"])
