"""A ready layout of a project in wandb: ``python launcher/dashboard.py --project mednoise``.

Needs the extra ``dashboard``. The layout becomes a saved view of the project, which anybody who
sees the project can open and change; running the command again makes another one.
"""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from engine.runtime import wandb_mode
from launcher import EXIT_USER_ERROR

__all__ = ["FIGURES", "SECTIONS", "SUSPECTS", "Chart", "build_workspace", "main"]


class Chart(NamedTuple):
    """A chart of curves.

    Attributes:
        title: Its title.
        pattern: Regular expression of the whole names of the metrics in it.
        axis: The metric against which they are drawn.
    """

    title: str
    pattern: str
    axis: str = "epoch"


SECTIONS = {
    "Results": [
        Chart("quadratic weighted kappa, test", "eval/kappa"),
        Chart("quadratic weighted kappa, validation", "validation/kappa"),
        Chart("balanced accuracy, test", "eval/balanced_accuracy"),
        Chart("macro F1, test", "eval/macro_f1"),
        Chart("macro AUROC, test", "eval/auroc"),
        Chart("accuracy, test", "eval/accuracy"),
    ],
    "Separation": [
        Chart("AUC of not Correct, and of Mis-H", "separation/(auc|auc_mis_h)"),
        Chart("precision of each group", "separation/precision/.+"),
        Chart("recall of each group", "separation/recall/.+"),
        Chart("samples in Correct by given class", r"separation/assigned/correct/\d+"),
        Chart("samples in Mis-H by given class", r"separation/assigned/mis_h/\d+"),
        Chart("samples in Mis-L by given class", r"separation/assigned/mis_l/\d+"),
    ],
    "Classes": [
        Chart("recall of each class, test", r"eval/recall/\d+"),
        Chart("precision of each class, test", r"eval/precision/\d+"),
        Chart("F1 of each class, test", r"eval/f1/\d+"),
        Chart("AUROC of each class, test", r"eval/auroc/\d+"),
    ],
    "Steps and speed": [
        Chart("terms of the loss, means over steps", "step/loss/.+", "global_step"),
        Chart("learning rate", "step/learning_rate", "global_step"),
        Chart("images per second", "step/images_per_second", "global_step"),
        Chart("share of time waiting for images", "step/data_wait_share", "global_step"),
        Chart("GPU memory in GiB, most held", "step/gpu_memory_gib", "global_step"),
        Chart("terms of the loss, means over epochs", "train/.+"),
        Chart("seconds an epoch", "time/epoch_seconds"),
    ],
}
FIGURES = ("cloud", "posterior", "suggested", "confusion-eval", "calibration-eval")
SUSPECTS = "separation/suspects"


def build_workspace(entity: str, project: str) -> Any:
    """The layout, as an object of ``wandb_workspaces``; nothing is sent.

    Args:
        entity: User or team that the project belongs to.
        project: The project.
    """
    # Half of its names are typed.
    workspaces: Any = importlib.import_module("wandb_workspaces.workspaces")
    panels: Any = importlib.import_module("wandb_workspaces.reports.v2")
    charts = {
        name: [
            panels.LinePlot(title=chart.title, x=chart.axis, metric_regex=f"^{chart.pattern}$")
            for chart in section
        ]
        for name, section in SECTIONS.items()
    }
    pictures = [
        panels.MediaBrowser(title=name, media_keys=[f"figures/{name}"], num_columns=1)
        for name in FIGURES
    ]
    suspects = [panels.WeavePanelSummaryTable(table_name=SUSPECTS)]
    first, *others = charts.items()
    contents = [first, ("Figures", pictures), ("Most suspicious labels", suspects), *others]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="mednoise",
        sections=[
            workspaces.Section(name=name, panels=shown, is_open=True) for name, shown in contents
        ],
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Save a layout of a project's charts in wandb.")
    parser.add_argument("--project", default="mednoise", help="as in tracking.project")
    parser.add_argument("--entity", help="as in tracking.entity; unset = your default one")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse_arguments(arguments)
    problem = None
    if importlib.util.find_spec("wandb_workspaces") is None:
        problem = "the dashboard needs the extra: pip install 'mednoise[dashboard]'"
    elif wandb_mode() != "online":
        problem = "wandb has no API key here, or WANDB_MODE is not online; wandb login"
    if problem is not None:
        print(f"error: {problem}", file=sys.stderr)
        return EXIT_USER_ERROR
    import wandb

    try:
        entity = options.entity or str(wandb.Api().default_entity)
        workspace = build_workspace(entity, options.project).save()
    # What wandb raises is not documented; all of it means that the layout was not saved.
    except Exception as error:
        print(f"error: wandb did not save the layout: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    print(workspace.url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
