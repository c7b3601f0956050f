"""Save a W&B workspace that compares all runs of a project, or show it where nobody is logged in.

python -m mame_lab.runs.wandb_workspace --entity TEAM --project mame_lab
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import Any

from rich import print
from rich.tree import Tree

from mame_lab.errors import MameLabError
from mame_lab.runs import loggers

NAME = "Token merging: accuracy against speed and cost"
COLUMNS = ("test/top1", "speed/samples_per_s", "speed/speedup", "cost/gflops")


def workspace(entity: str, project: str, blocks: int) -> Any:
    """Accuracy against speed and against GFLOPs, a point a run, and the tokens after each of the first `blocks`.

    Returns:
        A `wandb_workspaces.workspaces.Workspace`.
    """
    try:
        from wandb_workspaces import workspaces
        from wandb_workspaces.reports import v2
    except ImportError as error:
        raise MameLabError(
            "python -m mame_lab.runs.wandb_workspace needs more: pip install 'mame_lab[workspace]'"
        ) from error

    top1 = v2.SummaryMetric("test/top1")
    speed = v2.ScatterPlot("Accuracy against speed", v2.SummaryMetric("speed/samples_per_s"), top1)
    cost = v2.ScatterPlot("Accuracy against GFLOPs", v2.SummaryMetric("cost/gflops"), top1, running_ymax=True)
    after = [f"tokens/block_{block:02d}" for block in range(blocks)]
    columns = [v2.interface.ParallelCoordinatesPlotColumn(v2.SummaryMetric(name)) for name in after]
    sections = [
        workspaces.Section("Trade-off", [speed, cost], is_open=True),
        workspaces.Section("Tokens", [v2.ParallelCoordinatesPlot(columns, "Tokens by block")], is_open=True),
    ]
    pinned = workspaces.RunsetSettings(pinned_columns=[f"summary:{name}" for name in COLUMNS])
    return workspaces.Workspace(entity, project, NAME, sections, runset_settings=pinned, auto_generate_panels=True)


def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(
        "python -m mame_lab.runs.wandb_workspace", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("--entity", required=True, help="the user or the team")
    parser.add_argument("--project", default="mame_lab", help="the project that the runs are in")
    parser.add_argument("--blocks", type=int, default=12, help="of the models")
    said = parser.parse_args(arguments)
    try:
        built = workspace(said.entity, said.project, said.blocks)
    except MameLabError as error:
        sys.exit(f"error: {error}")
    if not loggers.logged_in():
        print(_tree(built))
        print("This would be saved, but nobody is logged in to W&B: `wandb login`, or WANDB_API_KEY=..., and again.")
        return
    try:
        built.save()
    except Exception as error:
        sys.exit(
            f"error: the workspace was not saved ({' '.join(str(error).split())}): see WANDB_BASE_URL and --entity"
        )


def _tree(built: Any) -> Tree:
    tree = Tree(f"{built.entity}/{built.project}: {built.name}")
    for section in built.sections:
        branch = tree.add(section.name)
        for panel in section.panels:
            shown = [column.metric for column in panel.columns] if hasattr(panel, "columns") else [panel.x, panel.y]
            branch.add(f"{panel.title}: {', '.join(metric.name for metric in shown)}")
    tree.add(f"Columns of the runs: {', '.join(built.runset_settings.pinned_columns)}")
    return tree


if __name__ == "__main__":
    main()
