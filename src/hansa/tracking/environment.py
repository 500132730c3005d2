"""Where a run ran: what must be known to repeat it, and nothing that must stay secret. No environment variables, no host name."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

_PACKAGES: Final = ("numpy", "scipy", "scikit-learn", "pandas", "torch", "xgboost", "jax", "dask", "ray", "pyspark")
_SECRET: Final = re.compile(r"(token|password|passwd|passphrase|secret|credential|api.?key|private.?key|auth)", re.IGNORECASE)


def environment() -> dict[str, Any]:
    """Versions, processor, memory in bytes, BLAS, git commit and command line, as plain JSON values; None for what is unknown.

    A package that is not installed is left out; none is imported.
    """
    import psutil

    return {
        "hansa": _version("hansa"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "packages": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
        "blas": _blas(),
        "commit": _commit(),
        "command": command_line(sys.orig_argv),
    }


def command_line(arguments: Sequence[str]) -> str:
    """The arguments in one line, with the values of options that sound secret, and passwords in addresses, as ``***``."""
    shown, hide = [], False
    for argument in arguments:
        option, equals, _ = argument.partition("=")
        if hide and not argument.startswith("-"):
            shown.append("***")
        elif equals and _SECRET.search(option):
            shown.append(f"{option}=***")
        else:
            shown.append(re.sub(r"://[^/@\s]+@", "://***@", argument))
        hide = argument.startswith("-") and not equals and bool(_SECRET.search(option))
    return " ".join(shown)


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # takes 50 ms

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str | None:
    info = Path("/proc/cpuinfo")
    if info.exists():
        match = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", info.read_text(errors="replace"), re.MULTILINE)
        if match:
            return match[1].strip()
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor() or platform.machine() or None


def _blas() -> list[dict[str, Any]]:
    from threadpoolctl import threadpool_info

    return [
        {"name": pool["internal_api"], "version": pool["version"], "threads": pool["num_threads"]}
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    ]


def _commit() -> str | None:
    """The commit of the working directory's repository, ending in ``-changed`` where tracked files differ from it."""
    return _output("git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=-changed")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):  # no such program, no repository: then it is unknown
        return None
    return done.stdout.strip() or None
