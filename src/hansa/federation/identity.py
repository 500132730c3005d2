"""Who is who: what a certificate tells of its holder.

A certificate is the only credential there is. Its subject tells who holds it: the common name is the member's name, the organisational
unit is its role. So an organisation's own PKI can be used as well as the built-in authority: it issues certificates with such
subjects. A join token carries a short-lived certificate of the role "joining", together with its key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final, Literal, TypeAlias, get_args

from cryptography import x509
from cryptography.x509.oid import NameOID

from hansa.core.errors import InputError, did_you_mean
from hansa.federation import certificates

Role: TypeAlias = Literal["server", "client", "relay", "admin", "viewer", "joining"]
"""server: plays rounds. client: has data. relay: speaks for the clients behind it. admin: submits and stops runs, invites. viewer: watches.
joining: holds a join token and nothing else yet."""

ROLES: Final[tuple[Role, ...]] = get_args(Role)
MEMBERS: Final[tuple[Role, ...]] = tuple(role for role in ROLES if role != "joining")
"""The roles that a join token can give."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._ -]{0,62}[A-Za-z0-9._-])?")


@dataclass(frozen=True)
class Identity:
    """Who holds a certificate.

    name:    of the member, unique in its federation.
    serial:  of the certificate, in hexadecimal digits; what a revocation names.
    expires: UTC.
    token:   identifies the join token, empty for all roles but "joining".
    grants:  the role that the join token gives, empty for all roles but "joining".
    """

    name: str
    role: Role
    serial: str
    expires: datetime
    token: str = ""
    grants: Role | Literal[""] = ""


@lru_cache(maxsize=1 << 14)
def identity_of(pem: bytes) -> Identity:
    """Who holds a certificate that TLS has verified, as gRPC gives it in ``auth_context()["x509_pem_cert"]``.

    Neither its signature nor its dates are looked at here: the handshake has done that. InputError for a certificate that is not a
    member's: not X.509, an authority's, without a usable name, or without exactly one role.
    """
    return identity_in(certificates.read(pem, "certificate")[0])


def identity_in(certificate: x509.Certificate) -> Identity:
    try:
        names = [name.value for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        units = [unit.value for unit in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)]
        constraints = [e.value for e in certificate.extensions if isinstance(e.value, x509.BasicConstraints)]
        serial, expires = f"{certificate.serial_number:x}", certificate.not_valid_after_utc
    except certificates.MALFORMED as error:
        raise InputError(f"certificate: cannot be read ({error}); use one that the federation's authority has issued") from None
    if any(constraint.ca for constraint in constraints):
        raise InputError("certificate: is an authority's, and nobody is a member by it; use one that the authority has issued")
    if len(names) != 1 or not isinstance(names[0], str) or not _NAME.fullmatch(names[0]):
        raise InputError(
            "certificate: its subject has no usable name; its one common name must be 1 to 64 letters, digits, dots, dashes, "
            "underscores and blanks, begin with a letter or a digit and not end with a blank"
        )
    roles = [parsed for unit in units if isinstance(unit, str) and (parsed := _role_of(unit)) is not None]
    if len(roles) != 1:
        raise InputError(
            f"certificate of {names[0]}: its subject has {len(roles)} roles; exactly one organisational unit must be one of "
            f"{', '.join(MEMBERS)}"
        )
    role, grants = roles[0]
    return Identity(names[0], role, serial, expires, serial if role == "joining" else "", grants)


def _role_of(unit: str) -> tuple[Role, Role | Literal[""]] | None:
    for role in MEMBERS:
        if unit == role:
            return role, ""
        if unit == f"joining:{role}":
            return "joining", role
    return None


def is_name(name: str) -> bool:
    """Whether a member can be called so."""
    return _NAME.fullmatch(name) is not None


def checked_name(name: str) -> str:
    if not is_name(name):
        raise InputError(
            f"name {name!r}: must be 1 to 64 letters, digits, dots, dashes, underscores and blanks, begin with a letter or a digit and not "
            "end with a blank"
        )
    return name


def checked_role(role: Role) -> Role:
    if role not in MEMBERS:
        raise InputError(f"role {role!r}: there is no such member{did_you_mean(role, MEMBERS)}")
    return role
