"""Flags of a client that speaks TLS."""

from __future__ import annotations

import argparse
import ssl
from collections.abc import Callable

from deploy.arguments import flag
from pdserve.settings import ConfigError
from pdserve.tls import Tls

NAMES = ("tls_ca", "tls_cert", "tls_key")


def add_tls_arguments(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """For grpcs:// and https:// servers."""
    group.add_argument(
        "--tls-ca",
        metavar="F.pem",
        help="who signed the server's certificate (default: those whom this machine trusts)",
    )
    group.add_argument("--tls-cert", metavar="F.pem", help="our certificate, where the server wants one")
    group.add_argument("--tls-key", metavar="F.pem", help="its key (default: in the same file)")


def tls_of(args: argparse.Namespace) -> Tls:
    """The files, each of which can be used. Errors: ConfigError naming the flag."""
    if args.tls_key is not None and args.tls_cert is None:
        raise ConfigError(["--tls-key is given, --tls-cert is not; the key is that of a certificate"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if args.tls_ca is not None:
        _tried("tls_ca", args.tls_ca, lambda: context.load_verify_locations(args.tls_ca))
    if args.tls_cert is not None:
        for name in ("tls_cert", "tls_key"):
            if (path := getattr(args, name)) is not None:
                _tried(name, path, lambda path=path: open(path, "rb").close())  # type: ignore[misc]
        key = "" if args.tls_key is None else f" with --tls-key {args.tls_key}"
        _tried("tls_cert", args.tls_cert + key, lambda: context.load_cert_chain(args.tls_cert, args.tls_key, _no_words))
    return Tls(args.tls_ca, args.tls_cert, args.tls_key)


def refuse_tls(args: argparse.Namespace, server: str, instead: str) -> None:
    """Errors: ConfigError for a flag of TLS and a server without; `instead`: what to do where it speaks TLS."""
    if given := [flag(name) for name in NAMES if getattr(args, name) is not None]:
        raise ConfigError([f"{given[0]} means nothing to {server}; where TLS is spoken, {instead}"])


def _tried(name: str, path: str, use: Callable[[], object]) -> None:
    try:
        use()
    except ssl.SSLError as error:
        why = "it is not a certificate in PEM, or not that of the key" if name == "tls_cert" else "it has no PEM in it"
        raise ConfigError([f"{flag(name)} is {path}; {why} ({error.reason or error})"]) from None
    except OSError as error:
        raise ConfigError([f"{flag(name)} is {path}; {error.strerror or error}"]) from None
    except ValueError as error:
        raise ConfigError([f"{flag(name)} is {path}; {error}"]) from None


def _no_words() -> str:
    """Of a key that is encrypted: nobody is asked on the terminal."""
    raise ValueError("its key is encrypted, which is not supported")
