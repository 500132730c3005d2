"""Which policy a client goes by, and what it says of it when it starts."""

from __future__ import annotations

import logging
from difflib import get_close_matches
from pathlib import Path

from hansa.federation.policy import Policy

log = logging.getLogger("hansa.federation.client")

POLICY = "policy.toml"
ALIKE = 0.7
"""Of difflib's ratio, from which the name of a file is taken for :data:`POLICY`, misspelt."""


def read_policy(given: Policy | str | Path | None, home: Path) -> tuple[Policy, str]:
    """The policy, and where it is from: the path of a file, "given by the program", or empty where there is none and everything is
    allowed. InputError for a file that is no policy."""
    if isinstance(given, Policy):
        return given, "given by the program"
    path = home / POLICY if given is None else Path(given)
    if given is None and not path.exists():
        return Policy(), ""
    return Policy.load(path), str(path)


def say_policy(name: str, source: str, home: Path) -> None:
    """Log what the client ``name`` goes by, and a warning for a file in its home that looks like a policy whose name is misspelt."""
    extra = {"client": name}
    if source:
        log.info("%s: policy: %s", name, source, extra=extra)
        return
    log.warning("%s: policy: none, and everything is allowed (write %s)", name, home / POLICY, extra=extra)
    for file in misspelt(home):
        log.warning("%s: policy: %s is not read, because the name is not %s; rename it", name, file, POLICY, extra=extra)


def misspelt(home: Path) -> list[Path]:
    """Files of a home that look like a policy and have another name."""
    files = {path.name: path for path in sorted(home.iterdir()) if path.is_file() and path.name != POLICY}
    return [path for name, path in files.items() if get_close_matches(name.casefold(), [POLICY], cutoff=ALIKE)]
