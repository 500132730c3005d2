"""The client's say: what a job may ask of this client's data, decided by the client, before anything is computed.

A policy is a TOML file, ``policy.toml``. What it does not name is allowed, and what it does not know is refused::

    contact = "data-office@hospital-a.example"
    jobs = ["heart-*"]
    learners = ["sklearn"]
    columns = ["age", "sex", "chol"]
    max_rounds = 100
    min_clients = 4
    metrics = ["train/loss", "accuracy"]

What a job is called, how many clients take part and how much privacy the run promises is the server's word. What concerns this client's
data and its own work (learner, algorithm, transforms, columns, label, split, rows, epochs, metrics, how many evaluations) is what it is
about to do: it is read off the call and the rows, and needs nobody's word.

There is no rule for single facts of the description that comes before the first round: without all of them a job cannot be checked
(:mod:`hansa.data.rules`). ``columns`` decides whose facts are told; a client that must not tell them must not take part.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from annotated_types import Ge, Gt

from hansa.core.errors import InputError
from hansa.options import build

Kind: TypeAlias = Literal["describe", "prepare", "train", "evaluate"]


@dataclass(frozen=True)
class Ask:
    """What a job asks of this client at one point of a run.

    None says that a thing is not there (no labels, no passes over the rows, no guarantee of privacy), and where a rule needs it, the
    rule refuses. Only for "describe", the first of all, it may also say that a thing is not known yet, and the rule waits. But columns
    and rows have to be known from the start, because the description tells of them.

    run:                of the server. job: its name.
    round:              of training, counted from 0.
    epochs:             passes over the rows in a round.
    clients:            of the run's population.
    secure_aggregation: whether the server sees sums only.
    epsilon:            of the whole run's guarantee of differential privacy; None for none.
    columns:            of the features that the job uses, those that a preparation uses included; empty where they are one array.
    label:              column of the labels; empty where there are labels and no name of theirs is known.
    metrics:            names of those that it wants reported, as a run's records have them: test/auc.
    rows:               at this client, of the split that is used; the fewest of all splits where all are.
    evaluations:        of models on this client's rows that the run has asked for, by this client's own count, with this one.
    """

    run: str
    job: str
    kind: Kind
    learner: str | None = None
    algorithm: str | None = None
    round: int | None = None
    epochs: int | None = None
    clients: int | None = None
    secure_aggregation: bool = False
    epsilon: float | None = None
    columns: tuple[str, ...] | None = None
    label: str | None = None
    metrics: tuple[str, ...] | None = None
    rows: int | None = None
    evaluations: int | None = None

    @property
    def complete(self) -> bool:
        """Whether None means that a thing is not there, for all but columns and rows, of which it always does."""
        return self.kind != "describe"


@dataclass(frozen=True)
class Refused:
    """Why a client does not do what a job asks. Rule and message are for the server, and tell nothing of the client's rows and columns.

    rule:    the policy's key.
    message: what the job asks, what the policy allows, whom to ask.
    private: what only this client's own log may tell, empty where there is no more.
    """

    rule: str
    message: str
    private: str = ""


JUDGED: Final = 2
"""Splits on which a model is judged after a round, and at the end the best one: validation and test."""

Names: TypeAlias = tuple[str, ...] | None
"""What is allowed; None for everything, and empty for nothing."""


@dataclass(frozen=True)
class Policy:
    """What jobs may ask of a client's data. Everything that is left out is allowed.

    jobs:               their names; * stands for any characters, ? for one, and [ab] for one of these.
    learners:           names of those that may be trained.
    algorithms:         names of those that may be run.
    columns:            of the features that a job may use.
    labels:             columns that a job may use as labels. Data whose label has no name that is known is refused.
    max_rounds:         of training, in one run; and of evaluations what so many rounds need where ``max_evaluations`` is left out.
    max_epochs:         passes over the rows in one round.
    min_clients:        a run has at least so many.
    secure_aggregation: true where the server may see sums only, of several clients' updates.
    max_epsilon:        of the whole run's differential privacy; with it a run without such a guarantee is refused.
    metrics:            that may leave, named as a run's records name them (train/loss, test/auc); loss alone is that of every split.
    min_rows:           nothing is computed from a split (training, validation, test) with fewer rows at this client.
    evaluation:         whether models may be judged on this client's rows.
    max_evaluations:    of models on this client's rows, one split each, in one run. Left out: what ``max_rounds`` rounds need,
                        two for each and two at the end; without ``max_rounds`` any number.
    contact:            whom to ask for more, told to whoever was refused.
    """

    jobs: Names = None
    learners: Names = None
    algorithms: Names = None
    columns: Names = None
    labels: Names = None
    max_rounds: Annotated[int, Ge(0)] | None = None
    max_epochs: Annotated[int, Ge(1)] | None = None
    min_clients: Annotated[int, Ge(1)] = 1
    secure_aggregation: bool = False
    max_epsilon: Annotated[float, Gt(0)] | None = None
    metrics: Names = None
    min_rows: Annotated[int, Ge(0)] = 0
    evaluation: bool = True
    max_evaluations: Annotated[int, Ge(0)] | None = None
    contact: str = field(default="", kw_only=True)

    @classmethod
    def load(cls, path: Path) -> Policy:
        """Read a policy. InputError for a file that is missing, is not TOML, or says what no policy says: nothing is guessed."""
        try:
            table = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise InputError(
                f"policy {path}: cannot be read ({error.strerror}); write one, an empty file allows everything"
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"policy {path}: not valid TOML: {error}") from None
        policy: Policy = build(cls, table, "policy")
        return policy

    def refuse(self, ask: Ask) -> Refused | None:
        """The first rule that forbids what is asked, None where all allow it."""
        return next(iter(self.refusals(ask)), None)

    def refusals(self, ask: Ask) -> tuple[Refused, ...]:
        """All rules that forbid what is asked."""
        told = ((rule, broken(self, ask)) for rule, broken in RULES.items())
        return tuple(self.refused(rule, ask.job, *why) for rule, why in told if why is not None)

    def refused(self, rule: str, job: str, why: str, private: str = "") -> Refused:
        """A refusal that says whom to ask. why: the rest of a sentence that begins with the job."""
        return Refused(rule, f"job {job!r} {why}; ask {self.contact or 'whoever keeps the policy of this client'}", private)

    def may_leave(self, metrics: Iterable[str]) -> tuple[str, ...]:
        """Those of the metrics that may leave this client, in the order in which they are given."""
        return tuple(name for name in metrics if self.metrics is None or {name, name.partition("/")[2]} & set(self.metrics))


Broken: TypeAlias = tuple[str, str] | None
"""What is asked and what is allowed, for the server; and what stays here. None where a rule allows what is asked."""


def _jobs(policy: Policy, ask: Ask) -> Broken:
    if policy.jobs is None or any(ask.job == pattern or fnmatchcase(ask.job, pattern) for pattern in policy.jobs):
        return None
    return f"is not one of those that the policy allows ({_listed(policy.jobs)})", ""


def _learners(policy: Policy, ask: Ask) -> Broken:
    return _one(policy.learners, ask.learner, ask.complete, "learner")


def _algorithms(policy: Policy, ask: Ask) -> Broken:
    return _one(policy.algorithms, ask.algorithm, ask.complete, "algorithm")


def _one(allowed: Names, given: str | None, complete: bool, what: str) -> Broken:
    if allowed is None or given in allowed or (given is None and not complete):
        return None
    asks = f"does not name its {what}" if given is None else f"asks for the {what} {given!r}"
    return f"{asks}, and the policy allows {_listed(allowed)}", ""


def _columns(policy: Policy, ask: Ask) -> Broken:
    if policy.columns is None:
        return None
    if ask.columns is None:
        return "does not tell which columns it uses, and the policy allows some only", ""
    if not ask.columns:
        return "uses features that are one array, and the policy allows some columns of a table only", ""
    others = [name for name in ask.columns if name not in policy.columns]
    if not others:
        return None
    told = f"uses {len(ask.columns)} columns, and the policy does not allow {len(others)} of them"
    return told, f"columns that are not allowed: {_listed(others)}"


def _labels(policy: Policy, ask: Ask) -> Broken:
    if policy.labels is None or ask.label is None or (ask.label and ask.label in policy.labels):
        return None
    if not ask.label:
        return "uses labels whose column is not known by a name, and the policy allows some columns as labels only", ""
    return "uses a column as its label that the policy does not allow as one", f"the label is {ask.label!r}"


def _max_rounds(policy: Policy, ask: Ask) -> Broken:
    if policy.max_rounds is None:
        return None
    if ask.kind != "train":
        return None if policy.max_evaluations is not None else _evaluations(JUDGED * (policy.max_rounds + 1), ask)
    if ask.round is None:
        return f"does not tell which round it is in, and the policy allows {_count(policy.max_rounds, 'round')}", ""
    if ask.round < policy.max_rounds:
        return None
    return f"asks for a round after {ask.round:,} others, and the policy allows {_count(policy.max_rounds, 'round')}", ""


def _max_epochs(policy: Policy, ask: Ask) -> Broken:
    if policy.max_epochs is None or ask.epochs is None or ask.epochs <= policy.max_epochs:
        return None
    return f"asks for {_count(ask.epochs, 'epoch')} in a round, and the policy allows {policy.max_epochs:,}", ""


def _min_clients(policy: Policy, ask: Ask) -> Broken:
    if policy.min_clients <= 1 or (ask.clients is None and not ask.complete):
        return None
    if ask.clients is None:
        return f"does not tell how many clients take part, and the policy wants at least {policy.min_clients:,}", ""
    if ask.clients >= policy.min_clients:
        return None
    return f"has {_count(ask.clients, 'client')}, and the policy wants at least {policy.min_clients:,}", ""


def _secure_aggregation(policy: Policy, ask: Ask) -> Broken:
    if not policy.secure_aggregation or ask.secure_aggregation:
        return None
    return "shows the server this client's own update, and the policy wants secure aggregation", ""


def _max_epsilon(policy: Policy, ask: Ask) -> Broken:
    if policy.max_epsilon is None or (ask.epsilon is None and not ask.complete):
        return None
    if ask.epsilon is None:
        return f"has no differential privacy, and the policy wants an epsilon of at most {policy.max_epsilon:g}", ""
    if ask.epsilon <= policy.max_epsilon:  # not so for a NaN
        return None
    return f"asks for an epsilon of {ask.epsilon:g}, and the policy allows {policy.max_epsilon:g}", ""


def _metrics(policy: Policy, ask: Ask) -> Broken:
    if policy.metrics is None or ask.metrics is None:  # those that are not known before are held back by `may_leave`
        return None
    allowed = policy.may_leave(ask.metrics)
    others = [name for name in ask.metrics if name not in allowed]
    return (f"asks for the metrics {_listed(others)}, and the policy allows {_listed(policy.metrics)}", "") if others else None


def _min_rows(policy: Policy, ask: Ask) -> Broken:
    if not policy.min_rows:
        return None
    if ask.rows is None:
        return f"does not know this client's rows, and the policy wants at least {policy.min_rows:,}", ""
    if ask.rows >= policy.min_rows:
        return None
    return f"would use fewer than {_count(policy.min_rows, 'row')}, the policy's least", f"there are {_count(ask.rows, 'row')}"


def _evaluation(policy: Policy, ask: Ask) -> Broken:
    if policy.evaluation or ask.kind != "evaluate":
        return None
    return "asks to judge a model on this client's rows, and the policy does not allow evaluation", ""


def _max_evaluations(policy: Policy, ask: Ask) -> Broken:
    return None if policy.max_evaluations is None else _evaluations(policy.max_evaluations, ask)


def _evaluations(most: int, ask: Ask) -> Broken:
    if ask.kind != "evaluate":
        return None
    if ask.evaluations is None:
        return f"does not tell how many evaluations it has asked for, and the policy allows {_count(most, 'evaluation')}", ""
    if ask.evaluations <= most:
        return None
    others = _count(ask.evaluations - 1, "other")
    return f"asks for an evaluation after {others}, and the policy allows {_count(most, 'evaluation')} in a run", ""


RULES: Final[dict[str, Callable[[Policy, Ask], Broken]]] = {
    "jobs": _jobs,
    "learners": _learners,
    "algorithms": _algorithms,
    "columns": _columns,
    "labels": _labels,
    "max_rounds": _max_rounds,
    "max_epochs": _max_epochs,
    "min_clients": _min_clients,
    "secure_aggregation": _secure_aggregation,
    "max_epsilon": _max_epsilon,
    "metrics": _metrics,
    "min_rows": _min_rows,
    "evaluation": _evaluation,
    "max_evaluations": _max_evaluations,
}
"""The policy's key -> what it forbids, in the order in which they are looked at."""


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "") or "none"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
