"""X.509 and PEM: certificates as others send them, malformed ones among them, which issued which, and keys as text.

Keys are ECDSA on P-256, certificates X.509 version 3 as in RFC 5280.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from hansa.core.errors import InputError

MOST_PEM: Final = 65_536
"""Bytes of a certificate with its chain; a server reads them from anybody with a token."""

MALFORMED: Final = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension)
"""What `cryptography` raises for content that is not as it should be, some of it only when a field is looked at."""


def now() -> datetime:
    """The time that certificates are held against, UTC."""
    return datetime.now(UTC)


def read(pem: bytes, what: str) -> list[x509.Certificate]:
    """All certificates of a PEM text, at least one."""
    if len(pem) > MOST_PEM:
        raise InputError(f"{what}: has {len(pem):,} bytes, more than {MOST_PEM:,}; give certificates in PEM")
    try:
        return x509.load_pem_x509_certificates(pem)
    except MALFORMED as error:
        raise InputError(f"{what}: is no certificate in PEM ({error}); give what the federation's authority has issued") from None


def leads_to(chain: list[x509.Certificate], believed: list[x509.Certificate]) -> bool:
    """Whether the first of the chain was issued by one that is believed, or by one of the chain that was, and so on."""
    here: x509.Certificate | None = chain[0]
    for _ in chain:
        if here is None or any(_issued(here, by) for by in believed):
            break
        here = next((by for by in chain[1:] if _issued(here, by)), None)
    return here is not None and any(_issued(here, by) for by in believed)


def _issued(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except (*MALFORMED, InvalidSignature):
        return False
    return True


def public(key: Any) -> bytes:
    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
