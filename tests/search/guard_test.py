"""Hosts, origins and the token: who may ask a server, and what every answer says."""

import time

import pytest

from tests.helpers.asgi import Asker
from vse_search.guard import Guard, cookie_of, is_local

TOKEN = "correct horse"


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"fine"})


@pytest.fixture
def guarded():
    """guarded(host, token, hosts) → something that asks a server at this address."""
    askers = []

    def start(host="127.0.0.1", token=None, hosts=(), app=app):
        limits = {"upload_bytes": 100, "timeout_s": 1.0}
        names = {"host": host, "hosts": hosts, "cookie": "kept"}
        guard = Guard(app, token=token, **names, **limits)
        askers.append(Asker(guard))
        return askers[-1]

    yield start
    for asker in askers:
        asker.__exit__()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8765", 200),
        ("127.0.0.1", 200),
        ("localhost:9000", 200),  # through a tunnel
        ("LOCALHOST", 200),
        ("[::1]:8765", 200),
        ("localhost.", 200),
        ("evil.example", 403),
        ("evil.example:8765", 403),
        ("localhost.evil.example", 403),
        ("localhost@evil.example", 403),
        ("evil.example#localhost", 403),
        ("127.0.0.1.evil.example", 403),
        ("192.168.0.7:8765", 403),
        ("", 403),
        ("[::1", 403),
        ("localhost:port", 403),
        (None, 403),
    ],
)
def test_a_name_that_is_not_the_servers_is_refused(guarded, host, status):
    reply = guarded().get("/", {"host": host})
    assert reply.status == status
    if host and status == 403:  # it says which, and what allows it
        assert host in reply.error
        assert "config.search.hosts" in reply.error


@pytest.mark.parametrize(
    "host",
    [
        "192.168.0.7:8765",
        "nas:8765",
        "NAS.local",
        "nas.lan.",
        "nas.tail1234.ts.net",
        "photos.example.com",
        "localhost",
        "[fd00::7]:8765",
        "[fe80::7%eth0]",
    ],
)
def test_a_token_makes_every_name_good(guarded, host):
    """A page whose name was led here (DNS rebinding) has no token and no cookie."""
    server = guarded("0.0.0.0", TOKEN)
    assert server.get("/", {"host": host}).status == 200
    assert server.get("/api/status", {"host": host}).status == 401
    assert server.get("/", {"host": f"{host}/x"}).status == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("photos.example.com", 200),
        ("PHOTOS.example.com.:443", 200),
        ("a.b.lan", 200),
        ("lan", 403),
        ("example.com", 403),
        ("xphotos.example.com", 403),
        ("photos.example.com.evil.example", 403),
        ("192.168.0.7", 403),
    ],
)
def test_a_name_that_the_owner_allows_is_good(guarded, host, status):
    server = guarded(hosts=("photos.Example.com", "*.lan"))
    assert server.get("/", {"host": host}).status == status


BEHIND = {"host": "127.0.0.1:8765"}  # as a proxy asks, if nobody told it otherwise
PAGE = {"origin": "https://photos.example.com"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (PAGE, 403),
        (PAGE | {"sec-fetch-site": "same-origin"}, 200),
        (PAGE | {"sec-fetch-site": "same-site"}, 403),
        (PAGE | {"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://127.0.0.1:8765", "sec-fetch-site": "cross-site"}, 403),
        (PAGE | {"x-forwarded-host": "photos.example.com"}, 200),
        (PAGE | {"x-forwarded-host": "example.com"}, 403),
        (PAGE | {"host": "photos.example.com"}, 200),
        (PAGE | {"authorization": f"Bearer {TOKEN}"}, 200),
        (PAGE | {"authorization": "Bearer x"}, 403),
    ],
)
def test_a_page_behind_a_proxy_is_known(guarded, headers, status):
    server = guarded(token=TOKEN)
    until = int(time.time()) + 60
    signed_in = {"cookie": f"kept={cookie_of(TOKEN, until)}"}
    reply = server.post("/api/search", {}, BEHIND | signed_in | headers)
    assert reply.status == status
    if status == 403 and "origin" in headers:
        assert headers["origin"] in reply.error


def test_a_page_of_an_allowed_name_is_known(guarded):
    server = guarded(hosts=("photos.example.com",))
    for port in ("", ":8080"):
        headers = {"origin": f"http://photos.example.com{port}"}
        assert server.post("/api/search", {}, BEHIND | headers).status == 200


def test_only_a_trusted_proxy_says_who_asks(guarded, monkeypatch):
    def status(client):
        server = guarded(token=TOKEN)
        server.client = client
        headers = {"x-forwarded-host": "photos.example.com"} | PAGE
        return server.post("/api/token", {}, BEHIND | headers).status

    assert (status("127.0.0.1"), status("::1"), status("172.17.0.2")) == (200, 200, 403)
    assert (status("::ffff:127.0.0.1"), status("::ffff:172.17.0.2")) == (200, 403)
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "172.17.0.0/16")
    assert (status("127.0.0.1"), status("172.17.0.2")) == (403, 200)


@pytest.mark.parametrize("prefix", ["/photos", "/my/photos/", "/api", "/page"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_proxy_may_serve_it_below_a_prefix(guarded, prefix, kept):
    async def echo(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        path = scope["path"].removeprefix(scope["root_path"])
        await send({"type": "http.response.body", "body": path.encode()})

    server = guarded(token=TOKEN, app=echo)
    start = prefix.rstrip("/") if kept else ""
    headers = {"x-forwarded-prefix": prefix}
    assert server.get(f"{start}/", headers).data == b"/"
    assert server.get(f"{start}/page/main.js", headers).status == 200 or not kept
    known = headers | {"authorization": f"Bearer {TOKEN}"}
    if kept or prefix != "/api":
        assert server.get(f"{start}/api/status", headers).status == 401
        assert server.get(f"{start}/api/status", known).data == b"/api/status"
    if kept:
        reply = server.get(start, headers)
        assert (reply.status, reply.headers["location"]) == (308, f"{start}/")


@pytest.mark.parametrize(
    ("method", "origin", "status"),
    [
        ("POST", None, 200),  # no browser
        ("POST", "http://127.0.0.1:8765", 200),
        ("POST", "http://127.0.0.1:9999", 403),
        ("POST", "http://localhost:8765", 403),
        ("POST", "https://evil.example", 403),
        ("POST", "null", 403),
        ("POST", "http://[", 403),
        ("DELETE", "https://evil.example", 403),
        ("GET", "https://evil.example", 200),
    ],
)
def test_pages_of_other_sites_may_change_nothing(guarded, method, origin, status):
    assert guarded()(method, "/api/search", {"origin": origin}).status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": f"Bearer {TOKEN}"}, 200),
        ({"authorization": f"bearer  {TOKEN}"}, 200),
        ({"authorization": f"Basic {TOKEN}"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Bearer correct hors"}, 401),
        ({"authorization": "Bearer ü"}, 401),
        ({"cookie": f"kept={cookie_of(TOKEN, 2**34)}"}, 200),
        ({"cookie": f"other=1; kept={cookie_of(TOKEN, 2**34)}"}, 200),
        ({"cookie": f"kept={cookie_of(TOKEN, 1_500_000_000)}"}, 401),  # in 2017
        ({"cookie": f"kept=9{cookie_of(TOKEN, 2**34)}"}, 401),
        ({"cookie": f"kept={cookie_of('another', 2**34)}"}, 401),
        ({"cookie": f"kept={2**34}."}, 401),
        ({"cookie": "kept=²."}, 401),
        ({"cookie": f"kept={TOKEN}"}, 401),
        ({"cookie": "kept="}, 401),
        ({"cookie": "=;=\0kept"}, 401),
    ],
)
def test_the_token_opens_the_api(guarded, headers, status):
    server = guarded(token=TOKEN)
    for target in ("/api/status", "/api/thumbnail/1", "/api/token/x", "/apix", "/x"):
        assert server.get(target, headers).status == status, target


def test_the_page_can_ask_for_the_token(guarded):
    server = guarded(token=TOKEN)
    for target in ("/", "/page/main.js", "/openapi.json"):
        assert server.get(target).status == 200
    assert server.post("/api/token", {"token": "x"}).status == 200  # the app's to check


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def test_wrong_tokens_are_looked_at_ten_times_a_minute(guarded, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    server = guarded(token=TOKEN)
    wrong = [server.get("/api/status", bearer(n)).status for n in range(10)]
    assert wrong == [401] * 10
    reply = server.get("/api/status", bearer(TOKEN))  # or guessing would go on
    assert (reply.status, reply.headers["retry-after"]) == (429, "60")
    assert server.post("/api/token", {"token": TOKEN}).status == 429
    kept = {"cookie": f"kept={cookie_of(TOKEN, 2**34)}"}
    assert server.get("/api/status", kept).status == 200
    assert server.get("/api/status").status == 401
    server.client = "192.168.0.8"
    assert server.get("/api/status", bearer(TOKEN)).status == 200
    server.client = "127.0.0.1"
    now += 61
    assert server.get("/api/status", bearer(TOKEN)).status == 200


def test_tokens_are_counted_by_whom_the_proxy_names_and_by_network(guarded):
    server = guarded(token=TOKEN)

    def tries(*addresses):
        return [
            server.get("/api/status", bearer("x") | {"x-forwarded-for": a}).status
            for a in addresses
        ]

    assert tries(*["203.0.113.5"] * 11) == [401] * 10 + [429]
    assert tries("203.0.113.6") == [401]
    assert tries(*(f"2001:db8::{n}" for n in range(11)))[-1] == 429
    assert tries("2001:db8:0:1::1") == [401]


def test_a_head_is_answered_as_a_get_without_its_body(guarded):
    reply = guarded()("HEAD", "/")
    assert (reply.status, reply.data) == (200, b"")
    assert "content-security-policy" in reply.headers
    assert guarded(token=TOKEN)("HEAD", "/api/status").status == 401


def test_every_answer_forbids_what_a_page_does_not_need(guarded):
    server = guarded()
    for reply in (server.get("/"), server.get("/", {"host": "evil.example"})):
        assert "default-src 'self'" in reply.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"


def test_a_size_that_is_said_to_be_too_large_is_refused_unread(guarded):
    for target, size, status in (
        ("/api/upload", 100, 200),
        ("/api/upload", 101, 413),
        ("/api/search", 131072, 200),
        ("/api/search", 131073, 413),
    ):
        headers = {"content-length": str(size)}
        assert guarded()("POST", target, headers, None).status == status


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.7", False),
        ("nas", False),
        ("", False),
    ],
)
def test_which_addresses_only_this_machine_reaches(host, local):
    assert is_local(host) is local
