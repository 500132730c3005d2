"""Certificates, the built-in authority and join tokens, against real handshakes on loopback."""

from __future__ import annotations

import datetime
import json
import os
import ssl
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from threading import Barrier
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansa.core.errors import InputError
from hansa.federation import certificates, tokens
from hansa.federation.authority import Authority
from hansa.federation.credentials import Credentials, read_token, request
from hansa.federation.identity import MEMBERS, Role, identity_of
from hansa.federation.tls import channel_credentials, server_credentials

PEM = serialization.Encoding.PEM


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"), "Hospitals of the North")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another authority of the very same name."""
    return Authority.create(tmp_path_factory.mktemp("stranger"), "Hospitals of the North")


@contextmanager
def serving(credentials: Any) -> Iterator[int]:
    """A gRPC server whose one method tells who called, as its certificate says; gives the port."""

    def who(call: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            caller = identity_of(context.auth_context()["x509_pem_cert"][0])
        except InputError as error:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        return json.dumps({**asdict(caller), "expires": caller.expires.isoformat()}).encode()

    pool = ThreadPoolExecutor(2)
    server = grpc.server(pool)
    handlers = {"Who": grpc.unary_unary_rpc_method_handler(who)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()
        pool.shutdown()


@pytest.fixture(scope="module")
def port(authority: Authority) -> Iterator[int]:
    with serving(server_credentials(authority.server([]))) as port:
        yield port


def asked(port: int, credentials: Any, host: str = "127.0.0.1") -> dict[str, Any]:
    """Who the server says one is with these credentials; grpc.RpcError where they do not get so far."""
    with grpc.secure_channel(f"{host}:{port}", credentials) as channel:
        return dict(json.loads(channel.unary_unary("/test.Test/Who")(b"", timeout=30)))


def at(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """Move the clock that certificates are held against."""
    moved = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    monkeypatch.setattr(certificates, "now", lambda: moved)


@pytest.mark.parametrize("role", ["client", "admin", "viewer"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_member_is_let_in_and_known(authority: Authority, port: int, role: Role, host: str) -> None:
    member = authority.member("hospital-a", role)
    told = asked(port, channel_credentials(member), host)
    assert (told["name"], told["role"], told["serial"]) == ("hospital-a", role, member.identity.serial)
    assert (told["token"], told["grants"]) == ("", "")


def test_who_holds_a_token_is_joining_and_nothing_else(authority: Authority, port: int) -> None:
    text, invited = authority.invite("hospital-a", "viewer")
    told = asked(port, channel_credentials(read_token(text)))
    assert (told["name"], told["role"], told["grants"]) == ("hospital-a", "joining", "viewer")
    assert told["token"] == invited.token == invited.serial != ""


def test_a_token_becomes_a_member_whose_key_never_travels(authority: Authority, port: int, tmp_path: Path) -> None:
    text, invited = authority.invite("hospital-a")
    key, wanted = request("hospital-a")
    certificate = authority.issue(wanted, invited.name, invited.grants or "viewer")
    member = Credentials(key, certificate, read_token(text).authority)
    member.save(tmp_path / "home")
    assert asked(port, channel_credentials(Credentials.load(tmp_path / "home")))["role"] == "client"
    assert key not in wanted + certificate


def outsiders() -> dict[str, Callable[[Authority, Authority, pytest.MonkeyPatch], Any]]:
    def nothing(own: Authority, other: Authority, monkeypatch: pytest.MonkeyPatch) -> Any:
        return grpc.ssl_channel_credentials(own.certificate)

    def foreign(own: Authority, other: Authority, monkeypatch: pytest.MonkeyPatch) -> Any:
        theirs = other.member("hospital-a", "admin")
        return grpc.ssl_channel_credentials(own.certificate, theirs.key, theirs.certificate)

    def expired(own: Authority, other: Authority, monkeypatch: pytest.MonkeyPatch) -> Any:
        with monkeypatch.context() as past:
            at(past, -2)
            return channel_credentials(own.member("hospital-a", "client", days=1))

    def early(own: Authority, other: Authority, monkeypatch: pytest.MonkeyPatch) -> Any:
        with monkeypatch.context() as future:
            at(future, 2)
            return channel_credentials(own.member("hospital-a", "client"))

    def self_made(own: Authority, other: Authority, monkeypatch: pytest.MonkeyPatch) -> Any:
        # A member who signs certificates with its own key, as if it were an authority.
        member = own.member("hospital-a", "client")
        issuer = x509.load_pem_x509_certificate(member.certificate)
        key = ec.generate_private_key(ec.SECP256R1())
        secret = serialization.load_pem_private_key(member.key, None)
        assert isinstance(secret, ec.EllipticCurvePrivateKey)
        admin = signed(subject("boss", "admin"), key.public_key(), issuer.subject, secret)
        return grpc.ssl_channel_credentials(own.certificate, pem_of(key), admin.public_bytes(PEM) + member.certificate)

    return {"no certificate": nothing, "foreign": foreign, "expired": expired, "early": early, "self-made": self_made}


@pytest.mark.parametrize("case", outsiders())
def test_an_outsider_does_not_get_through_the_handshake(
    authority: Authority, stranger: Authority, port: int, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    credentials = outsiders()[case](authority, stranger, monkeypatch)
    with pytest.raises(grpc.RpcError) as refused:
        asked(port, credentials)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert asked(port, channel_credentials(authority.member("b", "client")))["name"] == "b"  # the server is there


def test_without_tls_nobody_is_heard(port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/test.Test/Who")(b"", timeout=30)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("who", ["a member", "another authority"])
def test_a_client_believes_no_other_server(authority: Authority, stranger: Authority, who: str) -> None:
    impostor = stranger.server([]) if who == "another authority" else authority.member("hospital-b", "admin")
    admits = Credentials(impostor.key, impostor.certificate, (stranger if who == "another authority" else authority).certificate)
    member = channel_credentials(authority.member("hospital-a", "client"))
    with serving(server_credentials(admits)) as port, pytest.raises(grpc.RpcError) as refused:
        asked(port, member)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_server_is_believed_under_its_own_hosts_only(authority: Authority) -> None:
    own = x509.load_pem_x509_certificate(authority.server(["fed.example.org", "10.0.0.7", "localhost"]).certificate)
    hosts = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert hosts.get_values_for_type(x509.DNSName) == ["localhost", "fed.example.org"]
    assert [str(address) for address in hosts.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "10.0.0.7"]
    for wrong in ("https://fed.example.org", "fed.example.org:443", "", "a b", "fed.example.org\n", "fed..org"):
        with pytest.raises(InputError, match="without scheme and port"):
            authority.server([wrong])


def test_a_server_renews_its_certificate_while_it_runs(authority: Authority) -> None:
    first, second = authority.server([]), authority.server([])
    answers = [None, None, second, None]

    def renewed() -> Credentials | None:
        return answers.pop(0) if answers else None

    member = authority.member("hospital-a", "client")

    def shown(port: int) -> str:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=authority.certificate.decode())
        context.set_alpn_protocols(["h2"])
        der = ssl_peer(context, port)
        return f"{x509.load_der_x509_certificate(der).serial_number:x}"

    with serving(server_credentials(first, renewed)) as port:
        assert shown(port) == first.identity.serial
        assert asked(port, channel_credentials(member))["name"] == "hospital-a"
        assert shown(port) == second.identity.serial
        assert asked(port, channel_credentials(member))["name"] == "hospital-a"
        with pytest.raises(grpc.RpcError):
            asked(port, grpc.ssl_channel_credentials(authority.certificate))


def ssl_peer(context: ssl.SSLContext, port: int) -> bytes:
    import socket

    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        return wrapped.getpeercert(binary_form=True) or b""


@pytest.mark.parametrize("role", ["client", "joining"])
def test_certificates_pass_the_strictest_check_of_openssl(authority: Authority, tmp_path: Path, role: str) -> None:
    member = authority.member("hospital-a", "client") if role == "client" else read_token(authority.invite("hospital-a")[0])
    server, ends = authority.server([]), []
    for number, (own, purpose) in enumerate(((server, ssl.PROTOCOL_TLS_SERVER), (member, ssl.PROTOCOL_TLS_CLIENT))):
        (tmp_path / f"{number}.pem").write_bytes(own.key + own.certificate)
        context = ssl.SSLContext(purpose)
        context.load_cert_chain(tmp_path / f"{number}.pem")
        context.load_verify_locations(cadata=own.authority.decode())
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        ends.append(context)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = ends[0].wrap_bio(up, down, server_side=True)
    there = ends[1].wrap_bio(down, up, server_hostname="localhost")
    waiting = [there, here]
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                continue
    assert waiting == []
    assert here.getpeercert() and there.getpeercert()


# The authority


def test_an_authority_is_made_once_and_found_again(tmp_path: Path) -> None:
    made = Authority.create(tmp_path / "ca", "North")
    assert Authority.open(tmp_path / "ca").certificate == made.certificate
    assert Authority.open_or_create(tmp_path / "ca", "South").organisation == "North"
    with pytest.raises(InputError, match="has an authority already"):
        Authority.create(tmp_path / "ca", "North")
    with pytest.raises(InputError, match="has no authority"):
        Authority.open(tmp_path)
    assert private(tmp_path / "ca")


def test_processes_that_start_at_once_have_one_authority(tmp_path: Path) -> None:
    together = Barrier(8)

    def start(_: int) -> bytes:
        together.wait()
        return Authority.open_or_create(tmp_path / "ca", "North").certificate

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(start, range(8)))) == 1
    assert [path.name for path in (tmp_path / "ca").iterdir()] == ["authority.pem"]


def test_a_damaged_or_expired_authority_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Authority.create(tmp_path, "North")
    with monkeypatch.context() as late:
        at(late, 3651)
        with pytest.raises(InputError, match="the authority expired on"):
            Authority.open(tmp_path)
        with pytest.raises(InputError, match="the authority has expired"):
            made.member("a", "client")
    other = Authority.create(tmp_path / "other", "North")
    key = (tmp_path / "authority.pem").read_bytes().partition(b"-----BEGIN CERTIFICATE")[0]
    for content in (b"", b"nonsense", key, key + other.certificate, b"\xff" * 100):
        (tmp_path / "authority.pem").write_bytes(content)
        with pytest.raises(InputError, match="is damaged"):
            Authority.open(tmp_path)


def test_nothing_issued_outlives_its_authority(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    end = x509.load_pem_x509_certificate(authority.certificate).not_valid_after_utc
    at(monkeypatch, 3600)
    assert authority.member("a", "client", days=3650).identity.expires == end
    assert authority.member("a", "client", days=1).identity.expires < end


def test_only_a_server_can_be_taken_for_one(authority: Authority) -> None:
    _, wanted = request("a")
    for role in MEMBERS:
        issued = x509.load_pem_x509_certificate(authority.issue(wanted, "a", role))
        purposes = issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert ExtendedKeyUsageOID.CLIENT_AUTH in purposes
        assert (ExtendedKeyUsageOID.SERVER_AUTH in purposes) == (role == "server")
        if role != "server":
            with pytest.raises(InputError, match="only a server is reached under hosts"):
                authority.issue(wanted, "a", role, hosts=["localhost"])
    relay = x509.load_pem_x509_certificate(authority.issue(wanted, "a", "server", hosts=["relay.example.org"]))
    hosts = relay.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert hosts.get_values_for_type(x509.DNSName) == ["relay.example.org"]


def test_a_request_gives_its_key_and_nothing_else(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    greedy = (
        x509.CertificateSigningRequestBuilder(subject("boss", "admin"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = authority.issue(greedy.public_bytes(PEM), "hospital-a", "client")
    who, issued = identity_of(pem), x509.load_pem_x509_certificate(pem)
    assert (who.name, who.role) == ("hospital-a", "client")
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):
        issued.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert Credentials(pem_of(key), pem, authority.certificate).identity == who


def test_a_request_must_prove_that_its_sender_has_the_key(authority: Authority) -> None:
    der = x509.load_pem_x509_csr(request("hospital-a")[1]).public_bytes(serialization.Encoding.DER)
    other = x509.load_pem_x509_csr(request("hospital-a")[1])
    mine = x509.load_der_x509_csr(der)
    stolen = der.replace(mine.signature, other.signature)
    if len(mine.signature) == len(other.signature):
        with pytest.raises(InputError, match="certificate request"):
            authority.issue(x509.load_der_x509_csr(stolen).public_bytes(PEM), "hospital-a", "client")
    changed = bytearray(der)
    changed[-1] ^= 1
    with pytest.raises(InputError, match="its signature is not of its key"):
        authority.issue(x509.load_der_x509_csr(bytes(changed)).public_bytes(PEM), "hospital-a", "client")


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)])
def test_a_request_with_another_kind_of_key_is_refused(authority: Authority, key: Any) -> None:
    wanted = x509.CertificateSigningRequestBuilder(subject("a")).sign(key, hashes.SHA256())
    with pytest.raises(InputError, match="not an ECDSA key on P-256"):
        authority.issue(wanted.public_bytes(PEM), "a", "client")


@pytest.mark.parametrize("name", ["", "a" * 65, " a", "a ", "a/b", "../a", ".a", "-a", "ä", "a\n", "a\0"])
def test_names_that_are_none_are_refused(authority: Authority, name: str) -> None:
    _, wanted = request("good")
    for attempt in (
        lambda: request(name),
        lambda: authority.invite(name),
        lambda: authority.member(name, "client"),
        lambda: authority.issue(wanted, name, "client"),
    ):
        with pytest.raises(InputError, match="must be 1 to 64"):
            attempt()


def test_terms_that_cannot_be_are_refused(authority: Authority) -> None:
    for role in ("joining", "root", "Admin", ""):
        for attempt in (authority.invite, authority.member):
            with pytest.raises(InputError, match="there is no such member"):
                attempt("a", role)  # type: ignore[arg-type]  # the type is the fault
    for days in (0, -1, 3651, float("nan"), float("inf")):
        with pytest.raises(InputError, match="cannot be"):
            authority.member("a", "client", days)
        with pytest.raises(InputError, match="cannot be"):
            authority.invite("a", hours=days)


# Whose certificate it is


def test_an_own_pki_may_issue_the_certificates(port: int, tmp_path: Path) -> None:
    """A root and an intermediate authority with RSA keys, subjects with more in them than Hansa looks at."""
    root, middle, leaf, end = (rsa.generate_private_key(65537, 2048) for _ in range(4))
    top = signed(subject("Root"), root.public_key(), subject("Root"), root, ca=True)
    mid = signed(subject("Middle"), middle.public_key(), top.subject, root, ca=True)

    def member(key: rsa.RSAPrivateKey, name: str, *units: str, host: str = "") -> Credentials:
        own = signed(subject(name, *units), key.public_key(), mid.subject, middle, host=host)
        for part, content in (
            ("key", pem_of(key)),
            ("crt", own.public_bytes(PEM) + mid.public_bytes(PEM)),
            ("ca", top.public_bytes(PEM)),
        ):
            (tmp_path / f"{name}.{part}").write_bytes(b"# as the PKI writes it\n" + content)
        return Credentials.read(*(tmp_path / f"{name}.{part}" for part in ("key", "crt", "ca")))

    client, server = member(leaf, "hospital-a", "Cardiology", "client"), member(end, "fed", "server", host="localhost")
    with serving(server_credentials(server)) as own:
        told = asked(own, channel_credentials(client), "localhost")
    assert (told["name"], told["role"]) == ("hospital-a", "client")
    client.save(tmp_path / "home")
    assert Credentials.load(tmp_path / "home").identity == client.identity
    with pytest.raises(grpc.RpcError):
        asked(port, channel_credentials(client))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (x509.Name([]), "no usable name"),
        ([("a", ())], "0 roles"),
        ([("a", ("Client",))], "0 roles"),
        ([("a", ("joining",))], "0 roles"),
        ([("a", ("joining:joining",))], "0 roles"),
        ([("a", ("client", "admin"))], "2 roles"),
        ([("a/b", ("client",))], "no usable name"),
        ([("a\n", ("client",))], "no usable name"),
        ([("a", ("client",)), ("b", ())], "no usable name"),
    ],
)
def test_a_certificate_without_one_name_and_one_role_is_nobodys(name: Any, match: str) -> None:
    if isinstance(name, list):
        name = x509.Name([attribute for who, units in name for attribute in subject(who, *units)])
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(InputError, match=match):
        identity_of(signed(name, key.public_key(), name, key).public_bytes(PEM))


def test_an_authority_is_nobody(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    own = signed(subject("a", "admin"), key.public_key(), subject("a", "admin"), key, ca=True)
    for pem in (own.public_bytes(PEM), authority.certificate):
        with pytest.raises(InputError, match="is an authority's"):
            identity_of(pem)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 999), byte=st.integers(0, 255), gone=st.integers(0, 3))
def test_damaged_certificates_are_refused_in_words(authority: Authority, place: int, byte: int, gone: int) -> None:
    der = ssl.PEM_cert_to_DER_cert(authority.member("hospital-a", "client").certificate.decode())
    place %= len(der)
    changed = der[:place] + bytes([byte]) + der[place + gone :]
    try:
        who = identity_of(ssl.DER_cert_to_PEM_cert(changed).encode())
    except InputError:
        return
    assert who.role in (*MEMBERS, "joining")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=300) | st.binary(max_size=300).map(lambda der: ssl.DER_cert_to_PEM_cert(der).encode()))
def test_noise_is_refused_in_words(authority: Authority, noise: bytes) -> None:
    with pytest.raises(InputError):
        identity_of(noise)
    with pytest.raises(InputError):
        authority.issue(noise.replace(b"CERTIFICATE", b"CERTIFICATE REQUEST"), "a", "client")
    with pytest.raises(InputError):
        Credentials(noise, noise, noise)


# Credentials


def private(folder: Path) -> bool:
    modes = [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()]
    return stat.S_IMODE(folder.stat().st_mode) == 0o700 and modes == [0o600] * len(modes)


def test_credentials_are_kept_in_private_and_come_back(authority: Authority, tmp_path: Path) -> None:
    member = authority.member("hospital-a", "client")
    (tmp_path / "a" / "b").mkdir(parents=True, mode=0o755)
    old = os.umask(0)
    try:
        member.save(tmp_path / "a" / "b")
    finally:
        os.umask(old)
    assert Credentials.load(tmp_path / "a" / "b") == member
    assert private(tmp_path / "a" / "b")
    renewed = authority.member("hospital-a", "client")
    renewed.save(tmp_path / "a" / "b")
    assert Credentials.load(tmp_path / "a" / "b") == renewed
    assert private(tmp_path / "a" / "b")


@pytest.mark.parametrize("step", ["os.replace", "os.fsync"])
def test_a_renewal_that_fails_leaves_what_was_there(authority: Authority, tmp_path: Path, monkeypatch: Any, step: str) -> None:
    member = authority.member("hospital-a", "client")
    member.save(tmp_path)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(f"hansa.core.files.{step}", fail)
        with pytest.raises(OSError, match="disk full"):
            authority.member("hospital-a", "client").save(tmp_path)
    assert Credentials.load(tmp_path) == member
    assert [path.name for path in tmp_path.iterdir()] == ["credentials.pem"]


def test_what_does_not_belong_together_is_refused(authority: Authority, stranger: Authority, tmp_path: Path) -> None:
    one, two, other = authority.member("a", "client"), authority.member("a", "client"), stranger.member("a", "client")
    with pytest.raises(InputError, match="does not belong to the certificate"):
        replace(one, key=two.key)
    with pytest.raises(InputError, match="was not issued by the authority"):
        replace(one, authority=other.authority)
    with pytest.raises(InputError, match="no unencrypted private key"):
        replace(one, key=one.certificate)
    locked = serialization.load_pem_private_key(one.key, None).private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    with pytest.raises(InputError, match="no unencrypted private key"):
        replace(one, key=locked)
    with pytest.raises(InputError, match="join one first"):
        Credentials.load(tmp_path)
    one.save(tmp_path)
    whole = (tmp_path / "credentials.pem").read_bytes()
    for cut in (0, 10, len(whole) // 3, len(whole) - 40):
        (tmp_path / "credentials.pem").write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"credentials\.pem"):
            Credentials.load(tmp_path)
    with pytest.raises(InputError, match="name a PEM file"):
        Credentials.read(tmp_path / "no.key", tmp_path / "no.crt", tmp_path / "no.ca")


def test_what_is_out_of_date_is_refused(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority.member("a", "client", days=1).save(tmp_path)
    token, _ = authority.invite("a", hours=2)
    Credentials.load(tmp_path)
    for days, match in ((2, "expired on"), (-2, "set this machine's clock")):
        with monkeypatch.context() as moved:
            at(moved, days)
            with pytest.raises(InputError, match=match):
                Credentials.load(tmp_path)
            with pytest.raises(InputError, match=match):
                read_token(token)


def test_no_representation_shows_a_key(authority: Authority) -> None:
    token, _ = authority.invite("hospital-a")
    for thing in (authority.member("hospital-a", "client"), read_token(token), authority):
        shown = f"{thing!r} {thing} {[thing]}"
        assert "PRIVATE" not in shown and "BEGIN" not in shown
    assert "hospital-a" in repr(read_token(token))


# Tokens


def test_a_token_survives_mail_programs(authority: Authority) -> None:
    text, invited = authority.invite("hospital-a")
    wrapped = "\n> ".join(text[start : start + 64] for start in range(0, len(text), 64)).replace(">", "")
    assert read_token(f"  {wrapped}\r\n").identity == invited
    assert len(text) < 760
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_a_slip_in_the_last_character_of_a_token_is_found(authority: Authority) -> None:
    lengths = set()
    for number in range(12):
        text, _ = authority.invite("a" * (number + 1))
        lengths.add(len(text.removeprefix("hansa-")) % 4)
        for last in {*"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"} - {text[-1]}:
            with pytest.raises(InputError, match="join token"):
                read_token(text[:-1] + last)
    assert lengths - {0}  # only then some bits of the last character mean nothing


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 999), character=st.sampled_from("ABCXYZabcxyz0189-_=+/.é"))
def test_a_token_with_a_slip_is_refused(authority: Authority, place: int, character: str) -> None:
    text, _ = authority.invite("hospital-a")
    place %= len(text)
    slips = {
        "changed": text[:place] + character + text[place + 1 :],
        "removed": text[:place] + text[place + 1 :],
        "doubled": text[:place] + text[place] + text[place:],
        "swapped": text[:place] + text[place : place + 2][::-1] + text[place + 2 :],
        "cut": text[:place],
    }
    for slip in slips.values():
        if slip != text:
            with pytest.raises(InputError, match="join token"):
                read_token(slip)


@settings(max_examples=200)
@given(noise=st.text(max_size=200) | st.binary(max_size=300).map(lambda noise: packed(noise)))
def test_what_is_no_token_is_refused(noise: str) -> None:
    with pytest.raises(InputError, match="join token"):
        read_token(noise)


def packed(noise: bytes) -> str:
    """A token whose form and checksum are right, and whose content is not."""
    return tokens.pack(noise[:32].ljust(32, b"\1"), noise[32:], noise[:32])


def test_a_member_is_no_token_and_a_bomb_does_not_go_off(authority: Authority) -> None:
    member = authority.member("hospital-a", "client")
    key = serialization.load_pem_private_key(member.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    ders = [
        x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
        for pem in (member.certificate, authority.certificate)
    ]
    secret = key.private_numbers().private_value.to_bytes(32, "big")
    with pytest.raises(InputError, match="role is not joining"):
        read_token(tokens.pack(secret, *ders))
    with pytest.raises(InputError, match="not two certificates"):
        read_token(tokens.pack(secret, b"", bytes(1_000_000)))
    with pytest.raises(InputError, match="no token has more than"):
        read_token("hansa-" + "A" * 1_000_000)


def subject(name: str, *units: str) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units]
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Clinic"), *parts, x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )


def signed(whose: x509.Name, key: Any, by: x509.Name, secret: Any, ca: bool = False, host: str = "") -> x509.Certificate:
    """A certificate as any PKI may issue it."""
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder(by, whose, key, x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if host:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    return builder.sign(secret, hashes.SHA256())


def pem_of(key: Any) -> bytes:
    return bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
