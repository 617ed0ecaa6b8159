"""Hosts, origins and the token: who may ask a server, and what every answer says."""

import pytest

from tests.helpers.asgi import Asker
from vse_jax.search.guard import Guard, cookie_of, is_local

TOKEN = "correct horse"


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"fine"})


@pytest.fixture
def guarded():
    """guarded(host, token) → something that asks a server at this address."""
    askers = []

    def start(host="127.0.0.1", token=None):
        limits = {"upload_bytes": 100, "timeout_s": 1.0}
        guard = Guard(app, host=host, token=token, cookie="kept", **limits)
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
    assert status == 200 or reply.error


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("192.168.0.7:8765", 200),
        ("nas:8765", 200),
        ("localhost", 200),
        ("evil.example", 403),
    ],
)
def test_a_server_for_others_goes_by_addresses_and_its_own_name(guarded, host, status):
    assert guarded("nas", TOKEN).get("/", {"host": host}).status == status


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
        ({"cookie": f"kept={cookie_of(TOKEN)}"}, 200),
        ({"cookie": f"other=1; kept={cookie_of(TOKEN)}"}, 200),
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
