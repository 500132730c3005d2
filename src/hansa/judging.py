"""What a model is worth on the rows that a job keeps back, which round's is the best, and the model that is given back."""

from __future__ import annotations

from typing import Any

import numpy as np

from hansa.core import metrics as metric
from hansa.core.blocks import Client, LoadedBlock, blocks_of
from hansa.core.contracts import Learner, Schema, State
from hansa.core.errors import InputError, did_you_mean
from hansa.core.loop import Steps, play
from hansa.core.metrics import Metrics
from hansa.core.params import Params
from hansa.core.updates import Gathered
from hansa.job import Evaluation, Job, model_apart
from hansa.opening import Setting


def judge(setting: Setting, schema: Schema, learner: Learner, params: Params, number: int) -> dict[str, float]:
    """The metrics of given params: on every split that the job keeps back, over all clients, and on the central test rows."""
    return play(setting.engine, judge_steps(setting, schema, learner, params, number))


def judge_steps(setting: Setting, schema: Schema, learner: Learner, params: Params, number: int) -> Steps[dict[str, float]]:
    """The steps of :func:`judge`."""
    record: dict[str, float] = {}
    for split in ("validation", "test"):
        if getattr(setting.job.split, split):
            _, total = yield from per_client_steps(setting, schema, params, split, number)
            record |= {f"{split}/{name}": value for name, value in metric.values(total).items()}
    if setting.central is not None:
        record |= {f"central/{name}": value for name, value in metric.values(central(setting, schema, learner, params)).items()}
    return record


def per_client(setting: Setting, schema: Schema, params: Params, split: str, number: int = 0) -> tuple[Gathered, Metrics]:
    """Metrics of one split under given params, of the clients ``setting.judges`` that answer: (of each, over all)."""
    return play(setting.engine, per_client_steps(setting, schema, params, split, number))


def per_client_steps(
    setting: Setting, schema: Schema, params: Params, split: str, number: int = 0
) -> Steps[tuple[Gathered, Metrics]]:
    """The steps of :func:`per_client`."""
    blocks, learner = blocks_of(setting.judges, setting.job.rounds.block), setting.job.learner.bind(schema)
    return setting.arrangement.evaluation(
        learner, params, schema, blocks=blocks, seed=setting.job.seed, round=number, split=split,
        quorum=setting.terms.quorum,
    )  # fmt: skip


def central(setting: Setting, schema: Schema, learner: Learner, params: Params) -> Metrics:
    """Metrics on the data set's own test rows, which are the server's."""
    assert setting.central is not None
    table = setting.central
    if schema.preparer is not None:
        table = schema.preparer.prepare(table, schema.preparation)
    table = learner.arrays(table)
    server = Client("server", dict, {}, len(table))
    block = LoadedBlock(0, (server,), (table,), np.ones(1), setting.job.seed, 0)
    return metric.totals(learner.evaluate(params, block))


def refuse_unknown_metric(job: Job, learner: Learner) -> None:
    """InputError where the model shall be chosen, or training be stopped, by a metric that there is not, or the job names one."""
    e, known = job.evaluation, learner.metric_names
    if e.watch not in known and (e.best or e.patience or e.watch != Evaluation.watch):
        said = did_you_mean(e.watch, known)
        raise InputError(f"evaluation.watch = {e.watch!r}: learner {job.learner.name!r} measures no such metric{said}")


def watched(job: Job, state: State, record: dict[str, Any]) -> State:
    """Remember the best model, count the evaluations since. InputError where nobody's validation rows have told anything yet."""
    if not (job.evaluation.best or job.evaluation.patience):
        return state
    value, best = record[f"validation/{job.evaluation.watch}"], state["best"]
    if best is None and np.isnan(value):
        raise InputError(
            f"evaluation.watch = {job.evaluation.watch!r}: no client has validation rows on which it can be measured (raise "
            f"split.validation = {job.split.validation:g}, or leave evaluation.best and evaluation.patience out)"
        )
    sign = 1.0 if job.evaluation.watch in metric.HIGHER_IS_BETTER else -1.0
    if best is None or sign * (value - best["value"]) > job.evaluation.least:
        kept = {"round": state["round"], "value": value, "params": state["algorithm"]["params"] if job.evaluation.best else {}}
        return {**state, "best": kept, "since": 0}
    return {**state, "since": state["since"] + 1}


def chosen_params(job: Job, state: State) -> Params:
    """The params that the run gives back: those of the best round where the job asks for them, else the last."""
    if job.evaluation.best and state["best"] is not None:
        return dict(state["best"]["params"])
    return dict(state["algorithm"]["params"])


def exported(setting: Setting, preparation: Any, params: Params) -> Any:
    """The fitted model, with the fitted preparation before it where there is one: ordinary objects of their own libraries.

    Behind a preparation a model of another library than scikit-learn's is a :class:`hansa.learners.step.Step`, which holds it.
    """
    _, learner = setting.bound(preparation)
    if setting.fit is None:
        return learner.export(params)
    model = learner.step(params) if hasattr(learner, "step") else learner.export(params)
    from sklearn.pipeline import Pipeline, make_pipeline

    fitted = setting.arrangement.fitted(setting.transformer, preparation)
    steps = list(fitted.steps) if isinstance(fitted, Pipeline) else make_pipeline(fitted).steps
    _, name = model_apart(setting.job.preparation)
    name = name or make_pipeline(getattr(model, "module", model)).steps[0][0]
    while name in dict(steps):
        name += "_"
    return Pipeline([*steps, (name, model)])
