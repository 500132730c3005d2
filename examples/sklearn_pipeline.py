"""A scikit-learn pipeline, trained where the rows are. Run it: python examples/sklearn_pipeline.py"""

from sklearn.datasets import load_breast_cancer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hansa


def main(directory: str = "runs") -> hansa.Run:
    x, y = load_breast_cancer(return_X_y=True, as_frame=True)
    clinic = ["A", "B", "C", "D"] * (len(x) // 4) + ["A"] * (len(x) % 4)  # whose each row is

    job = hansa.Job(
        name="pipeline",
        data=hansa.from_arrays(x, y, clients=clinic),
        learner=make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()),
        algorithm=hansa.Newton(),
    )
    return hansa.run(job, directory=directory)


if __name__ == "__main__":
    run = main()
    x, y = load_breast_cancer(return_X_y=True, as_frame=True)
    print(run.ended)
    print(run.model)  # an ordinary, fitted pipeline: pickle it, plot it, ship it; it knows nothing of Hansa
    print("first ten predictions", run.model.predict(x.head(10)), "and labels", y.head(10).to_numpy())
