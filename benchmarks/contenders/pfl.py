"""Apple's pfl-research: FederatedAveraging on its simulated backend; several processes under torchrun with gloo."""

from __future__ import annotations

import argparse
import os
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel

from benchmarks import models
from benchmarks.workloads import RATE, WORKLOADS, Clock, data, drawn, shards, unseen


class WithLoss(torch.nn.Module):
    """The module in the form that pfl asks for."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self(x), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        return {}


class Marks(TrainingProcessCallback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> tuple[bool, Metrics]:
        self.clock.mark()
        return False, Metrics()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", required=True)
    given = parser.parse_args()
    w, clock = WORKLOADS[given.workload], Clock()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    if w.synthetic:
        test_x, test_y = unseen(w)
    else:
        x, y, test_x, test_y = data()
        tx, ty, parts = torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(shards(w))

    def user(client: int) -> Dataset:
        # pfl takes mini-batches as the rows lie: they are shuffled here, at every visit, as all others do.
        if w.synthetic:
            order = torch.randperm(w.rows)
            return Dataset(tuple(torch.from_numpy(side)[order] for side in drawn(client)))
        rows = parts[client][torch.randperm(w.rows)]
        return Dataset((tx[rows], ty[rows]))

    sampled = FederatedDataset(user, get_user_sampler("minimize_reuse", list(range(w.clients))))
    module = WithLoss(models.make(w.model))
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    backend = SimulatedBackend(training_data=sampled, val_data=sampled, postprocessors=[WeightByDatapoints()])
    params = NNAlgorithmParams(
        central_num_iterations=w.rounds + 1, evaluation_frequency=10**6, train_cohort_size=w.cohort, val_cohort_size=0
    )
    local = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=RATE, local_batch_size=w.batch)
    FederatedAveraging().run(
        algorithm_params=params,
        backend=backend,
        model=model,
        model_train_params=local,
        callbacks=[Marks(clock)],
        send_metrics_to_platform=False,
    )
    if os.environ.get("RANK", "0") == "0":
        clock.report(models.accuracy(module, test_x, test_y))


if __name__ == "__main__":
    main()
