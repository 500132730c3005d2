"""What several test modules share."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The same examples each time, and no test asserts a time.
settings.register_profile("hansa", derandomize=True, deadline=None)
settings.load_profile("hansa")

# Hundreds of processes that tests start import the same modules: they compile them once, whatever the environment says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Ray's workers are nice to others; where the tests of another module use the other core, they would hardly run at all.
os.environ.setdefault("RAY_worker_niceness", "0")

# A Java of the tests lives for seconds: the second compiler and the collector with threads would cost it more than they bring.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")

LONG = (
    "engines/test_spark.py", "conformance/test_engine.py", "engines/test_ray.py", "engines/test_dask.py", "engines/test_torchrun.py",
    "learners/test_parallel.py", "federation/test_faults.py", "federation/test_relay.py", "federation/test_postgres.py",
    "cli/test_main.py", "test_runs.py", "test_search.py", "test_docs.py", "conformance/test_learner.py", "test_scale.py",
    "federation/test_federation.py", "test_laws.py", "test_each.py", "federation/test_fuzz.py", "test_examples.py",
    "learners/test_jax.py", "test_clock_runs.py", "core/test_coded.py", "data/test_parts_frames.py", "federation/test_calls.py",
    "federation/test_network.py", "federation/test_soak.py", "federation/test_no_room.py", "core/test_many.py", "test_startup.py",
    "engines/test_processes.py", "algorithms/test_coordinate_descent.py", "engines/test_remote_gang.py",
)  # fmt: skip
"""Modules that take a quarter of a minute and more, about the longest first."""

SPARK = ("engines/test_spark.py", "conformance/test_engine.py")
"""Modules that one worker of several is given together: each worker would start a Spark of its own for them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules first, so that several workers, each of which takes the next module, end at the same time."""
    here = Path(__file__).parent
    order = {here / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where modules are given out whole, those of :data:`SPARK` go together."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByModule(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module: str = super()._split_scope(nodeid)
            return "spark" if module.endswith(SPARK) else module

    return ByModule(config, log)


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """One Spark of this machine for all tests of a session: engines without an address find it in this process."""
    if find_spec("pyspark") is None:
        pytest.skip("the extra spark is not installed")
    java = os.path.join(os.environ["JAVA_HOME"], "bin", "java") if "JAVA_HOME" in os.environ else "java"
    if shutil.which(java) is None:
        pytest.skip("Spark needs Java")
    from hansa.engines.spark_session import open_spark

    cluster = open_spark("", workers=3)
    yield cluster
    cluster.end()
