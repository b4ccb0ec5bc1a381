"""Why a server did not answer where TLS may be the matter, in words of our flags."""

from __future__ import annotations

import re
import ssl

from pdserve.tls import Tls

_VERIFY = re.compile(r"CERTIFICATE_VERIFY_FAILED: ([^:;]+)")
_OTHER_NAME = "its certificate is for another name"
_FLAGS = "give --tls-cert, and --tls-key where its key is in another file"
_CLIENT = f"if it wants a client certificate, {_FLAGS}"
_DEMANDED = f"it demands a client certificate: {_FLAGS}"
_NGINX = b"SSL certificate"  # "No required SSL certificate was sent", "The SSL certificate error"
_REFUSED = {
    f"{version}_ALERT_{why}"
    for version, whys in (
        ("SSLV3", ("BAD_CERTIFICATE", "UNSUPPORTED_CERTIFICATE", "CERTIFICATE_REVOKED", "CERTIFICATE_EXPIRED")),
        ("SSLV3", ("CERTIFICATE_UNKNOWN",)),
        ("TLSV1", ("UNKNOWN_CA", "ACCESS_DENIED")),
    )
    for why in whys
}
_NO_TLS = "it does not speak TLS: say {} without the s"
_ENDED = ("Socket closed", "Connection reset", "Broken pipe")


def https_hint(error: Exception, tls: Tls) -> str | None:
    """None where the error is not one of TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if "ismatch" in error.verify_message:
            return f"{_OTHER_NAME} ({error.verify_message})"
        return _not_trusted(error.verify_message, tls)
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return _NO_TLS.format("https")
    if isinstance(error, ssl.SSLError) and tls.cert is None and error.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED":
        return _DEMANDED
    if isinstance(error, ssl.SSLError) and tls.cert is not None and error.reason in _REFUSED:
        return _not_taken(tls, error.reason)
    if tls.cert is None and isinstance(error, ssl.SSLError | ConnectionResetError | BrokenPipeError):
        return f"it ended the connection ({error}): {_CLIENT}"
    return None


def https_refusal(status: int, body: bytes, tls: Tls) -> str | None:
    """Of an answer: nginx completes the handshake, and then says by HTTP what it wants. None where that is not it."""
    if status != 400 or _NGINX not in body:
        return None
    return _DEMANDED if tls.cert is None else _not_taken(tls, "answered with 400")


def grpc_words(said: str, tls: Tls | None, otherwise: str) -> str:
    """What gRPC says of a connection that failed: shortly where TLS is why, else as it is, after `otherwise`."""
    if tls is not None and (why := _VERIFY.search(said)) is not None:
        return _not_trusted(why[1].strip(), tls)
    if "Hostname Verification" in said:
        return _OTHER_NAME
    if "WRONG_VERSION_NUMBER" in said:
        return _NO_TLS.format("grpcs")
    hint = ""
    if any(words in said for words in _ENDED) and (tls is None or tls.cert is None):
        hint = "; if it wants TLS, say grpcs://" if tls is None else f"; {_CLIENT}"
    return f"{otherwise}: {said}{hint}"


def _not_taken(tls: Tls, why: str) -> str:
    return f"it does not take the client certificate in --tls-cert {tls.cert} ({why})"


def _not_trusted(why: str, tls: Tls) -> str:
    if "expired" in why or "not yet valid" in why:
        return f"its certificate does not hold today ({why})"
    remedy = "--tls-ca names who signed it" if tls.ca is None else f"who signed it is not in --tls-ca {tls.ca}"
    return f"its certificate is not trusted ({why}): {remedy}"
