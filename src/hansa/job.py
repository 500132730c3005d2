"""A job: what to do, as one frozen object. It is read, checked and written here, and nothing runs here."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval

from hansa.core.clock import Clock
from hansa.core.contracts import Demanding, UnboundLearner
from hansa.core.devices import Devices
from hansa.core.errors import InputError, did_you_mean, refuse_class
from hansa.core.schedules import Constant, Schedule
from hansa.core.worker import Weighting
from hansa.data.partition import Column
from hansa.data.split import Split
from hansa.engines.inline import Inline
from hansa.options import LEARNER, Part, build, describe, replaced


@dataclass(frozen=True)
class Rounds:
    """How the rounds are played.

    count:      at most so many rounds of training.
    clients:    the cohort of a round: a share of all clients in (0, 1] (C in McMahan et al. 2017), or a number of clients above 1.
    block:      clients a block. It fixes the order of the sum and so belongs to the job; the number of workers does not.
    weighting:  a client counts by its training examples, or as one.
    quorum:     least share of the cohort that must give a result; at 1.0 the first failure ends the run.
    schedule:   of the learning rate, over rounds.
    """

    count: Annotated[int, Ge(1)] = 50
    clients: Annotated[float, Gt(0)] = 1.0
    block: Annotated[int, Ge(1)] = 16
    weighting: Weighting = "examples"
    quorum: Annotated[float, Interval(gt=0, le=1)] = 1.0
    schedule: Schedule = field(default_factory=Constant)


@dataclass(frozen=True)
class Evaluation:
    """How the model is judged while it is trained.

    every:     evaluate after every so many rounds, and after the last one.
    clients:   on whose held-out rows: a share of all clients in (0, 1], or a number of clients above 1; the same ones every time.
    watch:     the metric that chooses the best model and stops early, on the validation rows.
    patience:  stop after so many rounds without an improvement of at least ``least``; 0 never stops.
    best:      give back the params of the best round on the validation rows, not those of the last; needs split.validation > 0.
    """

    every: Annotated[int, Ge(1)] = 1
    clients: Annotated[float, Gt(0)] = 1.0
    watch: str = "loss"
    patience: Annotated[int, Ge(0)] = 0
    least: Annotated[float, Ge(0)] = 0.0
    best: bool = False


def _instead_of_data(given: Any) -> str:
    if hasattr(given, "columns"):
        return "hansa.from_table(table, label, client) for a table in memory"
    if isinstance(given, (tuple, list)) or hasattr(given, "shape"):
        return "hansa.from_arrays(x, y, clients) for arrays in memory"
    return f"hansa.File(path={str(given)!r})" if isinstance(given, PathLike) else ""


DATA = Part("data", (("read",), ("ids", "sizes", "table")), _instead_of_data)
ALGORITHM = Part(
    "algorithm",
    (("name", "needs", "collective", "init", "broadcast", "work", "update"), ("name", "needs", "collective", "parallel")),
)
PARTITION = Part("partition", (("assign",), ("deal",)))
PREPARATION = Part("preparation", (("fit",), ("build",)))
TRANSFORM = Part("transform", (("name", "guarantee", "client", "server"),))
ENGINE = Part("engine", (("name", "build"),))


@dataclass(frozen=True)
class Job:
    """What is split, who may see what, and where it runs.

    From Python a part may also be given by its name or as a dictionary, which mean what they mean in a job's file.

    data:         where the clients' rows come from.
    learner:      what is trained. A scikit-learn estimator or pipeline, or a PyTorch module, may be given as it is.
    algorithm:    how the clients' work becomes one model.
    partition:    how rows become clients, where the data names none.
    split:        each client's train, validation and test rows.
    preparation:  federated preprocessing: :class:`hansa.Standard`, or any scikit-learn transformer that can be fitted from sums; None
                  where the features can be used as they are.
    transforms:   what happens to updates between client and sum, in order.
    clock:        the devices that are simulated, and when a round closes; None for clients that all take part, and no virtual time.
    """

    data: Annotated[Any, DATA]
    learner: Annotated[Any, LEARNER]
    algorithm: Annotated[Any, ALGORITHM]
    name: str = ""
    seed: Annotated[int, Ge(0)] = 0
    partition: Annotated[Any, PARTITION] = field(default_factory=Column)
    split: Split = field(default_factory=Split)
    preparation: Annotated[Any, PREPARATION] = None
    transforms: tuple[Annotated[Any, TRANSFORM], ...] = ()
    rounds: Rounds = field(default_factory=Rounds)
    evaluation: Evaluation = field(default_factory=Evaluation)
    clock: Clock | None = field(default=None, metadata={"kind": Devices.name})
    engine: Annotated[Any, ENGINE] = field(default_factory=Inline)

    def __post_init__(self) -> None:
        learner, preparation = adapt(self.learner)
        if preparation is not None and self.preparation is not None:
            raise InputError("preparation: the learner is a pipeline that brings its own preparation (give only one of them)")
        object.__setattr__(self, "learner", learner)
        object.__setattr__(self, "preparation", self.preparation if preparation is None else preparation)
        for name, value in replaced(self).items():
            object.__setattr__(self, name, value)
        _check(self)

    @property
    def asked(self) -> dict[str, float]:
        """What the job says by its options of how many clients it wants: each a share of all, or above 1 a number."""
        return {"rounds.clients": self.rounds.clients, "evaluation.clients": self.evaluation.clients}


def adapt(given: Any) -> tuple[UnboundLearner, Any]:
    """A learner from what the user has, and the preparation that a scikit-learn pipeline brings with it (or None).

    Such a preparation ends with a step that lets everything pass, in the model's place and by its name (:func:`model_apart`).
    """
    if isinstance(given, (str, Mapping)):
        return build("learner", given), None
    refuse_class(given, "learner")
    if hasattr(given, "bind"):
        return given, None
    kind = type(given)
    if any(base.__module__.startswith("torch.nn") for base in kind.__mro__):
        from hansa.learners.torch import TorchLearner

        return TorchLearner(module=given), None
    if hasattr(given, "get_params"):
        from sklearn.pipeline import Pipeline

        from hansa.learners.estimators import learner_of

        if isinstance(given, Pipeline) and len(given.steps) > 1:
            name, estimator = given.steps[-1]
            preparation = given[:-1]
            preparation.steps.append((name, "passthrough"))
            return learner_of(estimator), preparation
        return learner_of(given.steps[-1][1] if isinstance(given, Pipeline) else given), None
    raise InputError(
        f"learner: {kind.__name__} is not something that Hansa trains "
        "(give a scikit-learn linear model or pipeline, a torch.nn.Module, or a learner of hansa.learners)"
    )


def model_apart(preparation: Any) -> tuple[Any, str]:
    """A preparation without the model's place at its end, and the name that the place has; empty where there is none."""
    steps: Any = getattr(preparation, "steps", ())
    if len(steps) < 2 or steps[-1][1] != "passthrough":
        return preparation, ""
    return preparation[:-1], steps[-1][0]


def _check(job: Job) -> None:
    """Refuse combinations that cannot work, before any data is read."""
    lacking = job.algorithm.needs - job.learner.can
    if lacking and job.learner.can == {"parts"}:
        raise InputError(
            f"algorithm {job.algorithm.name!r} follows gradients, and the L1 penalty of {_named(job.learner)} is not smooth (split the "
            "columns: partition.name = 'features' and algorithm.name = 'coordinate_descent'; or choose a penalty without L1)"
        )
    if lacking:
        raise InputError(
            f"algorithm {job.algorithm.name!r} needs a learner that offers {' and '.join(sorted(lacking))}; "
            f"{_named(job.learner)} offers {', '.join(sorted(job.learner.can))} ({_suited(job.learner)})"
        )
    if job.algorithm.collective == "gang":
        _check_gang(job)
    _check_columns(job)
    if isinstance(job.algorithm, Demanding):
        job.algorithm.check(job.rounds.count, job.transforms)
    for option, asked in job.asked.items():
        if asked > 1 and asked != int(asked):
            raise InputError(
                f"{option} = {asked:g}: above 1 it is a number of clients (write a whole one, or a share of at most 1)"
            )
    e = job.evaluation
    if (e.best or e.patience) and not job.split.validation:
        which = "best = true" if e.best else f"patience = {e.patience}"
        raise InputError(f"evaluation.{which}: needs validation rows to judge by (set split.validation, for example to 0.1)")


def _check_gang(job: Job) -> None:
    """Refuse what a gang, which trains on all rows as one owner's, has no place for, and a layout that the engine has none for."""
    job.algorithm.parallel.filled(job.engine.name, getattr(job.engine, "slots", None))
    r = job.rounds
    given = {"transforms": job.transforms, "clock": job.clock, "rounds.clients": r.clients != 1.0, "rounds.quorum": r.quorum != 1.0}
    for option in (name for name, value in given.items() if value):
        raise InputError(
            f"{option}: algorithm {job.algorithm.name!r} trains in a gang, on the rows of all clients as one owner's, where there are no "
            f"single updates (leave {option} out, or write algorithm.name = 'fedavg')"
        )


def _check_columns(job: Job) -> None:
    """Refuse what does not go with columns that are split, or with rows."""
    split = getattr(job.partition, "name", "") == "features"
    if split != ("parts" in job.algorithm.needs):
        raise InputError(
            f"partition 'features' gives every client other columns, and algorithm {job.algorithm.name!r} wants the same ones everywhere "
            "(write algorithm.name = 'coordinate_descent' or 'sharing_admm', or split the rows: partition.name = 'iid')"
            if split
            else f"algorithm {job.algorithm.name!r} is for columns that are split over the clients (write partition.name = 'features' with "
            "partition.parts or partition.groups, or choose another algorithm)"
        )
    if not split:
        return
    if job.transforms:
        raise InputError(
            f"transforms: {job.transforms[0].name!r} changes updates, and sums of partial predictions must be exact (leave transforms out)"
        )
    if job.evaluation.clients != 1.0:
        raise InputError(
            f"evaluation.clients = {job.evaluation.clients:g}: every client holds a part of each prediction (write evaluation.clients = 1)"
        )


SUITED = {
    "trees": "Forest", "clusters": "Lloyd", "moments": "PrincipalComponents", "hessian": "Newton", "gradient": "LBFGS",
    "train": "FedAvg",
}  # fmt: skip
"""What a learner can do: the algorithm that does most with it, by its public name, the most telling first."""


def _suited(learner: Any) -> str:
    """What to write for an algorithm that a learner can serve."""
    import hansa

    fitting = [getattr(hansa, public) for can, public in SUITED.items() if can in learner.can]
    if not fitting:
        return "choose another learner"
    names, objects = " or ".join(repr(one.name) for one in fitting), " or ".join(f"hansa.{one.__name__}()" for one in fitting)
    return f"write algorithm.name = {names}; in Python {objects}"


def _named(learner: Any) -> str:
    estimator = getattr(learner, "estimator", None)
    return str(getattr(learner, "name", type(learner).__name__) if estimator is None else estimator)


def load(source: str | Path, overrides: tuple[str, ...] = ()) -> Job:
    """Read a job from a TOML file. ``overrides`` are assignments like ``algorithm.mu=0.1``, their values in TOML."""
    path = Path(source)
    if not path.is_file():
        raise InputError(f"job {path}: no such file (hansa new writes a starter job)")
    try:
        return from_text(path.read_text("utf-8"), overrides, str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"job {path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None


def from_text(text: str, overrides: tuple[str, ...] = (), where: str = "job") -> Job:
    """A job from the text of a TOML file; InputError for bad syntax, unknown keys and values out of range."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where}: not valid TOML: {error}") from None
    for assignment in overrides:
        _override(table, assignment)
    return from_table(table)


def _override(table: dict[str, Any], assignment: str) -> None:
    path, sign, value = assignment.partition("=")
    if not sign:
        raise InputError(f"--set {assignment}: write it as key=value, for example algorithm.mu=0.1")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word is a string: --set algorithm.name=fedprox
    *parents, last = path.strip().split(".")
    for place, parent in enumerate(parents):
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            above = ".".join(parents[: place + 1])
            instead = f"write {above}.name={inner} in its place" if isinstance(inner, str) else f"{above} takes no table"
            raise InputError(f"--set {assignment}: {above} = {inner!r} is a value and has no keys ({instead})")
        table = inner
    table[last] = parsed


def from_table(table: Mapping[str, Any]) -> Job:
    """A job from plain dictionaries, as TOML gives them."""
    known = {f.name for f in fields(Job)}
    for key in table:
        if key not in known:
            raise InputError(f"job: unknown key {key!r}{did_you_mean(key, known)}")
    for key in ("data", "learner", "algorithm"):
        if key not in table:
            raise InputError(f"job: [{key}] is missing (write a table [{key}] with a name; `hansa new` prints a full example)")
    return Job(**table)


def to_table(job: Job) -> dict[str, Any]:
    """The job as plain dictionaries; what is not plain (data in memory, objects) is described and cannot be read back."""
    return describe(job)


def to_text(job: Job) -> str:
    """The job as TOML."""
    import tomli_w

    return tomli_w.dumps(to_table(job))


def is_plain(job: Job) -> bool:
    """Whether the job can be read back from its TOML text."""
    try:
        return to_table(from_table(to_table(job))) == to_table(job)
    except InputError:
        return False
