"""What several test modules share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest


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
