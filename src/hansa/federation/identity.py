"""Who is who: certificates, the built-in authority that issues them, and join tokens.

A certificate is the only credential there is. Its subject tells who holds it: the common name is the member's name, the organisational
unit is its role. So an organisation's own PKI can be used as well as the built-in authority: it issues certificates with such
subjects. A join token carries a short-lived certificate of the role "joining", together with its key.

Keys are ECDSA on P-256, certificates X.509 version 3 as in RFC 5280. On disk keys lie in files of mode 0600, unencrypted.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

from hansa.core.errors import InputError, did_you_mean, missing_extra
from hansa.core.files import create_file, private_folder, replace_file
from hansa.federation import tokens

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
        load_pem_private_key,
    )
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    raise missing_extra("cryptography", "federation") from error

Role: TypeAlias = Literal["server", "client", "relay", "admin", "viewer", "joining"]
"""server: plays rounds. client: has data. relay: speaks for the clients behind it. admin: submits and stops runs, invites. viewer: watches.
joining: holds a join token and nothing else yet."""

ROLES: Final[tuple[Role, ...]] = get_args(Role)
MEMBERS: Final[tuple[Role, ...]] = tuple(role for role in ROLES if role != "joining")
"""The roles that a join token can give."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._ -]{0,62}[A-Za-z0-9._-])?")
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")
_MOST_PEM = 65_536  # bytes of a certificate with its chain; a server reads them from anybody with a token
_SKEW = timedelta(hours=1)  # clocks of the organisations may be off by so much before a new certificate is refused
_AUTHORITY_DAYS = 3_650.0
_MOST_DAYS = 3_650.0
_BUNDLE = "credentials.pem"
_AUTHORITY = "authority.pem"
_MARKS = (b"# Hansa: key\n", b"# Hansa: certificate\n", b"# Hansa: authority\n")
# What `cryptography` raises for content that is not as it should be, some of it only when a field is looked at.
_MALFORMED = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension)


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


@lru_cache(maxsize=4096)
def identity_of(pem: bytes) -> Identity:
    """Who holds a certificate that TLS has verified, as gRPC gives it in ``auth_context()["x509_pem_cert"]``.

    Neither its signature nor its dates are looked at here: the handshake has done that. InputError for a certificate that is not a
    member's: not X.509, an authority's, without a usable name, or without exactly one role.
    """
    return _identity(_certificates(pem, "certificate")[0])


def _identity(certificate: x509.Certificate) -> Identity:
    try:
        names = [name.value for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        units = [unit.value for unit in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)]
        constraints = [e.value for e in certificate.extensions if isinstance(e.value, x509.BasicConstraints)]
        serial, expires = f"{certificate.serial_number:x}", certificate.not_valid_after_utc
    except _MALFORMED as error:
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


@dataclass(frozen=True)
class Credentials:
    """What a member shows and believes, all PEM. InputError where the three do not belong together; dates do not matter yet.

    key:         private, unencrypted; never shown.
    certificate: the member's; those of intermediate authorities may follow it.
    authority:   certificates of the authorities that are believed.
    """

    key: bytes = field(repr=False)
    certificate: bytes = field(repr=False)
    authority: bytes = field(repr=False)

    def __post_init__(self) -> None:
        chain, believed = _certificates(self.certificate, "certificate"), _certificates(self.authority, "authority")
        who = _identity(chain[0]).name
        try:
            own = load_pem_private_key(self.key, None).public_key()
            same = _plain(own) == _plain(chain[0].public_key())
        except _MALFORMED:
            raise InputError(
                f"key of {who}: is no unencrypted private key in PEM; give the one its certificate was made for"
            ) from None
        if not same:
            raise InputError(f"key of {who}: does not belong to the certificate; give the one the certificate was made for")
        if not _leads_to(chain, believed):
            raise InputError(
                f"certificate of {who}: was not issued by the authority that is given with it; give both of one federation"
            )

    def __repr__(self) -> str:
        return f"Credentials({self.identity})"

    @cached_property
    def identity(self) -> Identity:
        return identity_of(self.certificate)

    def save(self, folder: Path) -> None:
        """Keep them in a folder, which becomes private. A crash leaves those before or these, never a part."""
        private_folder(folder)
        parts = zip(_MARKS, (self.key, self.certificate, self.authority), strict=True)
        replace_file(folder / _BUNDLE, (mark + content.rstrip() + b"\n" for mark, content in parts))

    @classmethod
    def load(cls, folder: Path) -> Credentials:
        """What :meth:`save` has kept. InputError where there is nothing, or it is damaged or out of date."""
        path = folder / _BUNDLE
        pattern = b"(.*)".join(re.escape(mark) for mark in _MARKS) + b"(.*)"
        try:
            found = re.fullmatch(pattern, path.read_bytes(), re.DOTALL)
        except FileNotFoundError:
            raise InputError(
                f"{folder}: there are no credentials of a federation; join one first (hansa join ADDRESS TOKEN)"
            ) from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); it must belong to who runs this") from None
        if found is None:
            raise InputError(f"{path}: is damaged; restore it from a backup, or join again with a new token")
        try:
            return cls(found[1], found[2], found[3])._in_time()
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @classmethod
    def read(cls, key: Path, certificate: Path, authority: Path) -> Credentials:
        """From the files of an own PKI, all PEM. InputError where one is missing or out of date, or they do not belong together."""
        contents = []
        for path in (key, certificate, authority):
            try:
                contents.append(path.read_bytes())
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror}); name a PEM file") from None
        try:
            return cls(contents[0], contents[1], contents[2])._in_time()
        except InputError as error:
            raise InputError(f"{key}, {certificate}, {authority}: {error}") from None

    def _in_time(self) -> Credentials:
        certificate, now = _certificates(self.certificate, "certificate")[0], _now()
        who = self.identity
        again = "ask for a new join token" if who.role == "joining" else "join again with a new token, or renew it at your PKI"
        if certificate.not_valid_after_utc <= now:
            raise InputError(f"certificate of {who.name}: expired on {who.expires:%Y-%m-%d at %H:%M} UTC; {again}")
        if certificate.not_valid_before_utc > now:
            begin = certificate.not_valid_before_utc
            raise InputError(
                f"certificate of {who.name}: is not valid before {begin:%Y-%m-%d, %H:%M} UTC, and it is {now:%Y-%m-%d, %H:%M} here; "
                "set this machine's clock"
            )
        return self


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
            if not isinstance(key, ec.EllipticCurvePrivateKey) or _plain(key.public_key()) != _plain(own.public_key()):
                raise ValueError("the key is not the certificate's")
        except _MALFORMED as error:
            raise InputError(f"{path}: is damaged ({error}); restore it from a backup") from None
        if own.not_valid_after_utc <= _now():
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
        key, now = ec.generate_private_key(ec.SECP256R1()), _now()
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
        create_file(folder / _AUTHORITY, [_key_pem(key), own.public_bytes(Encoding.PEM)])
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
        if len(request_pem) > _MOST_PEM:
            raise InputError(f"certificate request: has {len(request_pem):,} bytes, more than {_MOST_PEM:,}; send one in PEM")
        try:
            wanted = x509.load_pem_x509_csr(request_pem)
            key, proven = wanted.public_key(), wanted.is_signature_valid
        except (*_MALFORMED, InvalidSignature) as error:
            raise InputError(f"certificate request: cannot be read ({error}); send PKCS #10 in PEM") from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise InputError("certificate request: its key is not an ECDSA key on P-256; make one of that kind")
        if not proven:
            raise InputError("certificate request: its signature is not of its key, whose owner must sign it; make it anew")
        return self._issue(key, name, _member_role(role), days, hosts).public_bytes(Encoding.PEM)

    def server(self, hosts: Sequence[str], days: float = 90) -> Credentials:
        """Credentials of the server itself. hosts: names and addresses by which clients reach it, besides localhost and 127.0.0.1."""
        return self._made("server", "server", days, ("localhost", "127.0.0.1", *hosts))

    def member(self, name: str, role: Role, days: float = 90) -> Credentials:
        """Credentials whose key is made here: for the admin of the server's own machine."""
        return self._made(name, _member_role(role), days, ())

    def invite(self, name: str, role: Role = "client", hours: float = 24) -> tuple[str, Identity]:
        """The text of a join token, and who it lets in: its ``token`` is to be noted, and believed once.

        name, role: what the member will be. hours: how long the token is good for, at most 30 days.
        """
        if not 0 < hours <= 720:
            raise InputError(f"join token: {hours:g} hours cannot be; it is good for more than 0 and at most 720 hours")
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._issue(key.public_key(), name, f"joining:{_member_role(role)}", hours / 24, ())
        secret = key.private_numbers().private_value.to_bytes(32, "big")
        text = tokens.pack(secret, certificate.public_bytes(Encoding.DER), self._own.public_bytes(Encoding.DER))
        return text, _identity(certificate)

    def _made(self, name: str, role: Role, days: float, hosts: Sequence[str]) -> Credentials:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._issue(key.public_key(), name, role, days, hosts)
        return Credentials(_key_pem(key), certificate.public_bytes(Encoding.PEM), self.certificate)

    def _issue(self, key: ec.EllipticCurvePublicKey, name: str, unit: str, days: float, hosts: Sequence[str]) -> x509.Certificate:
        if not 0 < days <= _MOST_DAYS:
            raise InputError(
                f"certificate of {name}: {days:g} days cannot be; it is good for more than 0 and at most {_MOST_DAYS:g}"
            )
        if hosts and unit != "server":
            raise InputError(
                f"certificate of {name}: only a server is reached under hosts, and this is a {unit}'s; leave hosts out"
            )
        now = _now()
        if self._own.not_valid_after_utc <= now:
            raise InputError(f"certificate of {name}: the authority has expired; create another, and let all join again")
        subject = [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, _named(name)),
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


def read_token(text: str) -> Credentials:
    """What a join token lets its holder show. InputError where it is damaged or has expired."""
    secret, certificate, authority = tokens.unpack(text)
    try:
        key = ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256R1())
        pems = [x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in (certificate, authority)]
        credentials = Credentials(_key_pem(key), *pems)
        if credentials.identity.role != "joining":
            raise ValueError("its role is not joining")
    except _MALFORMED as error:  # an InputError is a ValueError too
        raise InputError(f"join token: holds no credentials of a federation ({error}); ask for a new one") from None
    try:
        return credentials._in_time()
    except InputError as error:
        raise InputError(f"join token: {error}") from None


def request(name: str) -> tuple[bytes, bytes]:
    """A new private key, and a request to issue a certificate for it (PKCS #10), both PEM. The key stays here."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _named(name))])
    wanted = x509.CertificateSigningRequestBuilder(subject).sign(key, hashes.SHA256())
    return _key_pem(key), wanted.public_bytes(Encoding.PEM)


def server_credentials(credentials: Credentials, renewed: Callable[[], Credentials | None] | None = None) -> Any:
    """``grpc.ServerCredentials`` that admit nobody without a certificate of the authority.

    renewed: asked at every new connection, before its handshake, for credentials that take the place of those before; None where
    there are none. So a server's certificate is renewed while it runs.
    """
    grpc = _grpc()
    if renewed is None:
        return grpc.ssl_server_credentials(
            [(credentials.key, credentials.certificate)], root_certificates=credentials.authority, require_client_auth=True
        )

    def configuration(now: Credentials) -> Any:
        return grpc.ssl_server_certificate_configuration([(now.key, now.certificate)], root_certificates=now.authority)

    def changed() -> Any:
        now = renewed()
        return None if now is None else configuration(now)

    return grpc.dynamic_ssl_server_credentials(configuration(credentials), changed, require_client_authentication=True)


def channel_credentials(credentials: Credentials) -> Any:
    """``grpc.ChannelCredentials`` that show the certificate, and believe only a server of the same authority."""
    return _grpc().ssl_channel_credentials(
        root_certificates=credentials.authority, private_key=credentials.key, certificate_chain=credentials.certificate
    )


def _grpc() -> Any:
    try:
        import grpc
    except ImportError as error:
        raise missing_extra("grpcio", "federation") from error
    return grpc


def _now() -> datetime:
    return datetime.now(UTC)


def is_name(name: str) -> bool:
    """Whether a member can be called so."""
    return _NAME.fullmatch(name) is not None


def _named(name: str) -> str:
    if not is_name(name):
        raise InputError(
            f"name {name!r}: must be 1 to 64 letters, digits, dots, dashes, underscores and blanks, begin with a letter or a digit and not "
            "end with a blank"
        )
    return name


def _member_role(role: Role) -> Role:
    if role not in MEMBERS:
        raise InputError(f"role {role!r}: there is no such member{did_you_mean(role, MEMBERS)}")
    return role


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host):
            raise InputError(f"host {host!r}: must be a host's name or IP address, without scheme and port") from None
        return x509.DNSName(host)


def _certificates(pem: bytes, what: str) -> list[x509.Certificate]:
    """All certificates of a PEM text, at least one."""
    if len(pem) > _MOST_PEM:
        raise InputError(f"{what}: has {len(pem):,} bytes, more than {_MOST_PEM:,}; give certificates in PEM")
    try:
        return x509.load_pem_x509_certificates(pem)
    except _MALFORMED as error:
        raise InputError(f"{what}: is no certificate in PEM ({error}); give what the federation's authority has issued") from None


def _leads_to(chain: list[x509.Certificate], believed: list[x509.Certificate]) -> bool:
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
    except (*_MALFORMED, InvalidSignature):
        return False
    return True


def _usage(*allowed: str) -> x509.KeyUsage:
    all_of_them = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
        "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: name in allowed for name in all_of_them})


def _plain(key: Any) -> bytes:
    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
