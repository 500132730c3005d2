"""A result that was not asked for is refused; what a call does not say of its results is limited, and the same for all clients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hansa.algorithms.fedavg import FedAvg
from hansa.algorithms.lloyd import Lloyd
from hansa.core.contracts import Message, Schema
from hansa.core.errors import InputError
from hansa.core.updates import Total, Update
from hansa.core.worker import EvaluateCall, WorkCall
from hansa.federation.expectations import Expected, Value, expected
from hansa.federation.results import decode_result, encode_result
from tests.trees import same_bits

SCHEMA = Schema(("a", "b"), (2,), "float64", (0, 1), 10)
CALL = WorkCall(FedAvg(), Message({"w": np.ones(2), "n": np.ones(1, np.int64)}, {"rate": 1.0}), SCHEMA, 5, 2)
TOTAL = Total({"delta/w": np.ones(2), "delta/n": np.ones(1)}, 10.0, 1, {"loss": (np.float64(1.0), np.float64(10.0))})
EVALUATED = Update({}, np.array([4.0]), {"loss": (np.array([1.0]), np.array([4.0]))})
BAD_TOTALS: dict[str, Callable[[Any], Any]] = {
    "another shape": lambda t: t["values"].update({"delta/w": np.ones(3)}),
    "another dtype": lambda t: t["values"].update({"delta/w": np.ones(2, np.float32)}),
    "text": lambda t: t["values"].update({"delta/w": "1"}),
    "truth values": lambda t: t["values"].update({"delta/w": np.ones(2, bool)}),
    "a value that is not finite": lambda t: t["values"].update({"delta/w": np.array([1.0, np.nan])}),
    "a value that was not asked for": lambda t: t["values"].update({"delta/x": np.ones(2)}),
    "a value that is missing": lambda t: t["values"].pop("delta/w"),
    "another order": lambda t: t.update(values=dict(reversed(t["values"].items()))),
    "a negative weight": lambda t: t.update(weight=-1.0),
    "an infinite weight": lambda t: t.update(weight=float("inf")),
    "a weight that is no number": lambda t: t.update(weight=float("nan")),
    "a weight that is an array": lambda t: t.update(weight=np.ones(1)),
    "two clients": lambda t: t.update(clients=2),
    "a client that is true": lambda t: t.update(clients=True),
    "a metric that is not finite": lambda t: t["metrics"].update(loss=[np.float64("inf"), np.float64(1.0)]),
    "a metric that counts less than nothing": lambda t: t["metrics"].update(loss=[np.float64(1.0), np.float64(-1.0)]),
    "a metric that is an array": lambda t: t["metrics"].update(loss=[np.ones(2), np.ones(2)]),
    "a metric that is alone": lambda t: t["metrics"].update(loss=[np.float64(1.0)]),
    "many metrics": lambda t: t.update(metrics={str(n): [np.float64(1.0), np.float64(1.0)] for n in range(65)}),
    "a result of another kind": lambda t: t.update(collective="gather"),
    "the client's state": lambda t: t.update(state={"c": np.ones(2)}),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_TOTALS)
def test_a_result_that_was_not_asked_for_is_refused(what: str) -> None:
    hope = expected(CALL)
    decode_result(encode_result(TOTAL), hope)
    tree = encode_result(TOTAL)
    tree["values"], tree["metrics"] = dict(tree["values"]), dict(tree["metrics"])
    BAD_TOTALS[what](tree)
    with pytest.raises(InputError):
        decode_result(tree, hope)


def test_every_client_counts_for_one_where_the_job_says_so() -> None:
    equal = expected(replace(CALL, weighting="equal"))
    decode_result(encode_result(replace(TOTAL, weight=1.0)), equal)
    with pytest.raises(InputError, match="weight is 10"):
        decode_result(encode_result(TOTAL), equal)


def test_an_evaluation_has_metrics_and_no_values() -> None:
    hope = expected(EvaluateCall({"w": np.ones(2)}, SCHEMA, 1, 1, "test"))
    assert same_bits(decode_result(encode_result(EVALUATED), hope).metrics, EVALUATED.metrics)
    for wrong in (replace(EVALUATED, values={"x": np.ones((1, 2))}), replace(EVALUATED, weight=np.ones(2)), TOTAL):
        with pytest.raises(InputError):
            decode_result(encode_result(wrong), hope)


def test_results_of_an_algorithm_that_is_not_known_are_limited_and_alike() -> None:
    unknown = Expected("sum", size=100)
    first = decode_result(encode_result(Total({"a": np.ones(3), "b": np.float64(2.0)}, 1.0, 1)), unknown)
    pinned = unknown.like(first)
    assert pinned.values == {"a": Value((3,), ("float64",)), "b": Value((), ("float64",))}
    for values in ({"a": np.ones(4), "b": np.float64(1.0)}, {"a": np.ones(3)}, {"a": np.ones(13)}):
        with pytest.raises(InputError):
            decode_result(encode_result(Total(values, 1.0, 1)), pinned)
    with pytest.raises(InputError, match="more than 100 bytes"):
        decode_result(encode_result(Total({"a": np.ones(13)}, 1.0, 1)), unknown)


def test_what_a_call_declares_may_be_as_large_as_the_model() -> None:
    """The limit in bytes is for what the call does not say, and grows with the model."""
    told = Expected("sum", {"delta/w": Value((50,), ("float64",)), "scores": Value((None,), ("float64",))}, size=100)

    def of(scores: int) -> Any:
        return encode_result(Total({"delta/w": np.ones(50), "scores": np.ones(scores)}, 1.0, 1))

    assert decode_result(of(12), told).values["delta/w"].nbytes == 400
    with pytest.raises(InputError, match="more than 100 bytes"):
        decode_result(of(13), told)
    huge = np.broadcast_to(np.float32(0), (2**15, 2**15))  # 4 GiB, without the memory
    call = WorkCall(FedAvg(), Message({"w": huge}, {"rate": 1.0}), SCHEMA, 1, 1)
    assert expected(call).size == 4 * 2**32 and expected(replace(call, algorithm=Lloyd())).size == 4 * 2**32


def test_a_clients_own_state_does_not_travel() -> None:
    with pytest.raises(InputError, match="stays with the client"):
        encode_result(Update({}, np.ones(1), state={"c": np.ones((1, 2))}))
