"""The JSON API, asked as browsers and attackers do."""

import asyncio
import io
import itertools
import json
import os
import shutil
import struct
import sys
import time
import urllib.parse
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

import vse_jax
from tests.helpers import searching, steps
from tests.helpers.asgi import Asker, Fault, ask
from tests.helpers.runs import write_run
from tests.helpers.searching import ColourModel
from tests.helpers.turned_pictures import CORNERS, TURNABLE, turned
from vse_jax.base.errors import InputError
from vse_search.app import Server
from vse_search.searcher import Searcher

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Read-only for tests."""
    folder = tmp_path_factory.mktemp("search")
    pictures = searching.draw_pictures(folder / "pictures")
    return searching.make_index(pictures, folder / "index")


@pytest.fixture
def serve(index):
    """serve(model=…, OPTION=…) → something that asks a server."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(model=None, index=index, **options):
            model = model or ColourModel()
            options = searching.options(**options)
            opened = Searcher.open(options, index, lambda: model)
            searcher = stack.enter_context(opened)
            searcher.warm_up()
            server = Server(searcher, options, 8765)
            stack.callback(lambda: server.close(60.0))
            return stack.enter_context(Asker(server.app))

        yield start


@pytest.fixture
def server(serve):
    return serve()


def paths(reply) -> list[str]:
    assert reply.status == 200, reply
    return [hit["path"] for hit in reply.json()["hits"]]


def content(colour: str, kind="PNG", size=(40, 30), **how) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, searching.COLOURS[colour]).save(file, kind, **how)
    return file.getvalue()


# ---- What it finds -------------------------------------------------------------------


def test_status_says_what_there_is(server):
    assert server.get("/api/status").json() == {
        "pictures": 8,
        "folder": "pictures",
        "model": "colours",
        "trained_on": "openmoji",
        "languages": [],
        "explains": True,
        "uploads": True,
        "cameras": ["Nikon D0", "Nikon D1"],
        "folders": ["trips"],
        "first": "2019-05-01",
        "last": "2019-05-07",
        "version": server.get("/api/status").json()["version"],
    }


def test_a_sentence_finds_its_picture_first(server):
    hits = server.post("/api/search", {"query": "a red car", "top": 2}).json()["hits"]
    first = hits[0]
    id, score = first.pop("id"), first.pop("score")
    assert first == {
        "path": "red.jpg",
        "width": 64,
        "height": 48,
        "taken": "2019-05-01T10:00:00",
        "camera": "Nikon D0",
        "copies": 1,
    }
    assert 0.9 < score <= 1
    data = server.get(f"/api/data/{id}").json()
    assert data["copies"] == ["trips/red again.jpg"]
    assert data["bytes"] > 0
    assert len(hits) == 2


def test_parts_are_added_and_subtracted(server):
    red, blue = (
        server.post("/api/search", {"query": colour}).json()["hits"][0]["id"]
        for colour in ("red", "blue")
    )
    found = paths(server.post("/api/search", {"like": [red], "unlike": [blue]}))
    assert found[0] == "red.jpg"
    assert {*found[-2:]} == {"blue.jpg", "trips/sea side.png"}
    query = "'red' - 2*'red' + 'green'"
    assert paths(server.post("/api/search", {"query": query}))[0] == "green.jpg"


def test_a_name_of_a_file_finds_its_picture(server):
    def found(query):
        return paths(server.post("/api/search", {"query": query, "top": 1}))

    assert found("blue.jpg") == ["blue.jpg"]
    assert found("BLUE.JPG") == ["blue.jpg"]
    assert found("trips/sea side.png") == ["trips/sea side.png"]
    assert found("sea side.png") == ["trips/sea side.png"]
    assert found("red again.jpg") == ["red.jpg"]  # a copy of it
    assert found("'yellow' - 2*blue.jpg") == ["yellow.jpg"]
    reply = server.post("/api/search", {"query": "lue.jpg"})
    assert reply.error == "query: lue.jpg: no image of the index has this name"


def test_a_name_may_look_like_a_sum_and_be_that_of_several(serve, tmp_path):
    for name in ("a - 'b'.jpg", "one/x.png", "two/x.png", "é.jpg"):
        searching.draw(tmp_path / "in" / name, "red" if name[0] == "a" else "blue")
    draw = searching.draw(tmp_path / "in" / "two" / "x.png", "green")
    server = serve(index=searching.make_index(tmp_path / "in", tmp_path / "index"))

    def ask(query):
        return server.post("/api/search", {"query": query, "top": 1})

    assert paths(ask("a - 'b'.jpg")) == ["a - 'b'.jpg"]
    assert paths(ask("E\u0301.JPG")) == ["é.jpg"]
    assert paths(ask(f"two/{draw.name}")) == ["two/x.png"]
    assert ask("x.png").error == (
        "query: x.png: 2 images have this name: one/x.png, two/x.png; write which"
    )


def test_a_sign_that_may_have_been_meant_is_told(server):
    reply = server.post("/api/search", {"query": "red - blue"})
    assert "write 'red' - 'blue'" in reply.json()["hint"]
    assert server.post("/api/search", {"query": "red"}).json()["hint"] is None


def test_a_longer_query_than_a_line_is_encoded(server):
    query = "red " * 2000
    assert paths(server.post("/api/search", {"query": query, "top": 1})) == ["red.jpg"]


def test_a_vocabulary_need_not_hold_any_word_of_ours(serve):
    # A BiGRU's tokenizer refuses a caption without a known word, and names its file.
    class German(ColourModel):
        def encode_captions(self, captions, *, progress=False):
            if not any(word == "rot" for c in captions for word in c.split()):
                raise InputError("/home/me/vocab.json: no caption has a word of it")
            return super().encode_captions(["red"] * len(captions))

    server = serve(German())
    assert server.get("/api/status").json()["explains"] is True
    assert paths(server.post("/api/search", {"query": "rot", "top": 1})) == ["red.jpg"]
    reply = server.post("/api/search", {"query": "a picture"})
    assert (reply.status, reply.error) == (
        400,
        "query: the model knows no word of 'a picture'",
    )


def test_a_bigru_serves_words_of_its_own_only(serve, tiny_config, tmp_path):
    vocabulary = tmp_path / "words" / "vocab.json"
    vocabulary.parent.mkdir()
    words = ["<pad>", "<start>", "<end>", "<unk>", "rot", "blau"]
    vocabulary.write_text(
        json.dumps(
            {
                "idx": len(words),
                "word2idx": {w: i for i, w in enumerate(words)},
                "idx2word": dict(enumerate(words)),
            }
        )
    )
    config = steps.bigru(tiny_config)
    config.text.update(vocab=str(vocabulary), vocab_size=len(words) + 1)
    model = vse_jax.load(write_run(config, tmp_path / "run"))
    searching.draw(tmp_path / "in" / "red.png", "red")
    index = searching.make_index(tmp_path / "in", tmp_path / "index", model)
    server = serve(model, index=index)
    assert server.get("/api/status").json()["explains"] is True
    assert paths(server.post("/api/search", {"query": "rot"})) == ["red.png"]
    reply = server.post("/api/search", {"query": "a picture"})
    assert reply.status == 400
    assert reply.error == "query: the model knows no word of 'a picture'"


def test_filters_and_a_least_score(server):
    def found(**fields):
        return paths(server.post("/api/search", {"query": "blue"} | fields))

    assert found(folder="trips")[0] == "trips/sea side.png"
    assert {*found(camera="nikon d1")} == {"green.jpg", "yellow.jpg", "white.jpg"}
    assert {*found(after="2019-05-06")} == {"white.jpg", "black.jpg"}
    assert found(before="2019-05-01") == ["red.jpg"]
    assert {*found(min_score=0.9)} == {"blue.jpg", "trips/sea side.png"}
    assert found(min_score=2) == []


def test_a_query_is_encoded_once_whatever_the_filters(serve):
    model = ColourModel()
    server = serve(model)
    for top in (1, 2, 3):
        server.post("/api/search", {"query": "red", "top": top})
    assert model.sentences.count("red") == 1


def test_an_index_that_grows_is_seen_without_a_restart(serve, tmp_path):
    pictures = searching.draw_pictures(tmp_path / "pictures")
    (pictures / "green.jpg").unlink()
    index = searching.make_index(pictures, tmp_path / "index")
    server = serve(index=index)
    body = {"query": "green", "min_score": 0.9}
    assert paths(server.post("/api/search", body)) == []
    searching.draw(pictures / "new.png", "green")
    (pictures / "red.jpg").unlink()
    searching.make_index(pictures, index)
    assert paths(server.post("/api/search", body)) == ["new.png"]
    assert server.get("/api/status").json()["pictures"] == 8
    red = server.post("/api/search", {"query": "red"}).json()["hits"][0]
    assert red["path"] == "trips/red again.jpg"
    assert server.get(f"/api/thumbnail/{red['id']}").status == 200


def rebuild(index, pictures, model=None):
    """Puts another index, of other pictures, into the place of one."""
    shutil.rmtree(index)
    searching.make_index(pictures, index, model)


def test_no_answer_is_made_of_two_indices(serve, tmp_path):
    """While a sentence is encoded, another index takes the place of the first."""
    colours = [*searching.COLOURS]
    for number, colour in enumerate(colours):
        searching.draw(tmp_path / "one" / f"{number} {colour}.png", colour)
        searching.draw(tmp_path / "two" / f"{number} {colour}.png", colours[-number])
    index = searching.make_index(tmp_path / "one", tmp_path / "index")

    class Slow(ColourModel):
        def encode_captions(self, captions, *, progress=False):
            if not self.sentences:
                rebuild(index, tmp_path / "two")
            return super().encode_captions(captions)

    question = {"query": "'white' + 0.01*'red'", "like": [2]}
    for target, body in (("search", {"top": 1}), ("explain", {"id": 2})):
        rebuild(index, tmp_path / "one")
        server = serve(Slow(), index=index)
        first, again = (
            server.post(f"/api/{target}", question | body).json() for _ in range(2)
        )
        for answer in (first, again):
            answer.pop("milliseconds", None)
        assert first == again
        if target == "explain":
            assert np.sum(first["cells"]) == pytest.approx(first["similarity"])


def test_an_index_of_another_model_is_no_answer_and_no_traceback(serve, tmp_path):
    pictures = searching.draw_pictures(tmp_path / "pictures")
    index = searching.make_index(pictures, tmp_path / "index")
    server = serve(index=index)
    other = ColourModel()
    other.fingerprint, other.name = "other", "another"
    rebuild(index, pictures, other)
    for reply in (
        server.post("/api/search", {"query": "red"}),
        server.post("/api/search", {"like": [1]}),
        server.post("/api/explain", {"query": "red", "id": 1}),
        server.get("/api/status"),
        server.get("/api/thumbnail/1"),
        server.get("/api/data/1"),
    ):
        assert reply.status == 503
        assert "another model" in reply.error
        assert "start this program again" in reply.error
        assert str(tmp_path) not in reply.error
    rebuild(index, pictures)
    assert server.get("/api/status").status == 200
    assert paths(server.post("/api/search", {"query": "red", "top": 1})) == ["red.jpg"]


def test_a_broken_index_does_not_say_where_it_is(serve, tmp_path):
    pictures = searching.draw_pictures(tmp_path / "pictures")
    index = searching.make_index(pictures, tmp_path / "index")
    server = serve(index=index)
    (vectors,) = index.glob("*.f32")
    os.truncate(vectors, 0)
    reply = server.post("/api/search", {"like": [1]})
    assert reply.status == 400
    assert "broken index" in reply.error
    assert str(tmp_path) not in reply.error


# ---- Browsing and stacks -------------------------------------------------------------


def test_all_pictures_in_an_order_without_a_query(serve):
    model = ColourModel()
    server = serve(model)
    encoded = len(model.sentences)

    def found(order, **fields):
        return paths(server.post("/api/search", {"order": order} | fields))

    colours = list(searching.COLOURS)
    by_day = [f"{colour}.jpg" for colour in colours]
    undated = ["trips/sea side.png"]
    assert found("oldest") == by_day + undated
    assert found("newest") == by_day[::-1] + undated
    assert found("name") == [*sorted(by_day)[:5], *undated, *sorted(by_day)[5:]]
    assert found("newest", top=3, offset=2) == ["purple.jpg", "yellow.jpg", "blue.jpg"]
    assert found("newest", offset=100) == []
    # Of files with equal content the one in the folder gives the name.
    assert found("name", folder="trips") == [
        "trips/red again.jpg",
        "trips/sea side.png",
    ]
    assert found("oldest", after="2019-05-06") == ["white.jpg", "black.jpg"]
    assert found("newest", camera="nikon d1", before="2019-05-03") == ["green.jpg"]
    assert len(model.sentences) == encoded


def test_names_are_in_the_order_of_people(serve, tmp_path):
    names = ("z/img_2.png", "a/IMG_10.png", "IMG_9.png", "b/img_9.png")
    for name in names:
        searching.draw(tmp_path / "in" / name, "red", size=(60, len(name)))
    server = serve(index=searching.make_index(tmp_path / "in", tmp_path / "index"))
    found = paths(server.post("/api/search", {"order": "name"}))
    assert found == ["z/img_2.png", "IMG_9.png", "b/img_9.png", "a/IMG_10.png"]


def test_browsing_says_how_many_there_are(server):
    def answer(**fields):
        return server.post("/api/search", {"top": 2, "order": "name"} | fields).json()

    assert answer()["total"] == 8
    assert answer(offset=7)["total"] == 8
    assert answer(folder="trips", offset=5)["total"] == 2
    assert answer(after="2030-01-01")["total"] == 0
    assert {hit["score"] for hit in answer()["hits"]} == {None}


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"order": "size"}, "order: "),
        ({"order": "name", "query": "red"}, "order: only where nothing is looked for"),
        ({"order": "name", "offset": -1}, "offset: "),
        ({"order": "name", "folder": "gone"}, "folder: no image has 'gone'"),
        ({"order": "name", "camera": "Box"}, "camera: no image has 'Box'"),
    ],
)
def test_an_order_that_cannot_be_gets_a_line(server, fields, error):
    reply = server.post("/api/search", fields)
    assert (reply.status, reply.error[: len(error)]) == (400, error)


def test_nearly_equal_pictures_are_told_and_stay_in_their_order(serve, tmp_path):
    folder = tmp_path / "in"
    for number in range(3):  # a burst
        exif = searching.notes(f"2020:01:01 10:00:0{number}", ("Nikon", "D1"))
        searching.draw(folder / f"burst {number}.jpg", "red", exif=exif)
    searching.draw(folder / "green.png", "green")
    exif = searching.notes("2021:01:01 10:00:00", ("Nikon", "D1"))
    searching.draw(folder / "later.jpg", "red", exif=exif)
    searching.draw(folder / "upright.jpg", "red", size=(48, 64))
    exif = searching.notes("2020:06:01 10:00:00", ("Nikon", "D1"))
    searching.draw(folder / "between.jpg", "blue", exif=exif)
    server = serve(index=searching.make_index(folder, tmp_path / "index"))

    def stacks(**fields):
        answer = server.post("/api/search", fields).json()
        path_of = {hit["id"]: hit["path"] for hit in answer["hits"]}
        order = [hit["id"] for hit in answer["hits"]]
        for stack in answer["stacks"]:
            assert stack == sorted(stack, key=order.index)
        assert len(path_of) == 7  # none is left out
        return [{path_of[id] for id in stack} for stack in answer["stacks"]]

    burst = {f"burst {number}.jpg" for number in range(3)}
    assert stacks(query="red") == [burst | {"later.jpg"}]
    # Another day is another occasion; `between` was taken on a day in between.
    assert stacks(order="oldest") == [burst]


# ---- Why -----------------------------------------------------------------------------


def test_an_explanation_splits_the_similarity(server):
    query = "2*'a red car' - 'blue'"
    hit = server.post("/api/search", {"query": query}).json()["hits"][0]
    found = server.post("/api/explain", {"query": query, "id": hit["id"]}).json()
    assert found["similarity"] == pytest.approx(hit["score"], abs=1e-5)
    assert np.sum(found["cells"]) == pytest.approx(found["similarity"], abs=1e-3)
    assert found["cells_method"] == found["words_method"] == "exact"
    words = {word["word"]: word["value"] for word in found["words"]}
    assert max(words, key=words.get) == "red"
    assert sum(w["value"] for w in found["words"]) == pytest.approx(
        found["similarity"], abs=1e-5
    )


def test_an_encoder_without_a_set_has_no_explanation(serve):
    class Unexplained(ColourModel):
        cells_method = words_method = None

        def image_attributions(self, picture, vector):
            raise InputError("no set")

        caption_attributions = image_attributions

    server = serve(Unexplained())
    assert server.get("/api/status").json()["explains"] is False
    found = server.post("/api/explain", {"query": "red", "id": 1}).json()
    assert (found["cells"], found["words"]) == (None, [])


# ---- Pictures ------------------------------------------------------------------------


def open_image(reply) -> Image.Image:
    assert reply.status == 200, reply
    image = Image.open(io.BytesIO(reply.data))
    assert reply.headers["content-type"] == f"image/{image.format.lower()}"
    return image


def test_a_picture_and_its_thumbnail_are_what_a_browser_shows(serve, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    searching.draw(tmp_path / "in" / "turned.jpg", "red", (900, 600), turned)
    searching.draw(tmp_path / "in" / "large.tif", "blue", (2500, 500))
    server = serve(index=searching.make_index(tmp_path / "in", tmp_path / "index"))
    turned, large = (
        server.post("/api/search", {"query": q}).json()["hits"][0]["id"]
        for q in ("red", "blue")
    )
    assert open_image(server.get(f"/api/thumbnail/{turned}")).size == (213, 320)
    # A browser turns a JPEG itself.
    whole = (tmp_path / "in" / "turned.jpg").read_bytes()
    assert server.get(f"/api/picture/{turned}").data == whole
    assert open_image(server.get(f"/api/picture/{large}")).size == (2048, 410)
    full = server.get(f"/api/picture/{large}?full=1")
    assert open_image(full).size == (2500, 500)


@pytest.mark.parametrize("kind", TURNABLE)
def test_a_picture_is_upright_as_browsers_show_it(serve, tmp_path, kind):
    """They turn a JPEG by its EXIF, and not all of them what has another format."""
    suffix = kind.split()[0].lower().replace("mpo", "jpg")
    for orientation in range(1, 9):
        path = tmp_path / "in" / f"{orientation}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(turned(kind, orientation))
    server = serve(index=searching.make_index(tmp_path / "in", tmp_path / "index"))
    for id in range(1, 9):
        facts = server.get(f"/api/data/{id}").json()
        assert (facts["width"], facts["height"]) == (96, 64)
        small = server.get(f"/api/thumbnail/{id}")
        for reply in (
            *(small, server.get(f"/api/picture/{id}")),
            server.get(f"/api/picture/{id}?full=1"),
        ):
            shown = open_image(reply)
            if reply.headers["content-type"] == "image/jpeg":
                shown = ImageOps.exif_transpose(shown)
            found = np.asarray(shown.convert("RGB")).astype(int)
            assert found.shape == CORNERS.shape, (facts["path"], reply.headers)
            assert np.abs(found - CORNERS)[4::8, 4::8].max() <= 15
        if kind in ("JPEG", "MPO"):
            whole = (tmp_path / "in" / facts["path"]).read_bytes()
            assert server.get(f"/api/picture/{id}?full=1").data == whole


def test_a_turn_that_browsers_do_not_know_is_made_for_them(serve, tmp_path):
    """By XMP, for example."""
    path = tmp_path / "in" / "a.jpg"
    path.parent.mkdir()
    notes = b'<x tiff:Orientation="3"/>'
    upside_down = Image.fromarray(CORNERS).transpose(Image.Transpose.ROTATE_180)
    upside_down.save(path, xmp=notes, quality=100)
    server = serve(index=searching.make_index(tmp_path / "in", tmp_path / "index"))
    found = np.asarray(open_image(server.get("/api/picture/1"))).astype(int)
    assert np.abs(found - CORNERS)[4::8, 4::8].max() <= 15


def test_a_browser_asks_whether_its_picture_is_still_good(serve, tmp_path):
    path = searching.draw(tmp_path / "in" / "red.png", "red")
    server = serve(index=searching.make_index(tmp_path / "in", tmp_path / "index"))
    for time_ns, kind in enumerate(("thumbnail", "picture")):
        first = server.get(f"/api/{kind}/1")
        known = {"if-none-match": first.headers["etag"]}
        again = server.get(f"/api/{kind}/1", known)
        assert (again.status, again.data) == (304, b"")
        os.utime(path, ns=(time_ns, time_ns))
        assert server.get(f"/api/{kind}/1", known).status == 200


def test_a_file_is_kept_under_its_name(serve, tmp_path):
    for name in ("straße, “red”.png", "plain.png"):
        searching.draw(tmp_path / "in" / name, "red")
    server = serve(index=searching.make_index(tmp_path / "in", tmp_path / "index"))
    for hit in server.post("/api/search", {"order": "name"}).json()["hits"]:
        reply = server.get(f"/api/file/{hit['id']}")
        assert reply.data == (tmp_path / "in" / hit["path"]).read_bytes()
        kept, _, name = reply.headers["content-disposition"].partition("; filename")
        assert kept == "attachment"
        assert urllib.parse.unquote(name).endswith(hit["path"].strip('"')) or name == (
            f'="{hit["path"]}"'
        )
    assert server.get("/api/file/99").status == 404
    (tmp_path / "in" / "plain.png").unlink()
    statuses = {server.get(f"/api/file/{id}").status for id in (1, 2)}
    assert statuses == {200, 404}


@pytest.mark.skipif(sys.platform == "darwin", reason="its names are UTF-8")
def test_a_file_whose_name_is_no_utf8_is_kept_too(serve, tmp_path):
    path = searching.draw(tmp_path / "in" / "red.png", "red")
    os.rename(os.fsencode(path), os.fsencode(tmp_path / "in") + b"/caf\xe9.png")
    server = serve(index=searching.make_index(tmp_path / "in", tmp_path / "index"))
    for hit in server.post("/api/search", {"order": "name"}).json()["hits"]:
        assert server.get(f"/api/file/{hit['id']}").status == 200


@pytest.mark.parametrize("how", ["gone", "empty", "a file"])
def test_a_folder_that_is_away_is_told(serve, tmp_path, how):
    folder = tmp_path / "in"
    searching.draw(folder / "red.png", "red")
    server = serve(index=searching.make_index(folder, tmp_path / "index"))
    assert server.get("/api/folder").json() == {"there": True}
    folder.rename(tmp_path / "away")
    if how == "empty":  # where a drive was mounted
        folder.mkdir()
    elif how == "a file":
        folder.write_text("")
    assert server.get("/api/folder").json() == {"there": False}
    assert paths(server.post("/api/search", {"query": "red"})) == ["red.png"]


def test_a_picture_that_has_gone_or_is_broken_is_not_found(serve, tmp_path):
    path = searching.draw(tmp_path / "in" / "red.png", "red")
    server = serve(index=searching.make_index(tmp_path / "in", tmp_path / "index"))
    path.write_bytes(b"no picture")
    assert str(tmp_path) not in server.get("/api/thumbnail/1").error
    path.unlink()
    for kind in ("thumbnail", "picture"):
        reply = server.get(f"/api/{kind}/1")
        assert (reply.status, reply.error) == (404, "1: its file is not there any more")
    reply = server.post("/api/explain", {"query": "red", "id": 1})
    assert reply.status == 404


def test_no_file_outside_the_folder_is_sent(serve, tmp_path):
    path = searching.draw(tmp_path / "in" / "red.png", "red")
    server = serve(index=searching.make_index(tmp_path / "in", tmp_path / "index"))
    secret = path.rename(tmp_path / "secret.png")
    path.symlink_to(secret)
    for kind in ("thumbnail", "picture"):
        assert server.get(f"/api/{kind}/1").status == 404


@pytest.mark.parametrize(
    "target",
    [
        "/api/thumbnail/../../../etc/passwd",
        "/api/thumbnail/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/api/picture/..%2fred.jpg",
        "/api/picture/red.jpg",
        "/api/picture/0",
        "/api/picture/-1",
        "/api/picture/99999999999999999999",
        "/api/data/1e1",
        "/page/../server.py",
        "/page/..%2fserver.py",
        "/page/%2e%2e/server.py",
        "/page//etc/passwd",
        "/page/.hidden",
        "/api/upload/..%2f..%2fx",
        "/docs",
        "/redoc",
        "/index/server.json",
        "/%00",
    ],
)
def test_only_what_is_listed_is_served(server, target):
    reply = server.get(target)
    assert reply.status == 404
    assert reply.error


# ---- Uploads -------------------------------------------------------------------------


def test_an_upload_is_searched_with_and_shown(server):
    reply = server("POST", "/api/upload", {}, content("green", size=(800, 400)))
    upload = reply.json()["upload"]
    assert reply.json() == {"upload": upload, "width": 800, "height": 400}
    body = {"uploads": [upload], "top": 1}
    assert paths(server.post("/api/search", body)) == ["green.jpg"]
    query = f"'blue' - {upload}.jpg"
    assert paths(server.post("/api/search", {"query": query}))[-1] == "green.jpg"
    assert open_image(server.get(f"/api/upload/{upload}")).size == (320, 160)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF"])
def test_uploads_are_known_by_their_content(server, kind):
    headers = {"content-type": "text/html"}
    reply = server("POST", "/api/upload", headers, content("green", kind))
    assert reply.status == 200


def test_the_last_64_uploads_are_kept(server):
    data = (content("red", size=(n, 1)) for n in range(1, 67))
    ids = [server("POST", "/api/upload", {}, d).json()["upload"] for d in data]
    kept = [server.get(f"/api/upload/{id}").status for id in ids]
    assert kept == [404, 404, *[200] * 64]
    assert server.post("/api/search", {"uploads": ids[:1]}).status == 404


def png_that_claims(side: int) -> bytes:
    """A small file of a picture of side × side px."""
    data = content("red")
    header = b"IHDR" + struct.pack(">II", side, side) + data[24:29]
    crc = struct.pack(">I", zlib.crc32(header))
    return data[:12] + header + crc + data[33:]


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"", 415, "the upload: "),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "the upload: "),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "the upload: "),
        (content("red")[:60], 415, "the upload: "),
        (png_that_claims(100_000), 413, "10,000,000,000 pixels; at most "),
        (bytes(1_000_001), 413, "larger than 1 MB"),
        ([bytes(600_000)] * 2, 413, "larger than 1 MB"),
        (itertools.repeat(bytes(100_000)), 413, "larger than 1 MB"),
    ],
)  # fmt: skip
def test_a_bad_upload_is_refused(serve, body, status, error):
    reply = serve(max_upload_mb=1)("POST", "/api/upload", {}, body)
    assert reply.status == status
    assert reply.error.startswith(error)


def test_a_region_model_takes_no_uploads(serve):
    class Regions(ColourModel):
        takes_regions = True

    server = serve(Regions())
    assert server.get("/api/status").json()["uploads"] is False
    assert server("POST", "/api/upload", {}, content("red")).status == 415


# ---- Bad input -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status", "error"),
    [
        ({}, 400, "query: has no words"),
        ({"query": " ?! "}, 400, "query: has no words"),
        ({"query": "'red' - 'red'"}, 400, "query: its parts cancel out"),
        ({"query": "'red' 'car'"}, 400, "query, column 1"),
        ({"query": "x" * 8_193}, 400, "query: longer than 8,192 characters"),
        ({"query": "\ud800 dog"}, 400, "query: not UTF-8"),
        ({"query": 3}, 400, "query: Input should be a valid string"),
        ({"query": "/etc/motd.jpg"}, 400, "query: /etc/motd.jpg: no image of the"),
        ({"query": "red car -people"}, 400, "query, column 9: '-' before a word"),
        ({"query": "a", "colour": "red"}, 400, "colour: Extra inputs"),
        ({"query": "a", "\ud800": 1}, 400, "body: Input should be"),
        ({"query": "a", "a\nb": 1}, 400, "a b: Extra inputs"),
        ({"query": "a", "top": 0}, 400, "top: Input should be greater"),
        ({"query": "a", "top": 10**6}, 400, "top: Input should be less"),
        ({"query": "a", "min_score": float("nan")}, 400, "min_score: Input should"),
        ({"query": "a", "after": "yesterday"}, 400, "after: 'yesterday' is no"),
        ({"query": "a", "before": "2019-02-30"}, 400, "before: '2019-02-30' is no"),
        ({"query": "a", "camera": "Box"}, 400, "camera: no image has 'Box'"),
        ({"query": "a", "folder": "../trips"}, 400, "folder: no image has"),
        ({"like": [10**5]}, 404, "100000: no such image"),
        ({"like": [0]}, 400, "like.0: Input should be greater"),
        ({"like": [2**70]}, 400, "like.0: "),
        ({"like": [1] * 33}, 400, "like: List should have at most 32"),
        ({"uploads": ["../../x"]}, 400, "uploads.0: String should match"),
        ({"uploads": ["0" * 32]}, 404, "0000"),
        ([], 400, "body: Input should be"),
    ],
)
def test_a_bad_question_gets_a_line(server, fields, status, error):
    reply = server.post("/api/search", fields)
    assert (reply.status, reply.error[: len(error)]) == (status, error)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (JSON, b"", 400),
        (JSON, b"{", 400),
        (JSON, b"\xff\xfe", 400),
        (JSON, b"[" * 60_000, 400),
        (JSON, b'{"query": "' + b"a" * 140_000 + b'"}', 413),
        (JSON, [b'{"query": "', *[b"a" * 10_000] * 14], 413),
        # What a form of another site can send without asking.
        ({"content-type": "text/plain"}, b'{"query": "red"}', 400),
        ({}, b'{"query": "red"}', 400),
        (JSON | {"content-length": "9" * 50}, b"", 413),
        (JSON | {"content-length": "²"}, b"{}", 400),
    ],
)
def test_a_bad_body_gets_a_line(server, headers, body, status):
    reply = server("POST", "/api/search", headers, body)
    assert (reply.status, bool(reply.error)) == (status, True)


def test_a_wrong_method_gets_a_line(server):
    assert server.get("/api/search").status == 405
    assert server("DELETE", "/api/data/1").error


# ---- Limits --------------------------------------------------------------------------


def test_more_requests_than_may_wait_are_refused_at_once(serve):
    server = serve(ColourModel(seconds=0.2), queue=3)

    async def flood():
        async def one(number):
            start = time.monotonic()
            body = json.dumps({"query": f"red {number}"}).encode()
            reply = await ask(server.app, "POST", "/api/search", JSON, body)
            return reply.status, time.monotonic() - start

        return await asyncio.gather(*map(one, range(10)))

    replies = server.run(flood())
    # Two are answered at a time, three wait.
    assert sorted(status for status, _ in replies) == [200] * 5 + [429] * 5
    assert all(seconds < 0.2 for status, seconds in replies if status == 429)
    assert server.post("/api/search", {"query": "red"}).status == 200  # places again


def test_a_request_ends_in_time(serve):
    server = serve(ColourModel(seconds=0.3), timeout_s=0.1)
    start = time.monotonic()
    reply = server.post("/api/search", {"query": "red"})
    assert (reply.status, reply.error) == (504, "no answer within 0.1 seconds")
    assert time.monotonic() - start < 0.25


def test_uploads_that_never_end_do_not_hold_their_places(serve):
    server = serve(timeout_s=0.2)

    async def stalls():
        calls = (ask(server.app, "POST", "/api/upload", {}, None) for _ in range(10))
        return [reply.status for reply in await asyncio.gather(*calls)]

    assert sorted(server.run(stalls())) == [408] * 8 + [429] * 2
    assert server("POST", "/api/upload", {}, content("red")).status == 200


def test_an_upload_that_makes_progress_takes_its_time(serve):
    server = serve(timeout_s=1.0)
    data = content("red") + bytes(20_000)

    async def slowly(step):
        for start in range(0, len(data), step):
            await asyncio.sleep(0.1)
            yield data[start : start + step]

    # In 1.4 s, longer than an answer may take; then as if it took minutes.
    assert server("POST", "/api/upload", {}, slowly(1500)).status == 200
    reply = server("POST", "/api/upload", {}, slowly(50))
    assert reply.status == 408
    assert reply.headers["connection"] == "close"
    assert "slower than 5 kB/s" in reply.error


def test_queries_are_logged_when_asked_for(serve, caplog):
    with caplog.at_level("INFO", "absl"):
        serve().post("/api/search", {"query": "red secret"})
        serve().post("/api/search", {"query": "'secret"})
        assert "secret" not in caplog.text
        serve(log_queries=True).post("/api/search", {"query": "red\nsecret"})
    assert r"'red\nsecret': 8 found" in caplog.text


# ---- What it is ----------------------------------------------------------------------


def test_the_api_is_described_without_outside_requests(server):
    described = server.get("/openapi.json").json()
    assert {"/api/search", "/api/upload", "/api/explain"} < described["paths"].keys()
    search = described["paths"]["/api/search"]["post"]["responses"]
    assert {"200", "4XX", "504"} == search.keys()


def test_the_page_is_served_with_its_types(serve, tmp_path, monkeypatch):
    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "main.js").write_text("1")
    (tmp_path / "notes.txt").write_text("secret")
    monkeypatch.setattr("vse_search.app.PAGE", tmp_path)
    server = serve()
    reply = server.get("/")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.data == b"<!doctype html>"
    assert reply.data == server.get("/page/index.html").data
    kind = server.get("/page/main.js").headers["content-type"]
    assert kind == "text/javascript; charset=utf-8"
    assert server.get("/page/notes.txt").status == 404


def test_a_bug_is_no_riddle_and_tells_nothing(serve):
    class Broken(ColourModel):
        def encode_captions(self, captions, *, progress=False):
            if captions == ["a picture"]:
                return super().encode_captions(captions)
            raise Fault("secret")

    reply = serve(Broken()).post("/api/search", {"query": "red"})
    assert (reply.status, "secret" in reply.error) == (500, False)


def test_nothing_is_found_below_the_models_cut_off(serve):
    model = ColourModel()
    model.cutoff = 0.5
    server = serve(model)

    def found(**body):
        return server.post("/api/search", body).json()

    red = found(query="red")
    assert red["cutoff"] == 0.5
    assert [hit["path"] for hit in red["hits"]][:1] == ["red.jpg"]
    assert min(hit["score"] for hit in red["hits"]) >= 0.5
    # What no picture shows: nothing; all the same, the nearest.
    assert found(query="elephant", min_score=None)["hits"] == []
    assert len(found(query="elephant", min_score=-1.0)["hits"]) == 8
    # Another sum, a picture or an order has scores of another range.
    for body in (
        {"query": "'purple' + 'elephant'"},
        {"query": "- 'purple'"},
        {"query": "red.jpg"},
        {"like": [red["hits"][0]["id"]]},
        {"order": "name"},
    ):
        answer = found(**body)
        assert answer["cutoff"] is None
        assert len(answer["hits"]) > 5
