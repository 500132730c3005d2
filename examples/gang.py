"""A PyTorch module trained by two processes in step, each on its half of every batch. Needs hansa[torch].

Run it: python examples/gang.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import hansa


def main(directory: str = "runs") -> hansa.Run:
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    job = hansa.Job(
        name="digits-gang",
        data=hansa.from_arrays((x / 16).astype("float32"), y),
        partition=hansa.IID(clients=4),
        learner=module,
        # A round is one pass over all rows. Layout(shard=2), (tensor=2) and (pipeline=2) give the same model, up to rounding.
        algorithm=hansa.Synchronous(batch_size=32, optimizer="AdamW", learning_rate=3e-3, parallel=hansa.Layout(data=2)),
        engine=hansa.Processes(workers=2),
        rounds=hansa.Rounds(count=6),
        evaluation=hansa.Evaluation(every=3),
    )
    return hansa.run(job, directory=directory)


if __name__ == "__main__":  # the members are processes that import this file again
    run = main()
    print(f"{run.ended}; accuracy on held-out digits {run.metrics['test/accuracy']:.3f}")
    print(run.model)
