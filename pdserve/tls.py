"""How a client trusts a server, and shows who it is itself: PEM files."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
"""Where a machine's list is in one file: Debian and Ubuntu, Red Hat and SUSE, Alpine and macOS."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Of a client. Reading the files raises OSError (ssl.SSLError is one) that does not always name them."""

    ca: str | None = None  # who may have signed the server's certificate; None: whom this machine trusts
    cert: str | None = None  # the client's own, where a server wants one, with its chain
    key: str | None = None  # of cert; None: it is in the same file

    def context(self) -> ssl.SSLContext:
        """For HTTP."""
        found = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None:
            found.load_cert_chain(self.cert, self.key)
        return found

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For gRPC."""
        roots = self.ca or system_bundle()  # None: gRPC's own list
        cert = None if self.cert is None else Path(self.cert).read_bytes()
        key = None if self.cert is None else Path(self.key or self.cert).read_bytes()
        return grpc.ssl_channel_credentials(None if roots is None else Path(roots).read_bytes(), key, cert)


def system_bundle() -> str | None:
    """One file of all whom this machine trusts; None where there is none.

    OpenSSL's own (SSL_CERT_FILE, or as it was built) first. Many have a directory alone, which gRPC cannot read: then
    the file that distributions write beside it.
    """
    return ssl.get_default_verify_paths().cafile or next(filter(os.path.isfile, BUNDLES), None)
