"""A job: what to do, as one frozen object. It is read, checked and written here, and nothing runs here."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval

from hansa.core.clock import Clock
from hansa.core.contracts import Demanding, UnboundLearner
from hansa.core.devices import Devices
from hansa.core.errors import InputError, did_you_mean
from hansa.core.schedules import Constant, Schedule
from hansa.core.traces import Trace
from hansa.core.worker import Weighting
from hansa.data.partition import Column
from hansa.data.split import Split
from hansa.engines.inline import Inline
from hansa.options import build, checked, describe


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


@dataclass(frozen=True)
class Job:
    """What is split, who may see what, and where it runs.

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

    data: Any
    learner: Any
    algorithm: Any
    name: str = ""
    seed: Annotated[int, Ge(0)] = 0
    partition: Any = field(default_factory=Column)
    split: Split = field(default_factory=Split)
    preparation: Any = None
    transforms: tuple[Any, ...] = ()
    rounds: Rounds = field(default_factory=Rounds)
    evaluation: Evaluation = field(default_factory=Evaluation)
    clock: Clock | None = None
    engine: Any = field(default_factory=Inline)

    def __post_init__(self) -> None:
        learner, preparation = adapt(self.learner)
        if preparation is not None and self.preparation is not None:
            raise InputError("job.preparation: the learner is a pipeline that brings its own preparation (give only one of them)")
        object.__setattr__(self, "learner", learner)
        object.__setattr__(self, "preparation", self.preparation if preparation is None else preparation)
        checked(self, "job")
        _check(self)


def adapt(given: Any) -> tuple[UnboundLearner, Any]:
    """A learner from what the user has, and the preparation that a scikit-learn pipeline brings with it (or None).

    Such a preparation ends with a step that lets everything pass, in the model's place and by its name (:func:`model_apart`).
    """
    if isinstance(given, Mapping):
        return build("learner", given), None
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
        f"job.learner: {kind.__name__} is not something that Hansa trains "
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
            f"{_named(job.learner)} offers {', '.join(sorted(job.learner.can))} (choose another algorithm or learner)"
        )
    if job.algorithm.collective == "gang":
        _check_gang(job)
    _check_columns(job)
    if isinstance(job.algorithm, Demanding):
        job.algorithm.check(job.rounds.count, job.transforms)
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
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {assignment}: {parent} is a value, not a table")
    table[last] = parsed


POLYMORPHIC: dict[str, str] = {
    "data": "data",
    "learner": "learner",
    "algorithm": "algorithm",
    "partition": "partition",
    "preparation": "preparation",
    "engine": "engine",
}
"""Job fields whose class is found by ``name`` among the entry points ``hansa.<group>``."""


def from_table(table: Mapping[str, Any]) -> Job:
    """A job from plain dictionaries, as TOML gives them."""
    known = {f.name for f in fields(Job)}
    for key in table:
        if key not in known:
            raise InputError(f"job: unknown key {key!r}{did_you_mean(key, known)}")
    for key in ("data", "learner", "algorithm"):
        if key not in table:
            raise InputError(f"job: [{key}] is missing (write a table [{key}] with a name; `hansa new` prints a full example)")
    parts: dict[str, Any] = {}
    for key, value in table.items():
        if key in POLYMORPHIC:
            parts[key] = build(POLYMORPHIC[key], value, key)
        elif key == "transforms":
            parts[key] = tuple(build("transform", item, f"transforms[{place}]") for place, item in enumerate(value))
        elif key in ("split", "rounds", "evaluation"):
            parts[key] = build({"split": Split, "rounds": Rounds, "evaluation": Evaluation}[key], value, key)
        elif key == "clock":
            parts[key] = _clock(value)
        else:
            parts[key] = value
    return Job(**parts)


def _clock(given: Any) -> Clock:
    table = {"name": given} if isinstance(given, str) else given
    name = table.get("name", Devices.name) if isinstance(table, Mapping) else Devices.name
    kinds = {"devices": Devices, "trace": Trace}
    if name not in kinds:
        raise InputError(f"clock.name = {name!r}: there is no such clock{did_you_mean(str(name), kinds)}")
    clock: Clock = build(kinds[name], table, "clock")
    return clock


def to_table(job: Job) -> dict[str, Any]:
    """The job as plain dictionaries; what is not plain (data in memory, objects) is described and cannot be read back."""
    return describe(job)


def is_plain(job: Job) -> bool:
    """Whether the job can be read back from its TOML text."""
    try:
        return to_table(from_table(to_table(job))) == to_table(job)
    except InputError:
        return False
