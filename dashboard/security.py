"""Who may ask: a guard of Host and Origin, a token beyond loopback, and a strict CSP."""

import hmac
import re
from collections.abc import Iterable
from urllib.parse import urlencode

from flask import Flask, Request, Response, redirect, request
from werkzeug.wrappers import Response as BaseResponse

__all__ = ["LOOPBACK", "is_loopback", "protect"]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""Host names that only a browser on this machine can mean."""

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_COOKIE = "analyzer-token"


def is_loopback(host: str) -> bool:
    """Whether a server that listens at ``host`` is seen by this machine alone."""
    return host in LOOPBACK or host == "::1" or host.startswith("127.")


def protect(
    server: Flask,
    script_hashes: Iterable[str],
    *,
    hosts: Iterable[str] = (),
    token: str | None = None,
    frame_ancestors: str = "'none'",
) -> None:
    """Refuse foreign requests and send the headers that keep pages harmless.

    Without a token only loopback names, and ``hosts``, are taken for a Host: a page of another site
    whose name is made to point here (DNS rebinding) is refused. With a token every Host is taken,
    since such a page has no cookie with it.

    Args:
        server: The Flask application.
        script_hashes: CSP hashes of the inline scripts of the page.
        hosts: More host names that may be asked for, without port.
        token: Secret that the first request must carry as ``?token=``.
        frame_ancestors: CSP sources that may frame the page.
    """
    allowed = LOOPBACK | set(hosts)
    headers = _headers(script_hashes, frame_ancestors)

    def guard() -> BaseResponse | None:
        if _is_foreign(request, None if token else allowed):
            return Response(
                "403: this host or origin is not served here\n", 403, mimetype="text/plain"
            )
        return None if token is None else _admit(request, token)

    def harden(response: Response) -> Response:
        response.headers.update(headers)
        return response

    server.before_request(guard)
    server.after_request(harden)


def _is_foreign(asked: Request, allowed: frozenset[str] | None) -> bool:
    """Whether the request is meant for another host, or made by a page of another origin."""
    host = asked.headers.get("Host", "")
    match = _HOST.fullmatch(host)
    if match is None or (allowed is not None and match[1].lower() not in allowed):
        return True
    origin = asked.headers.get("Origin")
    return (
        asked.method not in ("GET", "HEAD")
        and origin is not None
        and (origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()))
    )


def _admit(asked: Request, token: str) -> BaseResponse | None:
    """Let in who has the cookie, or bears the token and gets the cookie for it."""
    if _same(asked.cookies.get(_COOKIE, ""), token):
        return None
    if not _same(asked.args.get("token", ""), token):
        return Response(
            "401: this dashboard needs its token; open the address that the terminal printed\n",
            401,
            mimetype="text/plain",
        )
    rest = [(k, v) for k, v in asked.args.items(multi=True) if k != "token"]
    # A single slash: "//host" would lead to another site.
    target = "/" + asked.path.lstrip("/") + ("?" + urlencode(rest) if rest else "")
    answer = redirect(target)
    answer.set_cookie(_COOKIE, token, httponly=True, samesite="Strict")
    return answer


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _headers(script_hashes: Iterable[str], frame_ancestors: str) -> dict[str, str]:
    scripts = " ".join(["'self'", *script_hashes])
    policy = (
        "default-src 'none'",
        f"script-src {scripts}",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        f"frame-ancestors {frame_ancestors}",
    )
    headers = {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
    if frame_ancestors == "'none'":
        headers["X-Frame-Options"] = "DENY"
    return headers
