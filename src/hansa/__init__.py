"""Hansa trains one model from data that stays where it is.

The public API, all of it:

    run(job)        do a job (a :class:`Job`, or the path of its TOML file) and get a :class:`Run`: model, params, history, directory
    resume(folder)  go on with a run after a crash or an interruption, to the same bits
    compare(job)    the job beside each client alone and all rows pooled
    search(job, {"rounds.count": [10, 20]}) the best of many settings, fitted at once, in a :class:`Search`; resume_search(folder)
    fit_each(job)   one model for each client, fitted at once: :class:`Models`
    Job, Rounds, Evaluation, Split          what to do
    Column, IID, Dirichlet, Shards          how rows become clients
    from_arrays, from_table, from_torch     data that is in memory; BuiltIn and File for built-in sets and files; Synthetic
                                            for as many made-up clients as one likes
    Parts, from_partitions                  tables larger than memory: files in parts; Dask, Ray and Spark tables as they are
    Standard                                federated preprocessing
    FedAvg, FedProx, Scaffold, GradientDescent, Newton; Local, SGD, Adam; server optimisers in ``hansa.algorithms.server_optimizers``
    Sklearn, TorchLearner, JaxLearner, MLP  learners; estimators and modules may also be given to a job as they are
    Inline, Processes                       engines on this machine
    Dask, Ray, Spark, Torchrun              engines on clusters
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
    "Dask": "hansa.engines.dask",
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
    "Models": "hansa.each",
    "Newton": "hansa.algorithms.newton",
    "Parts": "hansa.data.parts",
    "Processes": "hansa.engines.processes",
    "Ray": "hansa.engines.ray",
    "Rounds": "hansa.job",
    "Run": "hansa.runs",
    "RunFailed": "hansa.core.errors",
    "SGD": "hansa.core.local",
    "Scaffold": "hansa.algorithms.scaffold",
    "Search": "hansa.searches",
    "Shards": "hansa.data.partition",
    "Sklearn": "hansa.learners.sklearn",
    "Spark": "hansa.engines.spark",
    "Split": "hansa.data.split",
    "Standard": "hansa.data.preparation",
    "Synthetic": "hansa.data.synthetic",
    "TorchLearner": "hansa.learners.torch",
    "Torchrun": "hansa.engines.torchrun",
    "Trace": "hansa.core.clock",
    "compare": "hansa.comparison",
    "fit_each": "hansa.each",
    "from_arrays": "hansa.data.memory",
    "from_partitions": "hansa.data.parts_frames",
    "from_table": "hansa.data.memory",
    "from_torch": "hansa.data.memory",
    "resume": "hansa.runs",
    "resume_search": "hansa.searches",
    "run": "hansa.runs",
    "search": "hansa.searches",
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
