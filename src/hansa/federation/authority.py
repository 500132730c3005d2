"""The built-in authority of a federation, which issues its certificates and join tokens."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hansa.core.errors import InputError
from hansa.core.files import create_file, private_folder
from hansa.federation import certificates, tokens
from hansa.federation.credentials import Credentials
from hansa.federation.identity import Identity, Role, checked_name, checked_role, identity_in

_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")
_SKEW = timedelta(hours=1)  # clocks of the organisations may be off by so much before a new certificate is refused
_AUTHORITY_DAYS = 3_650.0
_MOST_DAYS = 3_650.0
_AUTHORITY = "authority.pem"


@dataclass(frozen=True)
class Authority:
    """The built-in certificate authority of one federation: a key that signs, in a folder of the server.

    Who has the folder can be anybody in the federation. Everything issued ends with the authority's own certificate, after ten years.
    """

    _key: ec.EllipticCurvePrivateKey = field(repr=False)
    _own: x509.Certificate = field(repr=False)

    @classmethod
    def create(cls, folder: Path, organisation: str) -> Authority:
        """A new authority. InputError where the folder has one: what it has issued would not be believed any more."""
        try:
            return cls._create(folder, organisation)
        except FileExistsError:
            raise InputError(f"{folder}: has an authority already; use it, or name another folder") from None

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """The authority of a folder. InputError where there is none, or it is damaged or has expired."""
        path = folder / _AUTHORITY
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise InputError(f"{folder}: has no authority; create one first (hansa server does on its first start)") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); it must belong to who runs this") from None
        try:
            key, own = load_pem_private_key(content, None), x509.load_pem_x509_certificate(content)
            if not isinstance(key, ec.EllipticCurvePrivateKey) or certificates.public(key.public_key()) != certificates.public(
                own.public_key()
            ):
                raise ValueError("the key is not the certificate's")
        except certificates.MALFORMED as error:
            raise InputError(f"{path}: is damaged ({error}); restore it from a backup") from None
        if own.not_valid_after_utc <= certificates.now():
            raise InputError(
                f"{path}: the authority expired on {own.not_valid_after_utc:%Y-%m-%d}; create another, and let all join again"
            )
        return cls(key, own)

    @classmethod
    def open_or_create(cls, folder: Path, organisation: str) -> Authority:
        """The authority of a folder, a new one where there is none. Several processes may ask at once; all get the same."""
        if not (folder / _AUTHORITY).exists():
            try:
                return cls._create(folder, organisation)
            except FileExistsError:
                pass  # another process was faster
        return cls.open(folder)

    @classmethod
    def _create(cls, folder: Path, organisation: str) -> Authority:
        if not 1 <= len(organisation) <= 64 or not organisation.isprintable() or organisation != organisation.strip():
            raise InputError(f"organisation {organisation!r}: must be 1 to 64 printable characters, without blanks at its ends")
        key, now = ec.generate_private_key(ec.SECP256R1()), certificates.now()
        subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation)])
        own = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + timedelta(days=_AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        private_folder(folder)
        create_file(folder / _AUTHORITY, [certificates.key_pem(key), own.public_bytes(Encoding.PEM)])
        return cls(key, own)

    @property
    def certificate(self) -> bytes:
        """PEM; what members believe."""
        return self._own.public_bytes(Encoding.PEM)

    @property
    def organisation(self) -> str:
        return str(self._own.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)

    def issue(self, request_pem: bytes, name: str, role: Role, days: float = 90, hosts: Sequence[str] = ()) -> bytes:
        """A certificate, PEM, for the public key of a request (PKCS #10, PEM); all else that the request wishes for is ignored.

        hosts: names and addresses under which a relay or another server is reached, only for the role "server".

        InputError for a request that is malformed, whose sender does not have the private key, or whose key is not of P-256.
        """
        if len(request_pem) > certificates.MOST_PEM:
            raise InputError(
                f"certificate request: has {len(request_pem):,} bytes, more than {certificates.MOST_PEM:,}; send one in PEM"
            )
        try:
            wanted = x509.load_pem_x509_csr(request_pem)
            key, proven = wanted.public_key(), wanted.is_signature_valid
        except (*certificates.MALFORMED, InvalidSignature) as error:
            raise InputError(f"certificate request: cannot be read ({error}); send PKCS #10 in PEM") from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise InputError("certificate request: its key is not an ECDSA key on P-256; make one of that kind")
        if not proven:
            raise InputError("certificate request: its signature is not of its key, whose owner must sign it; make it anew")
        return self._issue(key, name, checked_role(role), days, hosts).public_bytes(Encoding.PEM)

    def server(self, hosts: Sequence[str], days: float = 90) -> Credentials:
        """Credentials of the server itself. hosts: names and addresses by which clients reach it, besides localhost and 127.0.0.1."""
        return self._made("server", "server", days, ("localhost", "127.0.0.1", *hosts))

    def member(self, name: str, role: Role, days: float = 90) -> Credentials:
        """Credentials whose key is made here: for the admin of the server's own machine."""
        return self._made(name, checked_role(role), days, ())

    def invite(self, name: str, role: Role = "client", hours: float = 24) -> tuple[str, Identity]:
        """The text of a join token, and who it lets in: its ``token`` is to be noted, and believed once.

        name, role: what the member will be. hours: how long the token is good for, at most 30 days.
        """
        if not 0 < hours <= 720:
            raise InputError(f"join token: {hours:g} hours cannot be; it is good for more than 0 and at most 720 hours")
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._issue(key.public_key(), name, f"joining:{checked_role(role)}", hours / 24, ())
        secret = key.private_numbers().private_value.to_bytes(32, "big")
        text = tokens.pack(secret, certificate.public_bytes(Encoding.DER), self._own.public_bytes(Encoding.DER))
        return text, identity_in(certificate)

    def _made(self, name: str, role: Role, days: float, hosts: Sequence[str]) -> Credentials:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._issue(key.public_key(), name, role, days, hosts)
        return Credentials(certificates.key_pem(key), certificate.public_bytes(Encoding.PEM), self.certificate)

    def _issue(self, key: ec.EllipticCurvePublicKey, name: str, unit: str, days: float, hosts: Sequence[str]) -> x509.Certificate:
        if not 0 < days <= _MOST_DAYS:
            raise InputError(
                f"certificate of {name}: {days:g} days cannot be; it is good for more than 0 and at most {_MOST_DAYS:g}"
            )
        if hosts and unit != "server":
            raise InputError(
                f"certificate of {name}: only a server is reached under hosts, and this is a {unit}'s; leave hosts out"
            )
        now = certificates.now()
        if self._own.not_valid_after_utc <= now:
            raise InputError(f"certificate of {name}: the authority has expired; create another, and let all join again")
        subject = [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, checked_name(name)),
        ]
        # A server's is good for dialling out too: a relay does both.
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH] + [ExtendedKeyUsageOID.SERVER_AUTH] * (unit == "server")
        believed = self._own.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateBuilder(self._own.subject, x509.Name(subject), key, x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(min(now + timedelta(days=days), self._own.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage("digital_signature"), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(believed), critical=False)
        )
        if hosts:
            where = x509.SubjectAlternativeName([_host(host) for host in dict.fromkeys(hosts)])
            builder = builder.add_extension(where, critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host):
            raise InputError(f"host {host!r}: must be a host's name or IP address, without scheme and port") from None
        return x509.DNSName(host)


def _usage(*allowed: str) -> x509.KeyUsage:
    all_of_them = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
        "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: name in allowed for name in all_of_them})
