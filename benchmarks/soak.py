"""Many requests, good and bad, to a server; each has a status that it must get."""

import http.client
import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple


class Request(NamedTuple):
    method: str
    target: str
    status: int  # that the answer has to have
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def requests(rng: random.Random, image: bytes):
    """Yields good and bad requests without end; `image` is a file's content."""
    kind = (("Content-Type", "application/json"),)

    def search(status: int, **fields) -> Request:
        body = json.dumps(fields).encode()
        return Request("POST", "/api/search", status, body, kind)

    def explain() -> Request:
        body = json.dumps({"query": "a red car", "id": 1}).encode()
        return Request("POST", "/api/explain", 200, body, kind)

    id = str(rng.randint(1, 8))
    while True:
        color = rng.choice(("red", "green", "blue", "white"))
        yield rng.choice(
            (
                search(200, query=f"a {color} car {rng.random()}"),
                search(200, query=f"'{color}' - 0.5*'a dog'", before="2100-01-01"),
                search(200, like=[1], unlike=[2], top=3, min_score=0.1),
                search(400, query="?"),
                search(400, query=f"'{color} - 'dog"),
                search(400, query=color, unknown=1),
                search(404, like=[rng.randint(10**6, 10**9)]),
                Request("POST", "/api/search", 400, rng.randbytes(50), kind),
                Request("POST", "/api/search", 413, bytes(140_000), kind),
                explain(),
                Request("GET", f"/api/thumbnail/{id}", 200),
                Request("GET", f"/api/picture/{id}?full=1", 200),
                Request("GET", f"/api/data/{id}", 200),
                Request("GET", "/api/data/../../etc/passwd", 404),
                Request("GET", "/api/picture/%2e%2e%2fserver.json", 404),
                Request("GET", "/api/status", 200),
                Request("GET", "/api/status", 403, headers=(("Host", "evil.example"),)),
                Request("POST", "/api/upload", 200, image + rng.randbytes(2)),
                Request("POST", "/api/upload", 415, rng.randbytes(200)),
                Request("DELETE", "/api/data/1", 405),
            )
        )


def soak(port: int, count: int, image: bytes, threads: int = 8, seed: int = 0):
    """Sends `count` requests by several threads.

    Returns:
        How many got each (status expected, status got); 0: there was no answer.
    """

    def work(number: int) -> Counter[tuple[int, int]]:
        found: Counter[tuple[int, int]] = Counter()
        source = requests(random.Random(1000 * seed + number), image)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for _ in range(count // threads):
            request = next(source)
            try:
                method, target, _, body, headers = request
                connection.request(method, target, body, dict(headers))
                response = connection.getresponse()
                data = response.read()
                got = response.status
                assert got < 400 or json.loads(data).keys() == {"error"}
            except (OSError, http.client.HTTPException):
                connection.close()
                got = 0
            found[request.status, got] += 1
        connection.close()
        return found

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(work, range(threads)), start=Counter())


def resident(pid: int) -> int:
    """Bytes of a process's memory that are in RAM and its own."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * 4096
