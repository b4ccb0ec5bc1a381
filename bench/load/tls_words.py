"""Why a server did not answer where TLS may be the matter, in words of our flags."""

from __future__ import annotations

import ssl

from pdserve.tls import Tls

_NOT_TRUSTED = "its certificate is not trusted{}: --tls-ca names who signed it"
_OTHER_NAME = "its certificate is for another name{}"
_CLIENT = "if it wants a client certificate, give --tls-cert"
_NO_TLS = "it does not speak TLS: say {} without the s"
_ENDED = ("Socket closed", "Connection reset", "Broken pipe")


def https_hint(error: Exception, tls: Tls) -> str | None:
    """None where the error is not one of TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        kind = _OTHER_NAME if "ismatch" in error.verify_message else _NOT_TRUSTED
        return kind.format(f" ({error.verify_message})")
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return _NO_TLS.format("https")
    if tls.cert is None and isinstance(error, ssl.SSLError | ConnectionResetError | BrokenPipeError):
        return f"it ended the connection ({error}): {_CLIENT}"
    return None


def grpc_hint(said: str, tls: Tls | None) -> str:
    """What may help, by gRPC's words of a connection that failed; empty where they tell nothing of TLS."""
    hint = ""
    if "CERTIFICATE_VERIFY_FAILED" in said:
        hint = _NOT_TRUSTED.format("")
    elif "Hostname Verification" in said:
        hint = _OTHER_NAME.format("")
    elif "WRONG_VERSION_NUMBER" in said:
        hint = _NO_TLS.format("grpcs")
    elif any(words in said for words in _ENDED) and (tls is None or tls.cert is None):
        hint = "if it wants TLS, say grpcs://" if tls is None else _CLIENT
    return f"; {hint}" if hint else ""
