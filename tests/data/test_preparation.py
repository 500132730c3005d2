"""Laws of federated preprocessing: it equals scikit-learn's own fit on pooled rows, and only sums of fixed shape leave a client."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, make_column_selector, make_column_transformer
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)

import hansa.data
from hansa.core.blocks import Client, Splits, Table, blocks_of
from hansa.core.errors import InputError, RunFailed
from hansa.core.loop import Terms, play_round
from hansa.core.store import MemoryStore
from hansa.core.updates import Total
from hansa.data.preparation import (
    FitPreparation,
    Layout,
    Preparer,
    Standard,
    feature_names,
    fitted_transformer,
    measure,
    prepared_dtype,
    supported,
)
from hansa.engines.inline import InlineEngine

Candidates = dict[Any, list[Any]]
HEART = Path(hansa.data.__file__).parent / "vendored" / "heart_disease.csv"


def load(x: Any) -> Splits:
    return {"train": Table(x, np.zeros(len(x)))}


def play(transformer: Any, tables: list[Any], candidates: Candidates | None = None, block: int = 2) -> tuple[dict[str, Any], int]:
    """Fit over clients by playing rounds, and count them; the state goes through JSON between any two."""
    algorithm = FitPreparation.of(transformer, Layout.joined(Layout.of(x) for x in tables), candidates)
    engine = InlineEngine()
    clients = [Client(f"client {k}", load, {"x": x}, len(x)) for k, x in enumerate(tables)]
    engine.start(None, clients, MemoryStore())  # type: ignore[arg-type]  # no learner takes part
    state, round = algorithm.init({}, {}), 0
    while not state["done"]:
        round += 1
        state = play_round(
            json.loads(json.dumps(state, allow_nan=False)),
            algorithm=algorithm,
            engine=engine,
            blocks=blocks_of(range(len(tables)), block),
            schema=None,
            round=round,
            rate=1.0,
            terms=Terms(seed=0, population=len(tables)),
        ).state
    return state["fitted"], round


def fit(transformer: Any, tables: list[Any], candidates: Candidates | None = None) -> dict[str, Any]:
    return play(transformer, tables, candidates)[0]


def candidates_of(pooled: pd.DataFrame) -> Candidates:
    return {name: pooled[name].dropna().unique().tolist() for name in pooled}


def dense(x: Any) -> np.ndarray:
    return np.asarray(x.toarray() if sparse.issparse(x) else x, dtype=np.float64)


def assert_same_fit(ours: Any, theirs: Any) -> None:
    """All public fitted attributes agree, through composites."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, str):
        assert ours == theirs
        return
    for name, value in vars(theirs).items():
        if not name.endswith("_") or name.startswith("_"):
            continue
        mine = getattr(ours, name)
        if name == "transformers_":
            for (a, fitted, columns), (b, other, same) in zip(mine, value, strict=True):
                assert a == b
                np.testing.assert_array_equal(columns, same)
                assert_same_fit(fitted, other)
        elif name in ("categories_", "infrequent_categories_"):
            for a, b in zip(mine, value, strict=True):
                assert a.dtype == b.dtype
                assert pd.Index(a).equals(pd.Index(b))
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
            assert mine.dtype == value.dtype
            np.testing.assert_allclose(
                mine, value, rtol=1e-12, atol=1e-12 * max(1.0, float(np.nanmax(np.abs(value), initial=0))), err_msg=name
            )
        elif isinstance(value, np.ndarray):
            assert pd.Series(mine.ravel(), dtype=object).equals(pd.Series(value.ravel(), dtype=object)), name
        elif hasattr(value, "get_params"):
            assert_same_fit(mine, value)
        else:
            assert type(mine) is type(value), name
            assert mine == value, name
    if isinstance(theirs, Pipeline):
        for (a, mine), (b, value) in zip(ours.steps, theirs.steps, strict=True):
            assert a == b
            if not isinstance(value, str) and value is not None:
                assert_same_fit(mine, value)


def assert_equals_pooled(transformer: Any, tables: list[Any], pooled: Any, candidates: Candidates | None = None) -> dict[str, Any]:
    fitted = fit(transformer, tables, candidates)
    assert_fitted_as_pooled(transformer, fitted, tables, pooled)
    return fitted


def assert_fitted_as_pooled(transformer: Any, fitted: dict[str, Any], tables: list[Any], pooled: Any) -> None:
    ours, theirs = fitted_transformer(transformer, fitted), clone(transformer).fit(pooled)
    assert_same_fit(ours, theirs)
    a, b = ours.transform(pooled), theirs.transform(pooled)
    assert type(a) is type(b)
    np.testing.assert_allclose(dense(a), dense(b), rtol=1e-12, atol=1e-12)
    assert feature_names(fitted) == tuple(theirs.get_feature_names_out())
    for x in tables:
        prepared = Preparer().prepare(Table(x, "labels"), fitted)
        assert prepared.y == "labels"
        assert prepared.x.flags["C_CONTIGUOUS"] and prepared.x.dtype == prepared_dtype(fitted)
        assert prepared.x.shape == (len(x), b.shape[1])
        if len(x):
            np.testing.assert_allclose(prepared.x, dense(theirs.transform(x)), rtol=1e-12, atol=1e-12)


@lru_cache
def heart() -> tuple[list[pd.DataFrame], pd.DataFrame]:
    """The four hospitals of the heart-disease data, and their rows together; some columns are empty at some of them."""
    table = pd.read_csv(HEART).drop(columns=["id", "num"])
    hospitals = [rows.drop(columns="dataset") for _, rows in table.groupby("dataset")]
    return hospitals, pd.concat(hospitals)


@lru_cache
def heart_fit(name: str) -> tuple[dict[str, Any], int]:
    """One of the transformers below, fitted over the hospitals, and the rounds that it took."""
    hospitals, pooled = heart()
    return play(TRANSFORMERS[name], hospitals, candidates_of(pooled[CATEGORIES]))


NUMBERS = ["age", "trestbps", "chol", "thalch", "oldpeak", "ca"]
CATEGORIES = ["sex", "cp", "fbs", "restecg", "exang", "slope", "thal"]

TRANSFORMERS = {
    "standard": ColumnTransformer(
        [
            ("numeric", make_pipeline(SimpleImputer(), StandardScaler()), NUMBERS),
            (
                "categorical",
                make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")),
                CATEGORIES,
            ),
        ]
    ),
    "orders": ColumnTransformer(
        [
            ("numeric", make_pipeline(SimpleImputer(strategy="median", add_indicator=True), MinMaxScaler((-1, 1))), NUMBERS),
            ("sex", OneHotEncoder(drop="if_binary"), ["sex"]),
        ],
        remainder=OrdinalEncoder(encoded_missing_value=-1),
    ),
    "selectors": make_column_transformer(
        (make_pipeline(SimpleImputer(), RobustScaler(unit_variance=True)), make_column_selector(dtype_include="number")),
        (OneHotEncoder(sparse_output=False, drop="first"), make_column_selector(dtype_exclude="number")),
        verbose_feature_names_out=False,
    ).set_output(transform="pandas"),
    "nested": make_pipeline(
        ColumnTransformer(
            [
                ("a", SimpleImputer(strategy="constant", fill_value=7), NUMBERS),
                ("b", "drop", ["sex"]),
                ("none", StandardScaler(), []),
            ],
            verbose_feature_names_out=False,
        ),
        ColumnTransformer([("first", MaxAbsScaler(), [0, 1]), ("rest", "passthrough", slice(2, 4))], remainder=StandardScaler()),
        "passthrough",
        StandardScaler(with_mean=False),
    ),
    "sparse": make_pipeline(
        ColumnTransformer(
            [("one", OneHotEncoder(), CATEGORIES), ("age", "passthrough", ["age"])], transformer_weights={"one": 2.0}
        ),
        StandardScaler(with_mean=False),
        MaxAbsScaler(),
    ),
    "categories": ColumnTransformer(
        [
            ("sex", OneHotEncoder(categories=[["Male", "Female"]], dtype=np.float32), ["sex"]),
            (
                "cp",
                OrdinalEncoder(categories=[["asymptomatic", "non-anginal"]], handle_unknown="use_encoded_value", unknown_value=-1),
                ["cp"],
            ),
        ]
    ),
    "median": ColumnTransformer([("m", SimpleImputer(strategy="median"), NUMBERS)], remainder="drop", sparse_threshold=0),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_equals_scikit_learn_on_pooled_rows(name: str) -> None:
    hospitals, pooled = heart()
    assert_fitted_as_pooled(TRANSFORMERS[name], heart_fit(name)[0], hospitals, pooled)


def test_export_is_an_ordinary_object() -> None:
    pooled = heart()[1]
    for name in ("standard", "orders", "sparse"):
        transformer = TRANSFORMERS[name]
        exported = fitted_transformer(transformer, heart_fit(name)[0])
        assert b"hansa" not in pickle.dumps(exported)
        assert repr(exported) == repr(transformer)
        again = clone(exported).fit(pooled)
        np.testing.assert_allclose(dense(again.transform(pooled)), dense(exported.transform(pooled)), rtol=1e-12, atol=1e-12)
        assert exported.fit(pooled) is exported


def test_standard_equals_its_own_build_on_pooled_rows() -> None:
    hospitals, pooled = heart()
    kinds = {name: "number" if name in NUMBERS else "category" for name in pooled}
    missing = {name: bool(pooled[name].isna().any()) for name in pooled}
    for option in (Standard(), Standard(numeric="median", categorical="missing"), Standard(scale=False)):
        transformer = option.build(kinds, missing)  # type: ignore[arg-type]  # kinds, as text
        assert_equals_pooled(transformer, hospitals, pooled, candidates_of(pooled[CATEGORIES]))


def test_standard_has_only_the_parts_that_exist() -> None:
    assert [name for name, _ in Standard().build({0: "number"}, {0: False}).steps] == ["scale"]
    assert [name for name, _ in Standard().build({0: "number"}, {0: True}).steps] == ["impute", "scale"]
    only = Standard().build({"a": "category"}, {"a": False})
    assert [name for name, _, _ in only.transformers] == ["categorical"]
    bare = Standard(scale=False).build({0: "number", 1: "number"}, {})
    x = np.arange(6.0).reshape(3, 2)
    fitted = fit(bare, [x[:1], x[1:]])
    assert np.array_equal(Preparer().prepare(Table(x), fitted).x, x)
    assert feature_names(fitted) == ("x0", "x1")


SCALERS = [
    StandardScaler(),
    StandardScaler(with_mean=False),
    StandardScaler(with_std=False),
    StandardScaler(with_mean=False, with_std=False),
    MinMaxScaler(feature_range=(-2, 3), clip=True),
    MaxAbsScaler(),
    RobustScaler(),
    RobustScaler(with_centering=False, quantile_range=(10.0, 61.0), unit_variance=True),
    RobustScaler(with_scaling=False),
    RobustScaler(with_centering=False, with_scaling=False),
    SimpleImputer(),
    SimpleImputer(strategy="median", add_indicator=True),
    SimpleImputer(strategy="median", keep_empty_features=True),
    SimpleImputer(strategy="constant", fill_value=3.5),
    SimpleImputer(strategy="constant", keep_empty_features=True),
]

floats = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: 0.0 if abs(value) < 1e-150 else value)


@st.composite
def arrays(draw: st.DrawFn) -> list[np.ndarray]:
    """One table per client: gaps, constant columns, columns empty at some clients or at all, clients without rows."""
    columns, sizes = draw(st.integers(1, 3)), draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    rows = sum(sizes)
    if rows == 0:
        sizes, rows = [2], 2
    x = np.empty((rows, columns))
    for j in range(columns):
        values = draw(st.sampled_from(["any", "constant", "ties", "empty"]))
        cell = {
            "any": floats,
            "constant": st.just(draw(floats)),
            "ties": st.sampled_from([-1.5, -0.0, 0.0, 2.0]),
            "empty": st.just(np.nan),
        }
        x[:, j] = draw(st.lists(cell[values] | st.just(np.nan), min_size=rows, max_size=rows))
        if len(sizes) > 1 and draw(st.booleans()):
            x[: sizes[0], j] = np.nan
    return np.split(x, np.cumsum(sizes)[:-1])


@pytest.mark.parametrize("transformer", SCALERS, ids=str)
@pytest.mark.filterwarnings("ignore:Skipping features:UserWarning", "ignore:All-NaN:RuntimeWarning", "ignore:Mean of empty")
@settings(max_examples=8)
@given(tables=arrays())
def test_every_numeric_leaf_equals_scikit_learn(transformer: Any, tables: list[np.ndarray]) -> None:
    pooled = np.concatenate(tables)
    fitted = fit(transformer, tables)
    with np.errstate(all="ignore"):  # scikit-learn divides by zero for columns without values
        ours, theirs = fitted_transformer(transformer, fitted), clone(transformer).fit(pooled)
        assert_same_fit(ours, theirs)
        np.testing.assert_allclose(ours.transform(pooled), theirs.transform(pooled), rtol=1e-12, atol=1e-9)


words = st.text(st.characters(exclude_categories=("Cs",)), max_size=4)
ENCODERS = [
    OneHotEncoder(),
    OneHotEncoder(sparse_output=False, drop="first", dtype=np.float32),
    OneHotEncoder(drop="if_binary", handle_unknown="ignore", sparse_output=False),
    OrdinalEncoder(),
    OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-5, encoded_missing_value=-2),
    make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder()),
    make_pipeline(
        SimpleImputer(strategy="constant", fill_value="gone", add_indicator=False, keep_empty_features=True), OrdinalEncoder()
    ),
]


@st.composite
def frames(draw: st.DrawFn) -> list[pd.DataFrame]:
    sizes = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(sum))
    columns: dict[str, pd.Series] = {}
    for name in ("farbe", "größe"):
        values = draw(st.lists(words, min_size=1, max_size=4))
        cells = draw(st.lists(st.sampled_from(values) | st.just(np.nan), min_size=sum(sizes), max_size=sum(sizes)))
        columns[name] = pd.Series([values[0], *cells[1:]], dtype=object)  # one value at least
    pooled = pd.DataFrame(columns)
    return [pooled.iloc[start : start + size] for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False)]


@pytest.mark.parametrize("transformer", ENCODERS, ids=str)
@settings(max_examples=8)
@given(tables=frames())
def test_every_categorical_leaf_equals_scikit_learn(transformer: Any, tables: list[pd.DataFrame]) -> None:
    pooled = pd.concat(tables)
    # A value that is only announced and never seen changes nothing.
    assert_equals_pooled(
        transformer, tables, pooled, {name: ["zz never", *values] for name, values in candidates_of(pooled).items()}
    )


def test_numbers_and_truth_values_as_categories_keep_their_type() -> None:
    tables = [
        pd.DataFrame({"a": [3, 1], "b": [1.5, np.nan], "c": [True, False], "d": pd.array([1, 2], dtype="Int64")}),
        pd.DataFrame({"a": [2, 1], "b": [np.nan, np.nan], "c": [True, True], "d": pd.array([2, 7], dtype="Int64")}),
    ]
    pooled = pd.concat(tables)
    for encoder in (OneHotEncoder(), OrdinalEncoder()):
        fitted = assert_equals_pooled(encoder, tables, pooled, candidates_of(pooled[["a", "b", "d"]]))
    assert feature_names(fit(OneHotEncoder(), tables, candidates_of(pooled[["a", "b", "d"]])))[:3] == ("a_1", "a_2", "a_3")
    assert prepared_dtype(fitted) == "float64"


def test_most_frequent_numbers_take_the_smallest_of_equals() -> None:
    tables = [np.array([[2.0, 5.0], [1.0, np.nan]]), np.array([[np.nan, np.nan], [2.0, np.nan], [1.0, 5.0]])]
    imputer = SimpleImputer(strategy="most_frequent")
    fitted = assert_equals_pooled(imputer, tables, np.concatenate(tables), {0: [2.0, 1.0], 1: [5.0]})
    assert fitted_transformer(imputer, fitted).statistics_.tolist() == [1.0, 5.0]


def test_a_marker_for_missing_values() -> None:
    tables = [np.array([[2, -1], [1, 4]]), np.array([[-1, 3], [7, 9]])]
    for strategy in ("mean", "median", "most_frequent"):
        imputer = SimpleImputer(missing_values=-1, strategy=strategy, add_indicator=True)
        assert_equals_pooled(imputer, tables, np.concatenate(tables), {0: [1, 2, 7], 1: [3, 4, 9]})


def test_single_precision_stays_single() -> None:
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    fitted = fit(make_pipeline(MinMaxScaler(), StandardScaler()), [x[:7], x[7:]])
    assert prepared_dtype(fitted) == "float32"
    prepared = Preparer().prepare(Table(x), fitted).x
    assert prepared.dtype == np.float32
    np.testing.assert_allclose(prepared, make_pipeline(MinMaxScaler(), StandardScaler()).fit_transform(x), rtol=1e-5, atol=1e-6)


def test_variance_survives_a_large_mean() -> None:
    x = 1e9 + np.random.default_rng(1).normal(size=(200, 1))
    scaler = StandardScaler()
    ours = fitted_transformer(scaler, fit(scaler, [x[:3], x[3:90], x[90:]]))
    exact = np.var((x - 1e9).astype(np.longdouble), axis=0)
    np.testing.assert_allclose(ours.var_, exact.astype(float), rtol=1e-12)
    np.testing.assert_allclose(ours.var_, StandardScaler().fit(x).var_, rtol=1e-12)


@pytest.mark.parametrize("name", ["standard", "median"])
def test_how_rows_are_spread_over_clients_changes_nothing(name: str) -> None:
    pooled, transformer = heart()[1], TRANSFORMERS[name]
    order = np.random.default_rng(2).permutation(len(pooled))
    shuffled = [pooled.iloc[rows] for rows in (order[:5], order[:0], order[5:600], order[600:])]
    other = play(transformer, shuffled, candidates_of(pooled[CATEGORIES]), block=3)[0]
    assert_same_fit(fitted_transformer(transformer, other), fitted_transformer(transformer, heart_fit(name)[0]))


def test_answers_do_not_grow_with_rows() -> None:
    hospitals, pooled = heart()
    for name in ("standard", "median", "sparse"):
        algorithm = FitPreparation.of(
            TRANSFORMERS[name], Layout.joined(map(Layout.of, hospitals)), candidates_of(pooled[CATEGORIES])
        )
        state = algorithm.init({}, {})
        while not state["done"]:
            answers = [measure(x, state["fitted"]) for x in (hospitals[0], hospitals[1].iloc[:1], hospitals[2].iloc[:0], pooled)]
            shapes = [{name: (value.shape, value.dtype) for name, value in answer.items()} for answer in answers]
            assert all(shape == shapes[0] for shape in shapes)
            assert not any(value.any() for value in answers[2].values())  # no rows add nothing
            state = algorithm.update(state, Total(answers[3], 1.0, 1))


def test_rounds_are_those_of_the_slowest_branch() -> None:
    rounds = {name: heart_fit(name)[1] for name in ("standard", "orders", "median", "categories")}
    # mean, then two for the scale, then the density; median and then minimum and maximum; ...; both encoders at once, the density
    assert rounds == {"standard": 4, "orders": 19, "median": 9, "categories": 2}
    given = OneHotEncoder(categories=[["a", "b"]], handle_unknown="ignore")
    assert play(given, [pd.DataFrame({"c": ["a", "d"]})])[1] == 0


def test_preparer_is_a_value() -> None:
    assert Preparer() == Preparer() == pickle.loads(pickle.dumps(Preparer()))  # noqa: S301  # our own bytes
    algorithm = FitPreparation.of(StandardScaler(), Layout((), ("float64",)))
    assert pickle.loads(pickle.dumps(algorithm)) == algorithm  # noqa: S301  # our own bytes
    assert algorithm == FitPreparation.of(StandardScaler(), Layout((), ("float64",)))


def test_the_users_transformer_and_tables_stay_as_they_were() -> None:
    hospitals, pooled = heart()
    transformer = ColumnTransformer([("s", StandardScaler(copy=False), ["age"])])
    before = [x.copy() for x in hospitals]
    fitted = fit(transformer, hospitals)
    fitted_transformer(transformer, fitted)
    Preparer().prepare(Table(pooled), fitted)
    assert not hasattr(transformer, "transformers_") and not hasattr(transformer.transformers[0][1], "mean_")
    for x, same in zip(hospitals, before, strict=True):
        pd.testing.assert_frame_equal(x, same)


def test_import_is_light() -> None:
    code = "import sys, hansa.data.preparation; print([m for m in ('sklearn', 'pandas', 'scipy', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


FRAME = pd.DataFrame({"age": [1.0, 2.0], "cp": ["a", "b"]})


@pytest.mark.parametrize(
    ("transformer", "message"),
    [
        (PCA(), "PCA cannot be fitted"),
        ("drop", "drop cannot be fitted"),
        (make_pipeline(StandardScaler(), FunctionTransformer()), "step functiontransformer: FunctionTransformer cannot"),
        (ColumnTransformer([("n", make_pipeline(StandardScaler(), PCA()), ["age"])]), "step n__pca: PCA cannot .*StandardScaler"),
        (ColumnTransformer([("n", StandardScaler(), "age")]), r"write \['age'\]"),
        (StandardScaler(), "StandardScaler.*'cp' holds text"),
        (ColumnTransformer([("c", OneHotEncoder(), ["cp"])]), r"step c .*'cp' are not known.*candidates\['cp'\]"),
        (ColumnTransformer([("n", SimpleImputer(strategy="most_frequent"), ["age"])]), "'age' are not known"),
        (ColumnTransformer([("n", make_pipeline(StandardScaler(), OneHotEncoder()), ["age"])]), "n__onehotencoder"),
        (ColumnTransformer([("n", SimpleImputer(strategy=np.mean), ["age"])]), "function as strategy"),
        (SimpleImputer(missing_values=None), "numpy.nan instead of None"),
        (ColumnTransformer([("c", OneHotEncoder(max_categories=3), ["cp"])]), "max_categories=3 is not supported"),
        (ColumnTransformer([("c", OneHotEncoder(feature_name_combiner=max), ["cp"])]), "option c__feature_name_combiner"),
        (ColumnTransformer([("n", StandardScaler(), ["agee"])]), "agee"),
        (ColumnTransformer([("n", MinMaxScaler((3, 1)), ["age"])]), "step n .*Minimum of desired"),
        (ColumnTransformer([("n", "passthrough", ["cp"])]), "n__cp holds text"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(transformer: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FitPreparation.of(transformer, Layout.of(FRAME))


def test_candidates_name_existing_columns() -> None:
    with pytest.raises(InputError, match=r"no column 'cpp' .did you mean 'cp'"):
        FitPreparation.of(StandardScaler(), Layout.of(FRAME), {"cpp": ["a"]})


def test_a_value_that_was_not_announced_is_refused() -> None:
    with pytest.raises(InputError, match="column 'cp': 1 of 2 rows hold a value that is not among the 2"):
        fit(ColumnTransformer([("c", OneHotEncoder(), ["cp"])]), [FRAME], {"cp": ["a"]})


def test_a_value_that_was_not_seen_in_training_is_refused_where_the_encoder_says_so() -> None:
    fitted = fit(ColumnTransformer([("c", OneHotEncoder(), ["cp"])]), [FRAME], {"cp": ["a", "b"]})
    with pytest.raises(InputError, match="cannot be transformed: Found unknown categories"):
        Preparer().prepare(Table(pd.DataFrame({"age": [1.0], "cp": ["new"]})), fitted)


def test_the_same_clients_take_part_in_all_rounds() -> None:
    algorithm = FitPreparation.of(StandardScaler(), Layout((), ("float64",)))
    x, state = np.ones((3, 1)), algorithm.init({}, {})
    state = algorithm.update(state, Total(measure(x, state["fitted"]), 4.0, 4))
    with pytest.raises(RunFailed, match="3 clients took part in this round, 4 in the rounds before"):
        algorithm.update(state, Total(measure(x, state["fitted"]), 3.0, 3))


def test_no_rows_at_all_are_refused() -> None:
    with pytest.raises(InputError, match="no rows at all"):
        fit(StandardScaler(), [np.zeros((0, 2)), np.zeros((0, 2))])


def test_an_unfitted_preparation_is_refused() -> None:
    algorithm = FitPreparation.of(make_pipeline(StandardScaler()), Layout((), ("float64",)))
    with pytest.raises(InputError, match="step standardscaler waits"):
        Preparer().prepare(Table(np.ones((1, 1))), algorithm.init({}, {})["fitted"])


def test_export_takes_the_transformer_that_was_fitted() -> None:
    fitted = fit(make_pipeline(StandardScaler()), [np.ones((2, 1))])
    with pytest.raises(InputError, match="no step 'minmaxscaler'"):
        fitted_transformer(make_pipeline(MinMaxScaler()), fitted)


def test_supported_passes_what_can_be_fitted() -> None:
    for transformer in [*TRANSFORMERS.values(), *SCALERS, *ENCODERS, "passthrough"]:
        supported(transformer)
