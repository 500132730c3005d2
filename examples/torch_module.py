"""A PyTorch module, trained by federated averaging. Needs hansa[torch]. Run it: python examples/torch_module.py"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import hansa


def main(directory: str = "runs") -> hansa.Run:
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    module = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    job = hansa.Job(
        name="digits-torch",
        data=hansa.from_arrays((x / 16).astype("float32"), y),
        partition=hansa.Dirichlet(clients=10, alpha=0.5),
        learner=module,  # its weights are where training starts; the loss is the cross entropy
        algorithm=hansa.FedAvg(local=hansa.Local(epochs=2, batch_size=16, learning_rate=0.1)),
        rounds=hansa.Rounds(count=15, clients=0.5),
    )
    return hansa.run(job, directory=directory)


if __name__ == "__main__":
    run = main()
    print(f"{run.ended}; accuracy on held-out digits {run.metrics['test/accuracy']:.3f}")
    print(run.model)  # an ordinary nn.Module with trained weights
