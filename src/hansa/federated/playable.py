"""Which jobs a server plays, and how."""

from __future__ import annotations

from pathlib import Path

from hansa import job as jobs
from hansa.core.errors import InputError
from hansa.data.elsewhere import Elsewhere
from hansa.federated.foreign import named_code
from hansa.federation.options import Federation
from hansa.job import Job
from hansa.options import describe


def options_of(job: Job) -> Federation:
    """How its rounds are played."""
    return job.engine if isinstance(job.engine, Federation) else Federation()


def playable(job: Job | str | Path) -> str:
    """The job's text. InputError for a job that no server can play."""
    loaded = job if isinstance(job, Job) else jobs.load(job)
    _check(loaded)
    text = jobs.to_text(loaded)
    if isinstance(job, Job) and not jobs.is_plain(loaded):
        raise InputError(
            "server: clients are told the job as TOML, and this one holds objects that TOML cannot (name them in a file)"
        )
    return text


def _check(job: Job) -> None:
    if not isinstance(job.data, Elsewhere):
        raise InputError(
            f"data.name = {job.data.name!r}: the rows of a federation are at its clients; write data.name = 'elsewhere' and data.task, "
            "and give each client its rows with `hansa client --data`"
        )
    if not isinstance(job.engine, Federation) and job.engine.name != "inline":
        raise InputError(
            f"engine.name = {job.engine.name!r}: a server plays its jobs with 'federation'; leave [engine] out, or name it"
        )
    if job.algorithm.collective == "gang":
        raise InputError(f"algorithm {job.algorithm.name!r}: organisations share no gang; choose one whose clients send sums")
    if job.clock is not None:
        raise InputError("clock: devices are simulated, and a federation's clients are real; leave [clock] out")
    quorum, enough = job.rounds.quorum, options_of(job).enough
    if enough < quorum:
        raise InputError(
            f"engine.enough = {enough:g}: rounds would close below rounds.quorum = {quorum:g}; raise it, or lower the quorum"
        )


def name_of(text: str, own: bool) -> str:
    """The name of a job. InputError for one that cannot be played, and, but for the server's own, for one that names code: whoever
    submits jobs does not decide what is imported here."""
    job = jobs.from_text(text, where="the submitted job")
    _check(job)
    for code in () if own else named_code(describe(job.learner)):
        raise InputError(
            f"the learner names the code {code!r}, and a server imports none by name for whoever submits a job; have it started where "
            "the server is: hansa server JOB.toml"
        )
    return job.name or f"{getattr(job.learner, 'name', 'model')}-{job.algorithm.name}"
