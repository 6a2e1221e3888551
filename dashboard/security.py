"""Who may ask: a guard of Host and Origin, a token beyond loopback, and a strict CSP."""

import hmac
import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlencode

from dash.exceptions import DashException
from flask import Flask, Request, Response, redirect, request
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

__all__ = ["LOOPBACK", "MOST_BYTES", "is_loopback", "is_same_origin", "protect"]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""Host names that only a browser on this machine can mean."""

MOST_BYTES = 1_000_000
"""The largest body of a request: a page asks for its figures by some kilobytes."""

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_CALLBACKS, _SUITES = "/_dash-update-component", "/_dash-component-suites/"
_COOKIE, _POLICY = "analyzer-token", "Content-Security-Policy"


def is_loopback(host: str) -> bool:
    """Whether a server that listens at ``host`` is seen by this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def protect(
    server: Flask,
    script_hashes: Iterable[str],
    *,
    hosts: Iterable[str] = (),
    port: int | None = None,
    token: str | None = None,
    frame_ancestors: str = "'none'",
) -> None:
    """Refuse foreign and malformed requests; send the headers that keep pages harmless.

    Without a token only loopback names, and ``hosts``, are taken for a Host: a page of another site
    whose name is made to point here (DNS rebinding) is refused. With a token every Host is taken,
    since such a page has no cookie with it. What a browser says comes from a page of another site
    is refused whatever its Host; a notebook may show the pages in a frame.

    Args:
        server: The Flask application.
        script_hashes: CSP hashes of the inline scripts of the page.
        hosts: More host names that may be asked for, without port.
        port: The port that a Host must have; None where it is not known.
        token: Secret that the first request must carry as ``?token=``.
        frame_ancestors: CSP sources that may frame the page.
    """
    allowed = LOOPBACK | set(hosts)
    headers = _headers(script_hashes, frame_ancestors)
    is_framed = frame_ancestors != "'none'"
    server.config["MAX_CONTENT_LENGTH"] = MOST_BYTES

    def guard() -> BaseResponse | None:
        if _is_foreign(request, None if token else allowed, port) or _is_of_another_site(
            request, is_framed
        ):
            return _refused(403, "this host or origin is not served here")
        if ".." in request.path.split("/"):
            return _refused(404, "there is no such file")
        answer = None if token is None else _admit(request, token)
        if answer is None and request.path == _CALLBACKS and not _is_callback(request):
            return _refused(400, "this is not a request of one of these pages")
        return answer

    def fail(error: Exception) -> BaseResponse:
        """Answer what no page asks for: Dash raises where a name or value is not one of its own."""
        if isinstance(error, HTTPException):
            return _refused(error.code or 500, error.name)
        if request.path.startswith(_SUITES):
            return _refused(404, "there is no such file")
        if request.path == _CALLBACKS and isinstance(error, _MALFORMED):
            return _refused(400, "this is not a request of one of these pages")
        server.logger.error("%s %s failed", request.method, request.path, exc_info=error)
        return _refused(500, "this page cannot be shown; the terminal says why")

    def harden(response: Response) -> Response:
        # A page with scripts of its own says which: the lesson.
        own = response.headers.get(_POLICY)
        response.headers.update(headers)
        if own is not None:
            response.headers[_POLICY] = f"{own}; frame-ancestors {frame_ancestors}"
        return response

    server.before_request(guard)
    server.after_request(harden)
    server.register_error_handler(Exception, fail)


# What a callback raises for an id, a property or a value that no page has.
_MALFORMED = (DashException, KeyError, IndexError, TypeError, ValueError, AttributeError)


def _refused(code: int, text: str) -> Response:
    return Response(f"{code}: {text}\n", code, mimetype="text/plain")


def _is_callback(asked: Request) -> bool:
    """Whether the body has the parts that Dash's own requests have."""
    body = asked.get_json(silent=True)
    if not isinstance(body, dict) or not isinstance(body.get("output"), str):
        return False
    return all(isinstance(body.get(name, []), list | dict) for name in _PARTS)


_PARTS = ("outputs", "inputs", "state", "changedPropIds")


def _is_of_another_site(asked: Request, is_framed: bool) -> bool:
    """Whether a browser says that a page of another site asks, other than to frame a page."""
    if asked.headers.get("Sec-Fetch-Site") != "cross-site":
        return False
    return not (is_framed and asked.headers.get("Sec-Fetch-Dest") == "iframe")


def _is_foreign(asked: Request, allowed: frozenset[str] | None, port: int | None) -> bool:
    """Whether the request is meant for another host, or made by a page of another origin."""
    host = asked.headers.get("Host", "")
    match = _HOST.fullmatch(host)
    if match is None:
        return True
    if allowed is not None and (
        match[1].lower() not in allowed or (port is not None and int(match[2] or 80) != port)
    ):
        return True
    is_written = asked.method not in ("GET", "HEAD")
    return is_written and "Origin" in asked.headers and not is_same_origin(asked)


def is_same_origin(asked: Request) -> bool:
    """Whether a browser says that a page of this very server asks."""
    host, origin = (asked.headers.get(name, "").lower() for name in ("Host", "Origin"))
    return bool(host) and origin in (f"http://{host}", f"https://{host}")


def _admit(asked: Request, token: str) -> BaseResponse | None:
    """Let in who has the cookie, or bears the token and gets the cookie for it."""
    if _same(asked.cookies.get(_COOKIE, ""), token):
        return None
    if not _same(asked.args.get("token", ""), token):
        return _refused(
            401, "this dashboard needs its token; open the address that the terminal printed"
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
        _POLICY: "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
    if frame_ancestors == "'none'":
        headers["X-Frame-Options"] = "DENY"
    return headers
