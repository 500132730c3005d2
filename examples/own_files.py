"""Your own files: one CSV per client, named by a pattern. Run it: python examples/own_files.py"""

import tempfile
from pathlib import Path

from sklearn.datasets import load_wine

import hansa


def write_files(folder: Path) -> None:
    """Three cellars' tables, as they might lie on a disk: the same columns, the class in "grower", the client in the file's name."""
    table = load_wine(as_frame=True).frame.rename(columns={"target": "grower"})
    for number, cellar in enumerate(("north", "south", "west")):
        table.iloc[number::3].to_csv(folder / f"{cellar}.csv", index=False)


def main(folder: Path) -> hansa.Run:
    write_files(folder)
    job = hansa.Job(
        name="own-files",
        data=hansa.File(path=str(folder / "*.csv"), label="grower", client="@file"),
        preparation=hansa.Standard(),
        learner=hansa.Sklearn(estimator="LogisticRegression"),
        algorithm=hansa.Newton(),
    )
    return hansa.run(job, directory=folder / "runs")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        run = main(Path(folder))
        print(f"{run.ended}; accuracy on held-out wines {run.metrics['test/accuracy']:.3f}")
        for client, metrics in run.by_client.items():
            print(f"  {client:<6} {metrics['accuracy']:.3f}")
