import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from analyzer.dashboard.app import create_app
from analyzer.dashboard.ids import Id
from analyzer.dashboard.library import Library
from analyzer.dashboard.security import MOST_BYTES, is_loopback
from analyzer.dashboard.server import LESSON, new_token
from analyzer.storage import bin_writer
from tests.dashboard.conftest import serving
from tests.support.requests import LOCAL, route
from tests.support.runs import write_run


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    write_run(tmp_path / "runs" / "good", [1.0, 0.5], [[1.0, 2.0]] * 2)
    return create_app(tmp_path / "runs").server.test_client()


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8050", "127.0.0.1.evil.example", ""]
)
def test_a_foreign_host_is_refused(client: FlaskClient, host: str) -> None:
    assert client.get("/_dash-layout", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:8050", "127.0.0.1", "[::1]:8050", "LOCALHOST:9"])
def test_this_machine_is_served_under_each_of_its_names(client: FlaskClient, host: str) -> None:
    assert client.get("/_dash-layout", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999"])
def test_a_callback_of_a_foreign_origin_does_not_run(client: FlaskClient, origin: str) -> None:
    assert route(client, "", Origin=origin).status_code == 403
    assert route(client, "", Origin="http://127.0.0.1:8050").status_code == 200


def test_the_headers_allow_scripts_of_this_server_alone(client: FlaskClient) -> None:
    answer = client.get("/runs", headers=LOCAL)
    policy = dict(
        part.strip().partition(" ")[::2]
        for part in answer.headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert re.fullmatch(r"'self'( 'sha256-[A-Za-z0-9+/=]+')*", policy["script-src"])
    assert policy["frame-ancestors"] == "'none'" and answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_every_inline_script_of_the_page_is_in_the_policy(client: FlaskClient) -> None:
    from base64 import b64encode
    from hashlib import sha256

    answer = client.get("/runs", headers=LOCAL)
    inline = re.findall(r"<script(?![^>]*\bsrc=)([^>]*)>(.*?)</script>", answer.text, re.S)
    scripts = [text for attributes, text in inline if "application/json" not in attributes]
    assert scripts
    for text in scripts:
        digest = b64encode(sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1:8050", 200),
        ("LOCALHOST:8050", 200),
        ("127.0.0.1:8051", 403),
        ("127.0.0.1", 403),
        ("127.0.0.1:08050x", 403),
        ("evil.example:8050", 403),
    ],
)
def test_where_the_port_is_known_a_host_must_have_it(tmp_path: Path, host: str, code: int) -> None:
    client = create_app(tmp_path, port=8050).server.test_client()
    assert client.get("/_dash-layout", headers={"Host": host}).status_code == code


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.9.10", "::1", "localhost")),
        *((host, False) for host in ("127.evil.example", "0.0.0.0", "", "10.0.0.1")),
    ],
)
def test_loopback_is_an_address_and_no_text(host: str, is_ours: bool) -> None:
    assert is_loopback(host) is is_ours
    assert (new_token(host) is None) is is_ours


def test_a_page_of_another_site_gets_nothing(tmp_path: Path, client: FlaskClient) -> None:
    foreign = {"Sec-Fetch-Site": "cross-site"}
    framed = {**foreign, "Sec-Fetch-Dest": "iframe"}
    assert client.get("/_dash-layout", headers=LOCAL | foreign).status_code == 403
    assert client.get("/runs", headers=LOCAL | framed).status_code == 403
    assert route(client, "", **foreign).status_code == 403
    assert client.get("/runs", headers=LOCAL | {"Sec-Fetch-Site": "none"}).status_code == 200
    notebook = create_app(tmp_path, frame_ancestors="http://localhost:*").server.test_client()
    assert notebook.get("/", headers=LOCAL | framed).status_code == 200
    assert notebook.get("/_dash-layout", headers=LOCAL | foreign).status_code == 403


def test_the_lesson_is_guarded_as_every_page_is(client: FlaskClient) -> None:
    for refused in ({"Host": "evil.example"}, LOCAL | {"Sec-Fetch-Site": "cross-site"}):
        assert client.get(LESSON, headers=refused).status_code == 403
    answer = client.get(LESSON, headers=LOCAL)
    policy = answer.headers["Content-Security-Policy"]
    assert answer.status_code == 200 and answer.headers["X-Frame-Options"] == "DENY"
    assert policy.startswith("default-src 'none'") and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy.partition("script-src")[2].partition(";")[0]


@pytest.mark.parametrize(
    "path", ["//evil.example/overview", "/overview//evil.example", "/\\evil.example", "/overview"]
)
def test_a_former_path_leads_to_no_other_site(client: FlaskClient, path: str) -> None:
    for query in ("run=//evil.example", "run=x%0d%0aSet-Cookie:a=b", "token=//evil.example"):
        asked = {"PATH_INFO": path, "QUERY_STRING": query}
        answer = client.get("/", headers=LOCAL, environ_overrides=asked)
        place = answer.headers.get("Location", "/?")
        assert place.startswith("/?") and "Set-Cookie" not in answer.headers


MALFORMED: list[Any] = [
    b"",
    b"{",
    b"[]",
    b"null",
    {},
    {"output": 5},
    {"output": "nosuch.children", "outputs": {"id": "nosuch", "property": "children"}},
    {"output": "nosuch", "inputs": 5},
    {"output": f"{Id.STEPS}.data", "outputs": {"id": Id.STEPS, "property": "data"}, "inputs": []},
    {"output": f"{Id.STEPS}.data", "outputs": [], "inputs": [5, None], "state": {"a": []}},
    {"output": f"{Id.STEPS}.data", "inputs": [{"id": {"type": {}}, "property": 3}]},
]


@pytest.mark.parametrize("body", MALFORMED, ids=str)
def test_a_malformed_callback_is_a_bad_request(client: FlaskClient, body: Any) -> None:
    given = {"data": body} if isinstance(body, bytes) else {"json": body}
    json = {"Content-Type": "application/json"}
    answer = client.post("/_dash-update-component", headers=LOCAL | json, **given)
    assert answer.status_code == 400
    assert answer.text == "400: this is not a request of one of these pages\n"


@pytest.mark.parametrize("value", [5, {"a": 1}, ["?run=good"], True, "x" * 10_000])
def test_a_value_of_another_type_is_a_bad_request(client: FlaskClient, value: Any) -> None:
    answer = route(client, value)
    assert answer.status_code in (200, 400) and "Traceback" not in answer.text


@pytest.mark.parametrize("name", ["oldJob", "cancelJob", "job", "cacheKey"])
def test_no_parameter_of_background_callbacks_ends_a_process(
    client: FlaskClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dash ends the process of a job by a number that the request names."""
    ended: list[Any] = []
    monkeypatch.setattr("os.kill", lambda *words: ended.append(words))
    body = {"output": f"{Id.STEPS}.data", "inputs": [], "changedPropIds": []}
    path = f"/_dash-update-component?{name}=1&{name}={2**31}"
    assert client.post(path, json=body, headers=LOCAL).status_code in (200, 400)
    assert ended == [] and not client.application.debug


def test_a_body_has_a_limit(client: FlaskClient) -> None:
    assert route(client, "?run=" + "x" * MOST_BYTES).status_code in (400, 413)


@pytest.mark.parametrize(
    "path", ["/_dash-component-suites/../", "/_dash-component-suites/dash/../../app.py"]
)
def test_a_suite_that_is_not_there_is_not_found(client: FlaskClient, path: str) -> None:
    answer = client.get(path, headers=LOCAL)
    assert answer.status_code == 404 and answer.text == "404: there is no such file\n"


class Asker:
    """A bare connection to a server."""

    def __init__(self, address: str) -> None:
        self.host = address.removeprefix("http://")
        name, _, port = self.host.partition(":")
        self.socket = socket.create_connection((name, int(port)), timeout=30)

    def ask(self, path: str = "/_dash-layout", body: bytes = b"", more: str = "") -> bytes:
        method = "POST" if body or more else "GET"
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nConnection: close\r\n{more}\r\n"
        self.socket.sendall(head.encode() + body)
        got = b""
        while part := self.socket.recv(65536):
            got += part
        self.socket.close()
        return got


def test_no_answer_says_which_server_it_is(tmp_path: Path) -> None:
    with serving(tmp_path) as address:
        answer = Asker(address).ask()
        assert answer.startswith(b"HTTP/1.1 200") and b"\nServer:" not in answer
        broken = Asker(address)
        broken.socket.sendall(b"\0\0 / HTTP/9\r\n\r\n")
        refused = broken.socket.recv(4096)
        assert refused.startswith(b"HTTP/1.0 400") and b"Traceback" not in refused
        broken.socket.close()
        large = Asker(address).ask(more=f"Content-Length: {MOST_BYTES * 60}\r\n")
        assert large.startswith(b"HTTP/1.1 413") and b"waitress" not in large.lower()


def test_a_hundred_and_fifty_connections_that_say_nothing_keep_nobody_out(tmp_path: Path) -> None:
    with serving(tmp_path) as address:
        idle = [Asker(address) for _ in range(150)]
        for one in idle[::2]:  # half of them have begun to ask
            one.socket.sendall(b"GET / HTTP/1.1\r\nHost: ")
        began = time.monotonic()
        assert Asker(address).ask().startswith(b"HTTP/1.1 200")
        assert time.monotonic() - began < 20
        for one in idle:
            one.socket.close()


TRAVERSALS = [
    "../good",
    "..",
    "/etc",
    "good/../good",
    "..%2fgood",
    "..\\good",
    "good\0",
    "." * 9000,
]


@pytest.mark.parametrize("name", TRAVERSALS)
def test_a_run_outside_the_listing_is_not_found(client: FlaskClient, name: str) -> None:
    from urllib.parse import quote

    answer = route(client, "?run=" + quote(name))
    assert answer.status_code == 200
    assert "no run" in answer.text or "No run is chosen" in answer.text
    assert client.get(f"/csv/overview?run={quote(name)}", headers=LOCAL).status_code == 404


PARAMETERS = ["step", "quantity", "layers", "bins", "relative", "smooth", "layer", "all others"]
OTHERS = ("pin", "x", "logx", "y", "group", "find", "column", "of", "zoom-step", "sort")


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("value", ["../../etc/passwd", "(a%2b)%2b$", "%00", "9" * 400, "%F0%28"])
def test_no_parameter_ends_the_server(client: FlaskClient, name: str, value: str) -> None:
    names = OTHERS if name == "all others" else [name]
    asked = "?run=good&" + "&".join(f"{one}={value}" for one in names)
    assert route(client, asked).status_code == 200
    assert client.get(f"/csv/overview{asked}", headers=LOCAL).status_code in (200, 404)
    assert client.get("/_dash-layout", headers=LOCAL).status_code == 200


@pytest.mark.parametrize("path", ["/assets/../app.py", "/assets/%2e%2e/app.py", "/csv/../../x"])
def test_no_file_outside_the_assets_is_served(client: FlaskClient, path: str) -> None:
    answer = client.get(path, headers=LOCAL)
    assert "create_app" not in answer.text


def test_a_link_out_of_the_folder_is_not_listed(tmp_path: Path) -> None:
    write_run(tmp_path / "secret", [1.0], [[1.0]])
    write_run(tmp_path / "runs" / "good", [1.0], [[1.0]])
    (tmp_path / "runs" / "leak").symlink_to(tmp_path / "secret")
    client = create_app(tmp_path / "runs").server.test_client()
    assert "no run" in route(client, "?run=leak").text
    assert client.get("/csv/loss?run=leak", headers=LOCAL).status_code == 404


@pytest.mark.parametrize("table", ["steps", "layer_stats", "overview", "layers.parquet"])
def test_a_run_that_borrows_a_table_by_a_link_shows_nothing_of_it(
    tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bin_writer, "LEAST_ROWS", 0)  # so that there is an overview to borrow
    secret = write_run(tmp_path / "secret", [123.456] * 3, [[123.456, 7.0]] * 3)
    run = write_run(tmp_path / "runs" / "good", [1.0] * 3, [[1.0, 2.0]] * 3)
    mine = run / table
    mine.rename(tmp_path / "kept")
    mine.symlink_to(secret / table)
    client = create_app(tmp_path / "runs").server.test_client()
    for key in ("loss", "gradient_heatmap", "layer_series"):
        assert "123.45" not in client.get(f"/csv/{key}?run=good", headers=LOCAL).text


def test_a_huge_manifest_is_refused_with_its_size(tmp_path: Path) -> None:
    import os

    write_run(tmp_path / "runs" / "good", [1.0], [[1.0]])
    huge = write_run(tmp_path / "runs" / "huge", [1.0], [[1.0]]) / "run.json"
    os.truncate(huge, 2**30)
    library = Library([tmp_path / "runs"])
    by_id = {run.id: run.summary for run in library.listing()}
    assert by_id["good"].problem is None
    assert by_id["huge"].status == "broken" and "run.json" in (by_id["huge"].problem or "")


def test_beyond_loopback_the_token_is_asked_for_once(tmp_path: Path) -> None:
    app = create_app(tmp_path, token="s3cret")
    client = app.server.test_client()
    host = {"Host": "192.168.1.5:8050"}
    assert client.get("/_dash-layout", headers=host).status_code == 401
    assert client.get("/?token=wrong", headers=host).status_code == 401
    entered = client.get("/?token=s3cret&run=a", headers=host)
    assert entered.status_code == 302 and entered.headers["Location"] == "/?run=a"
    cookie = entered.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    stranger = app.server.test_client(use_cookies=False)
    assert stranger.get("/_dash-layout", headers=host).status_code == 401
    admitted = {**host, "Cookie": cookie.partition(";")[0]}
    assert stranger.get("/_dash-layout", headers=admitted).status_code == 200


def test_the_token_leads_to_no_other_site(tmp_path: Path) -> None:
    client = create_app(tmp_path, token="s3cret").server.test_client()
    entered = client.get("//evil.example/?token=s3cret", headers={"Host": "10.0.0.1"})
    assert not entered.headers.get("Location", "/").startswith("//")


def test_the_server_opens_no_file_of_its_own_accord_for_writing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs" / "good", [1.0, 0.5], [[1.0, 2.0]] * 2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    client = create_app(tmp_path / "runs").server.test_client()
    assert route(client, "?run=good").status_code == 200
    assert client.get("/csv/loss?run=good", headers=LOCAL).status_code in (200, 404)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert folder.exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/score?run=a&step=3", "/?run=a&step=3"),
        ("/overview?run=a", "/?run=a"),
        ("/skips", "/shortcuts"),
    ],
)
def test_the_address_that_a_page_had_once_leads_to_it(tmp_path: Path, old: str, new: str) -> None:
    client = create_app(tmp_path).server.test_client()
    answer = client.get(old, headers=LOCAL)
    assert (answer.status_code, answer.headers["Location"]) == (302, new)
    assert client.get(old, headers={"Host": "evil.example"}).status_code == 403
