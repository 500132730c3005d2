"""What one server process works with, and what may be done there on behalf of its administrator."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from hansa.federation.audit import Audit
from hansa.federation.authority import Authority
from hansa.federation.blobs import Blobs
from hansa.federation.handshakes import Handshakes
from hansa.federation.presence import Bell, Presence
from hansa.federation.state import State

JOB_BYTES = 1 << 20
"""Of a job's text, at most."""


@dataclass(frozen=True)
class Limits:
    """upload: bytes of one result. days: that a certificate is valid."""

    upload: int = 8 << 30
    days: float = 90.0


@dataclass
class Office:
    """What the handlers of one server process share.

    bell:      rung when there may be something new for members. reported: when tasks were answered, with their ids.
    submitted: called with a job's text, its name or InputError: what a job must be to be taken.
    insecure:  no TLS: callers are who they say they are.
    own_pki:   whoever has a certificate of the authority that TLS believes is a member.
    closing:   set when this process is about to answer no longer: who waits for tasks waits no longer, and hears whether a run is left.
    """

    state: State
    blobs: Blobs
    authority: Authority
    audit: Audit
    presence: Presence
    bell: Bell
    reported: Bell
    submitted: Callable[[str], str]
    limits: Limits = field(default_factory=Limits)
    insecure: bool = False
    own_pki: bool = False
    handshakes: Handshakes = field(default_factory=Handshakes)
    closing: threading.Event = field(default_factory=threading.Event)


def submit(office: Office, job: str, by: str, how: Literal["anew", "again", "once"] = "anew") -> str:
    """Take a job; returns the run's id. InputError for a job that cannot be played here.

    how: "anew" begins a run. "again" goes on with a run of the same job that is not over yet, where there is one. "once" takes also
         one that is finished or was stopped.
    """
    name = office.submitted(job)
    run = f"{time.strftime('%Y-%m-%d-%H%M%S', time.gmtime())}-{hashlib.sha256(f'{time.time_ns()}{job}'.encode()).hexdigest()[:8]}"
    if how == "anew":
        office.state.submit(run, name, job, by)
    elif (found := office.state.submit_once(run, name, job, by, ended=how == "once")) != run:
        return found
    office.audit.write(by, "submitted", run=run, job=name)
    office.bell.ring()
    return run


def invite(office: Office, name: str, role: Any, hours: float, by: str) -> str:
    """A join token, good once. InputError for a name, a role or a time that cannot be."""
    token, who = office.authority.invite(name, role, hours)
    office.state.invite(who.token, name, role, who.expires.timestamp())
    office.audit.write(by, "invited", member=name, grants=role)
    return token


def revoke(office: Office, name: str, by: str) -> None:
    """Shut a member out, at once, on open connections too. InputError where there is no such member."""
    office.state.revoke(name)
    office.audit.write(by, "revoked", member=name)
    office.bell.ring()
