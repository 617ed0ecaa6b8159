"""Search by a real PostgreSQL server with pgvector, against exact search."""

import contextlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psycopg
import pytest

from tests.helpers import postgres
from tests.helpers.indices import COUNT, DIM, new, unit_vectors, write_index
from vse_jax.base.errors import InputError
from vse_search import postgres as engines
from vse_search.engines import ExactEngine, make_engine
from vse_search.postgres import PostgresEngine
from vse_search.store import ALL, File, Filters, Store

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def server():
    with postgres.server() as server:
        yield server


@pytest.fixture
def vectors() -> np.ndarray:
    return unit_vectors()


@pytest.fixture
def store(tmp_path):
    with Store.open(write_index(tmp_path), read_only=False) as store:
        dated = [
            new("x/y/a.jpg", "A", "2019-05-01T23:59:59", "Canon"),
            new("x/b.jpg", "B", "2019-05-02T00:00:00"),
        ]
        store.add(dated, np.eye(2, DIM, dtype=np.float32))
        yield store


@pytest.fixture
def engine(store, server):
    with contextlib.closing(make_engine(store, "postgres", server.url)) as engine:
        yield engine


@pytest.fixture
def sent(monkeypatch) -> list[int]:
    """Ids of images whose vectors are sent."""
    ids, write_row = [], psycopg.Copy.write_row
    monkeypatch.setattr(
        psycopg.Copy,
        "write_row",
        lambda copy, row: (ids.append(row[0]), write_row(copy, row)),
    )
    return ids


def ask(server, command: str, *values):
    with psycopg.connect(server.url, autocommit=True) as connection:
        cursor = connection.execute(command, values)
        return cursor.fetchall() if cursor.description else None


def ids_there(server, store) -> list[int]:
    return [
        id
        for (id,) in ask(
            server, f"SELECT id FROM vse_jax_{store.uid}.images ORDER BY 1"
        )
    ]


@pytest.mark.parametrize(
    "filters",
    [
        ALL,
        Filters(camera="a"),
        Filters(camera="Canon"),
        Filters(folder="ten"),
        Filters(folder="x"),
        Filters(folder="x/y"),
        Filters(after="2019-05-02"),
        Filters(before="2019-05-01"),
        Filters(after="2019-05-01", before="2019-05-02"),
        Filters(camera="B", folder="ten", after="2030-01-01"),
    ],
)
def test_agrees_with_exact_search(engine, store, vectors, filters):
    found = engine.search(vectors[3], top=7, filters=filters)
    expected = ExactEngine(store).search(vectors[3], top=7, filters=filters)
    assert [(hit.id, hit.path) for hit in found] == [
        (hit.id, hit.path) for hit in expected
    ]
    scores = [hit.score for hit in expected]
    np.testing.assert_allclose([hit.score for hit in found], scores, atol=1e-5)


def test_the_graph_finds_what_exact_search_finds(store, server, vectors, monkeypatch):
    monkeypatch.setattr(engines, "_LEAST", 100)
    with contextlib.closing(PostgresEngine(store, server.url)) as engine:
        (names,) = ask(
            server,
            "SELECT array_agg(indexname) FROM pg_indexes WHERE schemaname = %s",
            f"vse_jax_{store.uid}",
        )
        assert "graph" in names[0]
        for query in vectors[:20]:
            found = engine.search(query, top=2)
            expected = ExactEngine(store).search(query, top=2)
            assert [hit.id for hit in found] == [hit.id for hit in expected]
            scores = [hit.score for hit in expected]
            np.testing.assert_allclose([hit.score for hit in found], scores, atol=1e-5)


def test_lowest_score(engine, vectors):
    hits = engine.search(vectors[0], top=COUNT, min_score=0.3)
    assert 1 < len(hits) < COUNT
    assert min(hit.score for hit in hits) >= 0.3


def test_it_follows_the_index(engine, store, vectors, sent):
    store.add([new("new.jpg")], 2 * vectors[:1])
    store.forget(["x/y/a.jpg"])
    store.link([File("ten/b.jpg", 10, 5, "B")])

    engine.refresh()

    assert sent == [COUNT + 3]
    assert engine.search(vectors[0], top=1)[0].path == "new.jpg"
    hits = engine.search(np.eye(1, DIM, dtype=np.float32)[0], top=COUNT + 9)
    assert COUNT + 1 not in [hit.id for hit in hits]
    second = np.eye(1, DIM, 1, dtype=np.float32)[0]
    ten = Filters(folder="ten")
    assert engine.search(second, top=1, filters=ten)[0].path == "ten/b.jpg"
    engine.refresh()
    assert sent == [COUNT + 3]


def test_an_index_that_lost_all_images_empties_its_table(engine, store, server):
    store.forget(store.files())
    engine.refresh()
    assert ids_there(server, store) == []


def test_what_the_server_has_is_not_sent_again(engine, store, server, monkeypatch):
    monkeypatch.setattr(PostgresEngine, "_bring_in_line", None)
    PostgresEngine(store, server.url).close()  # noted: nothing is compared
    ask(server, f"DROP SCHEMA vse_jax_{store.uid} CASCADE")
    with pytest.raises(TypeError):
        PostgresEngine(store, server.url)
    monkeypatch.undo()
    PostgresEngine(store, server.url).close()
    assert len(ids_there(server, store)) == COUNT + 2


def test_of_two_that_send_one_waits(store, server, sent):
    engines, threads = [], []
    for _ in range(3):

        def start():
            engines.append(PostgresEngine(store, server.url))

        threads.append(threading.Thread(target=start))
        threads[-1].start()
    for thread in threads:
        thread.join(60)
    for engine in engines:
        engine.close()
    assert len(engines) == 3
    assert sorted(sent) == list(range(1, COUNT + 3))  # each once


def test_an_older_view_of_the_index_takes_nothing_back(engine, store, server, vectors):
    old = store.snapshot()
    store.add([new("new.jpg")], vectors[:1])
    engine.refresh()
    with psycopg.connect(server.url, autocommit=True) as connection:
        engine._bring_in_line(connection, old)
    assert COUNT + 3 in ids_there(server, store)


FILL = """
import sys, time
from pathlib import Path
from vse_search import postgres
from vse_search.store import Store
postgres._SENT = 10
send = postgres.PostgresEngine._send
postgres.PostgresEngine._send = lambda *part: (time.sleep(0.02), send(*part))
with Store.open(Path(sys.argv[1]), read_only=True) as store:
    postgres.PostgresEngine(store, sys.argv[2]).close()
"""


@contextlib.contextmanager
def filling(store, server):
    """A process that fills the server, when it has begun to."""
    program = [sys.executable, "-c", FILL, store.index, server.url]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(1200):
            with contextlib.suppress(psycopg.errors.UndefinedTable):
                if len(ids_there(server, store)) >= 50:
                    break
            time.sleep(0.02)
        yield process


def test_filling_resumes_after_a_kill(store, server, sent):
    with filling(store, server) as process:
        process.send_signal(signal.SIGKILL)
    had = len(ids_there(server, store))
    assert 50 <= had < COUNT
    PostgresEngine(store, server.url).close()
    assert len(sent) <= COUNT + 2 - 50
    assert ids_there(server, store) == list(range(1, COUNT + 3))


def test_filling_resumes_after_the_server_was_killed(store, server, engine, vectors):
    ask(server, f"DROP SCHEMA vse_jax_{store.uid} CASCADE")
    with filling(store, server) as process:
        server.kill()
        told = process.communicate(timeout=60)[1]
        assert "InputError: config.search.url: postgresql://" in told
    server.start()
    had = len(ids_there(server, store))
    assert 50 <= had < COUNT + 2
    PostgresEngine(store, server.url).close()
    assert ids_there(server, store) == list(range(1, COUNT + 3))
    assert engine.search(vectors[3], top=1)[0].id == 4  # its connections were lost


def test_unknown_names_are_named(engine, vectors):
    with pytest.raises(InputError, match="camera: no image has 'Leica'"):
        engine.search(vectors[0], top=1, filters=Filters(camera="Leica"))


def test_a_filter_is_no_sql(engine, store, server, vectors):
    for name in ("'; DROP TABLE x", "\x00", "%s", "ten'"):
        for filters in (Filters(camera=name), Filters(folder=name)):
            with pytest.raises(InputError):
                engine.search(vectors[0], top=1, filters=filters)


@pytest.mark.parametrize(
    "url",
    [
        *(None, "", "/tmp/folder", "http://host:6333", "host=a password=secret"),
        *("postgresql://a:secret@[b/c", "postgresql://a:secret@b/c?secret=1"),
    ],
)
def test_other_urls_are_refused(store, url):
    with pytest.raises(InputError) as error:
        make_engine(store, "postgres", url)
    assert str(error.value) == ("config.search.url: no postgresql://USER@HOST/DATABASE")


def refusal(store, url: str) -> str:
    """The one line with which an engine ends."""
    with pytest.raises(InputError) as error:
        make_engine(store, "postgres", url)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:secret@127.0.0.1:9/x",
        "postgresql://ann@127.0.0.1:9/x?password=secret",
    ],
)
def test_a_server_that_does_not_answer_is_named_without_the_password(
    store, url, caplog
):
    told = refusal(store, url)
    assert told.startswith(
        "config.search.url: postgresql://ann@127.0.0.1:9/x: PostgreSQL: connection"
    )
    assert "secret" not in told + caplog.text


@pytest.mark.parametrize(
    ("table", "missing"), [("facts", "model"), ("images", "taken")]
)
def test_tables_that_are_not_ours_are_named(store, server, table, missing):
    ask(server, f"CREATE SCHEMA vse_jax_{store.uid}")
    ask(server, f"CREATE TABLE vse_jax_{store.uid}.{table} (name text)")
    assert f'column "{missing}" does not exist' in refusal(store, server.url)


def test_another_models_vectors_are_refused(engine, store, server):
    ask(server, f"UPDATE vse_jax_{store.uid}.facts SET model = 'b'")
    told = refusal(store, server.url)
    assert told.endswith(f"vse_jax_{store.uid}: another model's vectors")


def test_a_user_who_may_only_read_can_search(engine, store, server, vectors):
    ask(server, "CREATE ROLE reader LOGIN")
    ask(server, f"GRANT USAGE ON SCHEMA vse_jax_{store.uid} TO reader")
    ask(server, f"GRANT SELECT ON ALL TABLES IN SCHEMA vse_jax_{store.uid} TO reader")
    url = server.url.replace("postgres@", "reader@")
    with contextlib.closing(PostgresEngine(store, url)) as reading:
        assert reading.search(vectors[3], top=1)[0].id == 4
    store.add([new("new.jpg")], vectors[:1])
    assert "permission denied" in refusal(store, url)


def test_a_missing_right_is_named(store, server):
    ask(server, "CREATE ROLE visitor LOGIN")
    ask(server, "CREATE DATABASE bare")
    url = server.url.replace("postgres@/postgres", "visitor@/bare")
    assert "permission denied" in refusal(store, url)


@pytest.mark.parametrize(
    ("name", "package"), [("postgres", "psycopg"), ("approximate", "faiss")]
)
def test_a_missing_package_is_named(store, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"vse_search.{name}", raising=False)
    with pytest.raises(InputError) as error:
        make_engine(store, name, "postgresql://127.0.0.1/x")
    about = f"config.search.engine: '{name}': the package {package} is not installed: "
    assert str(error.value).startswith(f"{about}pip install 'vse_jax[search]'")
