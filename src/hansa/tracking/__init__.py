"""What is kept of a run: its folder, its state, its progress on the terminal, its report."""

from hansa.tracking.environment import environment
from hansa.tracking.folder import RunFolder, RunSummary, list_runs
from hansa.tracking.progress import Progress
from hansa.tracking.report import write_report
from hansa.tracking.tree import load_tree, save_tree

__all__ = ["Progress", "RunFolder", "RunSummary", "environment", "list_runs", "load_tree", "save_tree", "write_report"]
