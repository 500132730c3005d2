"""Hansa trains one model from data that stays where it is.

The public API, all of it:

    run(job)        do a job (a :class:`Job`, or the path of its TOML file) and get a :class:`Run`: model, params, history, directory
    resume(folder)  go on with a run after a crash or an interruption, to the same bits
    compare(job)    the job beside each client alone and all rows pooled
    Job, Rounds, Evaluation, Split          what to do
    Column, IID, Dirichlet, Shards          how rows become clients
    from_arrays, from_table, from_torch     data that is in memory; BuiltIn and File for built-in sets and files; Synthetic
                                            for as many made-up clients as one likes
    Standard                                federated preprocessing
    FedAvg, FedProx, Scaffold, GradientDescent, Newton; Local, SGD, Adam; server optimisers in ``hansa.algorithms.server_optimizers``
    Sklearn, TorchLearner, JaxLearner, MLP  learners; estimators and modules may also be given to a job as they are
    Inline, Processes                       engines
    Devices, Trace                          a virtual clock for simulated phones
    HansaError, InputError, RunFailed, Diverged
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Adam": "hansa.core.local",
    "BuiltIn": "hansa.data.builtin",
    "Client": "hansa.core.blocks",
    "Column": "hansa.data.partition",
    "Devices": "hansa.core.clock",
    "Dirichlet": "hansa.data.partition",
    "Diverged": "hansa.core.errors",
    "Evaluation": "hansa.job",
    "FedAvg": "hansa.algorithms.fedavg",
    "FedProx": "hansa.algorithms.fedavg",
    "File": "hansa.data.files",
    "GradientDescent": "hansa.algorithms.gradient_descent",
    "HansaError": "hansa.core.errors",
    "IID": "hansa.data.partition",
    "Inline": "hansa.engines.inline",
    "InputError": "hansa.core.errors",
    "JaxLearner": "hansa.learners.jax",
    "Job": "hansa.job",
    "Local": "hansa.core.local",
    "MLP": "hansa.learners.mlp",
    "Newton": "hansa.algorithms.newton",
    "Processes": "hansa.engines.processes",
    "Rounds": "hansa.job",
    "Run": "hansa.runs",
    "RunFailed": "hansa.core.errors",
    "SGD": "hansa.core.local",
    "Scaffold": "hansa.algorithms.scaffold",
    "Shards": "hansa.data.partition",
    "Sklearn": "hansa.learners.sklearn",
    "Split": "hansa.data.split",
    "Standard": "hansa.data.preparation",
    "Synthetic": "hansa.data.synthetic",
    "TorchLearner": "hansa.learners.torch",
    "Trace": "hansa.core.clock",
    "compare": "hansa.comparison",
    "from_arrays": "hansa.data.memory",
    "from_table": "hansa.data.memory",
    "from_torch": "hansa.data.memory",
    "resume": "hansa.runs",
    "run": "hansa.runs",
}

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    # Names are loaded on first use: `import hansa` stays fast and never imports a framework.
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hansa' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
