"""The HTTP front door: the OpenAI endpoints that clients and benchmark tools speak."""

from router.http_front.app import build_app
from router.http_front.server import HttpFront, serve_http

__all__ = ["HttpFront", "build_app", "serve_http"]
