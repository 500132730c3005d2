"""The folders of what is more than one run, a search or the fits of every client: how they stand, and how one goes on with them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hansa.core.errors import HansaError, InputError
from hansa.job import Job
from hansa.resumed import job_of
from hansa.tracking.folder import RunFolder


def reopened(directory: str | Path, job: Job | None, kind: str, mark: str, resume: str) -> tuple[RunFolder, Job]:
    """The folder of an earlier start, and its job: that of its ``job.toml``, or the one given, which must be the same.

    kind: what it is in a word; mark: the file that such a folder has; resume: the function by which one goes on with it.

    Raises InputError for another folder, another job, and a ``job.toml`` that cannot be read back.
    """
    folder = RunFolder.open(Path(directory))
    if not folder.has(mark):
        raise InputError(f"{directory}: it is no {kind} ({mark} is missing); for a run write hansa.resume({str(directory)!r})")
    return folder, job_of(folder, job, kind, resume)


@contextmanager
def recorded(folder: RunFolder, began: float) -> Iterator[None]:
    """Write how things stand into their folder, whatever way they end; the folder is let go of."""
    folder.set_status("running")
    try:
        yield
    except KeyboardInterrupt as stop:
        folder.set_status("interrupted", seconds=time.perf_counter() - began)
        stop.add_note(f"go on with: {folder.go_on}")
        raise
    except HansaError as error:
        folder.set_status("failed", seconds=time.perf_counter() - began, error=str(error))
        raise
    finally:
        folder.close()
