"""Credentials as gRPC takes them: both sides of a connection show a certificate of the one authority that both believe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from hansa.federation.credentials import Credentials


def server_credentials(credentials: Credentials, renewed: Callable[[], Credentials | None] | None = None) -> Any:
    """``grpc.ServerCredentials`` that admit nobody without a certificate of the authority.

    renewed: asked at every new connection, before its handshake, for credentials that take the place of those before; None where
    there are none. So a server's certificate is renewed while it runs.
    """
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
    return grpc.ssl_channel_credentials(
        root_certificates=credentials.authority, private_key=credentials.key, certificate_chain=credentials.certificate
    )
