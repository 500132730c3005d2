"""Hansa trains one model from data that stays where it is.

The public API, all of it:

    run(job)        do a job (a :class:`Job`, or the path of its TOML file) and get a :class:`Run`: model, params, history, directory
    resume(folder)  go on with a run after a crash or an interruption, to the same bits
    compare(job)    the job beside each client alone and all rows pooled
    search(job, {"rounds.count": [10, 20]}) the best of many settings, fitted at once, in a :class:`Search`; resume_search(folder)
    fit_each(job)   one model for each client, fitted at once: :class:`Models`; resume_each(folder)
    Job, Rounds, Evaluation, Split          what to do
    Column, IID, Dirichlet, Shards          how rows become clients; Features, how columns do
    from_arrays, from_table, from_torch     data that is in memory; BuiltIn and File for built-in sets and files; Synthetic
                                            for as many made-up clients as one likes
    Parts, from_partitions                  tables larger than memory: files in parts; Dask, Ray and Spark tables as they are
    Standard                                federated preprocessing
    FedAvg, FedProx, Scaffold               averaging; Local, SGD, Adam; server optimisers in ``hansa.algorithms.server_optimizers``
    GradientDescent, Newton, LBFGS          descent on sums; CoordinateDescent, SharingADMM for columns that are split
    Lloyd, PrincipalComponents, Forest      k-means, principal components, forests
    Synchronous, DiLoCo, Layout             PyTorch modules in gangs
    Sklearn, TorchLearner, JaxLearner, MLP  learners; Forests, OneVsRest, Bagging, KMeans, PCA; estimators and modules may also be given
                                            as they are
    Inline, Processes                       engines on this machine
    Dask, Ray, Spark, Torchrun              engines on clusters
    Server, Client, Relay, Admin, Policy    organisations that train together over the network; Federation and Elsewhere are the
                                            engine and the data of their jobs
    Devices, Trace                          a virtual clock for simulated phones
    HansaError, InputError, RunFailed, Diverged
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Adam": "hansa.core.local",
    "Admin": "hansa.federated.admin",
    "Bagging": "hansa.learners.bagging",
    "BuiltIn": "hansa.data.builtin",
    "Client": "hansa.federated.client",
    "Column": "hansa.data.partition",
    "CoordinateDescent": "hansa.algorithms.coordinate_descent",
    "Dask": "hansa.engines.dask",
    "Devices": "hansa.core.devices",
    "DiLoCo": "hansa.algorithms.diloco",
    "Dirichlet": "hansa.data.partition",
    "Diverged": "hansa.core.errors",
    "Elsewhere": "hansa.data.elsewhere",
    "Evaluation": "hansa.job",
    "Features": "hansa.data.features",
    "FedAvg": "hansa.algorithms.fedavg",
    "FedProx": "hansa.algorithms.fedavg",
    "Federation": "hansa.federation.options",
    "File": "hansa.data.files",
    "Forest": "hansa.algorithms.forest",
    "Forests": "hansa.learners.forest",
    "GradientDescent": "hansa.algorithms.gradient_descent",
    "HansaError": "hansa.core.errors",
    "IID": "hansa.data.partition",
    "Inline": "hansa.engines.inline",
    "InputError": "hansa.core.errors",
    "JaxLearner": "hansa.learners.jax",
    "Job": "hansa.job",
    "KMeans": "hansa.learners.kmeans",
    "LBFGS": "hansa.algorithms.lbfgs",
    "Layout": "hansa.core.synchrony",
    "Lloyd": "hansa.algorithms.lloyd",
    "Local": "hansa.core.local",
    "MLP": "hansa.learners.mlp",
    "Models": "hansa.each",
    "Newton": "hansa.algorithms.newton",
    "OneVsRest": "hansa.learners.one_vs_rest",
    "PCA": "hansa.learners.pca",
    "Parts": "hansa.data.parts",
    "Policy": "hansa.federation.policy",
    "PrincipalComponents": "hansa.algorithms.principal_components",
    "Processes": "hansa.engines.processes",
    "Ray": "hansa.engines.ray",
    "Relay": "hansa.federated.relay",
    "Rounds": "hansa.job",
    "Run": "hansa.runs",
    "RunFailed": "hansa.core.errors",
    "SGD": "hansa.core.local",
    "Scaffold": "hansa.algorithms.scaffold",
    "Search": "hansa.searches",
    "Server": "hansa.federated.server",
    "Shards": "hansa.data.partition",
    "SharingADMM": "hansa.algorithms.sharing_admm",
    "Sklearn": "hansa.learners.sklearn",
    "Spark": "hansa.engines.spark",
    "Split": "hansa.data.split",
    "Standard": "hansa.data.preparation",
    "Synchronous": "hansa.algorithms.synchronous",
    "Synthetic": "hansa.data.synthetic",
    "TorchLearner": "hansa.learners.torch",
    "Torchrun": "hansa.engines.torchrun",
    "Trace": "hansa.core.traces",
    "compare": "hansa.comparison",
    "fit_each": "hansa.each",
    "from_arrays": "hansa.data.memory",
    "from_partitions": "hansa.data.parts_frames",
    "from_table": "hansa.data.memory",
    "from_torch": "hansa.data.memory",
    "resume": "hansa.runs",
    "resume_each": "hansa.each",
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
