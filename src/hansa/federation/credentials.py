"""What a member shows and believes: its key, its certificate and the authority's, in a folder, in files of an own PKI or in a join token.

On disk keys lie in files of mode 0600, unencrypted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from hansa.core.errors import InputError
from hansa.core.files import private_folder, replace_file
from hansa.federation import certificates, tokens
from hansa.federation.identity import Identity, checked_name, identity_in, identity_of

BUNDLE = "credentials.pem"
_MARKS = (b"# Hansa: key\n", b"# Hansa: certificate\n", b"# Hansa: authority\n")


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
        chain, believed = certificates.read(self.certificate, "certificate"), certificates.read(self.authority, "authority")
        who = identity_in(chain[0]).name
        try:
            own = load_pem_private_key(self.key, None).public_key()
            same = certificates.public(own) == certificates.public(chain[0].public_key())
        except certificates.MALFORMED:
            raise InputError(
                f"key of {who}: is no unencrypted private key in PEM; give the one its certificate was made for"
            ) from None
        if not same:
            raise InputError(f"key of {who}: does not belong to the certificate; give the one the certificate was made for")
        if not certificates.leads_to(chain, believed):
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
        replace_file(folder / BUNDLE, (mark + content.rstrip() + b"\n" for mark, content in parts))

    @classmethod
    def load(cls, folder: Path) -> Credentials:
        """What :meth:`save` has kept. InputError where there is nothing, or it is damaged or out of date."""
        path = folder / BUNDLE
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
        certificate, now = certificates.read(self.certificate, "certificate")[0], certificates.now()
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


def read_token(text: str) -> Credentials:
    """What a join token lets its holder show. InputError where it is damaged or has expired."""
    secret, certificate, authority = tokens.unpack(text)
    try:
        key = ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256R1())
        pems = [x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in (certificate, authority)]
        credentials = Credentials(certificates.key_pem(key), *pems)
        if credentials.identity.role != "joining":
            raise ValueError("its role is not joining")
    except certificates.MALFORMED as error:  # an InputError is a ValueError too
        raise InputError(f"join token: holds no credentials of a federation ({error}); ask for a new one") from None
    try:
        return credentials._in_time()
    except InputError as error:
        raise InputError(f"join token: {error}") from None


def request(name: str) -> tuple[bytes, bytes]:
    """A new private key, and a request to issue a certificate for it (PKCS #10), both PEM. The key stays here."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, checked_name(name))])
    wanted = x509.CertificateSigningRequestBuilder(subject).sign(key, hashes.SHA256())
    return certificates.key_pem(key), wanted.public_bytes(Encoding.PEM)
