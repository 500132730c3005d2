"""A client's policy: what each rule refuses, and that a stricter one never refuses less."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.errors import InputError
from hansa.federation.policy import RULES, Ask, Policy, Refused

ASK = Ask(
    run="run-1",
    job="heart-disease",
    kind="train",
    learner="sklearn",
    algorithm="fedavg",
    round=4,
    epochs=3,
    clients=4,
    secure_aggregation=False,
    epsilon=2.0,
    columns=("age", "chol"),
    label="num",
    metrics=("train/loss", "test/accuracy"),
    rows=50,
    evaluations=7,
)
JUDGE = replace(ASK, kind="evaluate")

CASES: list[tuple[str, str, str, Ask]] = [
    # rule, what refuses, what allows, what is asked
    ("jobs", '["lung-*", "heart"]', '["lung-*", "heart-*"]', ASK),
    ("jobs", "[]", '["heart-disease"]', ASK),
    ("jobs", '["heart[2]"]', '["heart[1]"]', replace(ASK, job="heart[1]")),
    ("jobs", '["HEART-*"]', '["heart-diseas?"]', ASK),
    ("learners", '["torch", "mlp"]', '["torch", "sklearn"]', ASK),
    ("learners", '["sk*"]', '["sklearn"]', ASK),
    ("algorithms", '["newton"]', '["fedavg"]', ASK),
    ("columns", '["age"]', '["age", "chol", "sex"]', ASK),
    ("columns", '["*"]', '["age", "chol"]', replace(ASK, kind="describe")),
    ("labels", '["age"]', '["num"]', ASK),
    ("max_rounds", "4", "5", ASK),
    ("max_rounds", "0", "1", replace(ASK, round=0)),
    ("max_epochs", "2", "3", ASK),
    ("min_clients", "5", "4", ASK),
    ("secure_aggregation", "true", "false", ASK),
    ("max_epsilon", "1.9", "2", ASK),
    ("metrics", '["accuracy"]', '["accuracy", "train/loss", "auc"]', ASK),
    ("metrics", '["train/loss", "train/accuracy"]', '["train/loss", "test/accuracy"]', ASK),
    ("metrics", '["test/loss", "accuracy"]', '["loss", "accuracy"]', ASK),
    ("min_rows", "51", "50", ASK),
    ("evaluation", "false", "true", JUDGE),
    ("max_evaluations", "6", "7", JUDGE),
    ("max_evaluations", "0", "1", replace(JUDGE, evaluations=1)),
]


def policy(tmp_path: Path, text: str) -> Policy:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return Policy.load(path)


@pytest.mark.parametrize(("rule", "refuses", "allows", "ask"), CASES)
def test_each_rule_refuses_and_allows(tmp_path: Path, rule: str, refuses: str, allows: str, ask: Ask) -> None:
    refused = policy(tmp_path, f"{rule} = {refuses}").refuse(ask)
    assert refused is not None
    assert refused.rule == rule
    assert repr(ask.job) in refused.message
    assert refused.message.endswith("; ask whoever keeps the policy of this client")
    assert policy(tmp_path, f"{rule} = {allows}").refuse(ask) is None


def test_every_rule_has_a_case_and_every_key_a_rule() -> None:
    assert {case[0] for case in CASES} == set(RULES) == {option.name for option in fields(Policy)} - {"contact"}


@pytest.mark.parametrize("kind", ["describe", "prepare", "train", "evaluate"])
def test_an_empty_policy_allows_everything(tmp_path: Path, kind: Any) -> None:
    empty = policy(tmp_path, "")
    assert empty == Policy()
    assert empty.refuse(Ask("run-1", "any", kind)) is None
    assert empty.refuse(replace(ASK, kind=kind, epsilon=None)) is None
    assert empty.may_leave(["a", "b"]) == ("a", "b")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('colums = ["age"]', "unknown key 'colums' .did you mean 'columns'"),
        ("[rules]\nmax_rounds = 3", "unknown key 'rules'"),
        ('jobs = "heart"', "policy.jobs"),
        ("jobs = [1]", "policy.jobs"),
        ("max_rounds = -1", "policy.max_rounds"),
        ("max_rounds = 1.5", "policy.max_rounds"),
        ("max_epsilon = 0", "policy.max_epsilon"),
        ("max_epsilon = nan", "policy.max_epsilon"),
        ("min_clients = 0", "policy.min_clients"),
        ('secure_aggregation = "perhaps"', "policy.secure_aggregation"),
        ("jobs = [", "not valid TOML"),
        ("max_rounds = 3\nmax_rounds = 4", "not valid TOML"),
    ],
)
def test_what_is_no_policy_is_refused(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        policy(tmp_path, text)


def test_a_policy_that_is_not_there_allows_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an empty file allows everything"):
        Policy.load(tmp_path / "policy.toml")
    (tmp_path / "policy.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not valid TOML"):
        Policy.load(tmp_path / "policy.toml")


def test_what_is_not_known_yet_is_not_refused_and_what_never_will_be_is() -> None:
    begins = Ask("run-1", "heart", "describe")
    rules: dict[str, Any] = {"learners": ("a",), "algorithms": ("a",), "max_rounds": 9, "min_clients": 2, "max_epsilon": 1.0}
    begins = replace(begins, evaluations=1)
    late: tuple[Any, ...] = ("prepare", "evaluate")
    for rule, value in rules.items():
        strict = Policy(**{rule: value})
        assert strict.refuse(begins) is None
        refused = strict.refuse(replace(begins, kind="train"))
        assert refused is not None and refused.rule == rule
        for kind in late:
            refused = strict.refuse(replace(begins, kind=kind))
            assert (refused is None) == (rule == "max_rounds")


@pytest.mark.parametrize("kind", ["describe", "prepare", "train", "evaluate"])
def test_columns_and_rows_have_to_be_known_before_anything_is_told_of_them(kind: Any) -> None:
    rules: dict[str, Any] = {"columns": ("age",), "min_rows": 5}
    for rule, value in rules.items():
        refused = Policy(**{rule: value}).refuse(Ask("run-1", "heart", kind))
        assert refused is not None and refused.rule == rule


def test_a_job_without_labels_epochs_or_metrics_breaks_no_rule_about_them() -> None:
    strict = Policy(labels=("num",), max_epochs=1, metrics=("accuracy",))
    assert strict.refuse(replace(ASK, label=None, epochs=None, metrics=None)) is None
    assert strict.may_leave(["train/loss", "accuracy", "auc", "accuracy"]) == ("accuracy", "accuracy")


def test_labels_without_a_name_are_none_that_are_allowed() -> None:
    for names in ((), ("num",), ("",)):
        refused = Policy(labels=names).refuse(replace(ASK, label=""))
        assert refused is not None and refused.rule == "labels"
    assert Policy().refuse(replace(ASK, label="")) is None


def test_as_many_evaluations_as_the_rounds_need_unless_a_policy_says_how_many() -> None:
    for strict, rule, most in (
        (Policy(max_rounds=3), "max_rounds", 8),
        (Policy(max_rounds=3, max_evaluations=20), "max_evaluations", 20),
        (Policy(max_evaluations=0), "max_evaluations", 0),
    ):
        assert strict.refuse(replace(JUDGE, evaluations=most)) is None
        refused = strict.refuse(replace(JUDGE, evaluations=most + 1))
        assert refused is not None and refused.rule == rule
    assert Policy().refuse(replace(JUDGE, evaluations=None)) is None


def test_features_that_are_one_array_are_no_columns_that_are_allowed() -> None:
    refused = Policy(columns=("age",)).refuse(replace(ASK, columns=()))
    assert refused is not None and "one array" in refused.message


def test_an_epsilon_that_is_none_is_too_large() -> None:
    for epsilon in (float("nan"), float("inf"), 1e9):
        refused = Policy(max_epsilon=100.0).refuse(replace(ASK, epsilon=epsilon))
        assert refused is not None and refused.rule == "max_epsilon"


def test_the_server_is_told_nothing_of_rows_and_columns() -> None:
    asked = replace(ASK, columns=("age", "hiv_status"), label="relapse", rows=17)
    for strict, kept in (
        (Policy(columns=("age",)), "hiv_status"),
        (Policy(labels=("num",)), "relapse"),
        (Policy(min_rows=20), "17"),
    ):
        refused = strict.refuse(asked)
        assert refused is not None
        assert kept in refused.private
        assert kept not in refused.message


def test_a_refusal_says_whom_to_ask() -> None:
    assert Policy(max_rounds=3, contact="dpo@hospital-a.example").refuse(ASK) == Refused(
        "max_rounds",
        "job 'heart-disease' asks for a round after 4 others, and the policy allows 3 rounds; ask dpo@hospital-a.example",
    )


words = st.sampled_from(["a", "b", "ab", "a*", "?", "*"])
names = st.none() | st.lists(words, max_size=4).map(tuple)
whole = st.integers(0, 4)
asks = st.builds(
    Ask,
    run=st.just("r"),
    job=words,
    kind=st.sampled_from(["describe", "prepare", "train", "evaluate"]),
    learner=st.none() | words,
    algorithm=st.none() | words,
    round=st.none() | whole,
    epochs=st.none() | whole,
    clients=st.none() | whole,
    secure_aggregation=st.booleans(),
    epsilon=st.none() | st.floats(),
    columns=names,
    label=st.none() | words,
    metrics=names,
    rows=st.none() | whole,
    evaluations=st.none() | whole,
)
rules: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(["jobs", "learners", "algorithms", "columns", "labels", "metrics"], names),
    "max_rounds": st.none() | whole,
    "max_epochs": st.none() | st.integers(1, 4),
    "min_clients": st.integers(1, 4),
    "secure_aggregation": st.booleans(),
    "max_epsilon": st.none() | st.floats(0.1, 4),
    "min_rows": whole,
    "evaluation": st.booleans(),
    "max_evaluations": st.none() | whole,
}
# A few rules each: one with all of them refuses nearly everything, and the first rule hides the others.
some = st.one_of([st.tuples(st.just(rule), values) for rule, values in rules.items()])
policies = st.lists(some, max_size=3).map(lambda chosen: Policy(**dict(chosen)))


def stricter(first: Policy, second: Policy) -> Policy:
    """The policy that allows what both allow, as far as lists of names can say it: for globs, the first's that are the second's."""

    def both(a: Any, b: Any) -> Any:
        return b if a is None else a if b is None else tuple(name for name in a if name in b)

    def least(a: Any, b: Any) -> Any:
        return b if a is None else a if b is None else min(a, b)

    merged: dict[str, Any] = {
        name: both(getattr(first, name), getattr(second, name))
        for name in ("jobs", "learners", "algorithms", "columns", "labels", "metrics")
    }
    merged |= {name: least(getattr(first, name), getattr(second, name)) for name in ("max_rounds", "max_epochs", "max_epsilon")}
    counted = [
        p.max_evaluations if p.max_rounds is None or p.max_evaluations is not None else 2 * p.max_rounds + 2
        for p in (first, second)
    ]
    merged["max_evaluations"] = least(*counted)
    return Policy(
        **merged,
        min_clients=max(first.min_clients, second.min_clients),
        min_rows=max(first.min_rows, second.min_rows),
        secure_aggregation=first.secure_aggregation or second.secure_aggregation,
        evaluation=first.evaluation and second.evaluation,
    )


@settings(max_examples=250)
@given(first=policies, second=policies, ask=asks)
def test_a_policy_that_allows_nothing_more_never_refuses_less(first: Policy, second: Policy, ask: Ask) -> None:
    both = stricter(first, second)
    if first.refuse(ask) or second.refuse(ask):
        assert both.refuse(ask) is not None
    asked = ask.metrics or ()
    assert set(both.may_leave(asked)) <= set(first.may_leave(asked)) & set(second.may_leave(asked))


@settings(max_examples=150)
@given(policy=policies, ask=asks)
def test_a_refusal_names_a_rule_that_refuses_alone(policy: Policy, ask: Ask) -> None:
    refused = policy.refuse(ask)
    if refused is not None:
        alone = Policy(**{refused.rule: getattr(policy, refused.rule)})
        assert alone.refuse(ask) == refused
        assert replace(policy, **{refused.rule: getattr(Policy(), refused.rule)}).refuse(ask) != refused
