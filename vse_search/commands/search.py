"""--mode=search: the pictures of an index that fit a query best."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from absl import logging

import vse_jax
from vse_jax import Config, InputError, printable, read_bytes
from vse_search.client import MOST_HITS, Client, Unanswered, running
from vse_search.engine import Filters, Hit
from vse_search.exact import hits
from vse_search.opening import index_folder, opened
from vse_search.query import hint, rename_pictures
from vse_search.store import Store


def search(config: Config, workdir: Path) -> None:
    """Prints what config.search asks for.

    A server of the index answers where one runs that can: the answer is the same.

    Raises:
        InputError: nothing is asked for, a wrong query, filter or picture, no index, or
            one of another model.
    """
    options = config.search
    if options.query is None and options.like is None:
        raise InputError(
            "config.search.query: say what to look for, or name a picture "
            "with config.search.like"
        )
    fields = ("after", "before", "camera", "folder")
    filters = Filters(**{name: options[name] for name in fields})
    index = index_folder(config, workdir)
    with Store.open(index, read_only=True) as store:
        folder, answer = store.folder, None
        if options.top <= MOST_HITS and (client := running(index, options.engine)):
            try:
                answer = _ask(client, options, store, filters)
            except Unanswered as error:
                logging.info("%s; searching without the server", error)
        if answer is None:
            answer = _find(config, workdir, store, filters)
        scores = {hit["id"]: hit["score"] for hit in answer}
        found = hits(store, None, scores, filters)
    if told := hint(options.query or ""):
        logging.info("query: %s", told)
    if options.format == "paths":  # the files' names as they are, for other programs
        sys.stdout.flush()
        sys.stdout.buffer.write(b"".join(_line(folder, hit) for hit in found))
        sys.stdout.flush()
    else:
        print(_shown(found, folder, options.format), end="")


def _ask(
    client: Client, options: Config, store: Store, filters: Filters
) -> list[dict[str, Any]]:
    """Asks a server."""
    query, uploads = _question(options, store, client.upload)
    limits = {"top": options.top, "min_score": options.min_score}
    return client.search(query=query, uploads=uploads, **limits, **asdict(filters))


def _find(
    config: Config, workdir: Path, store: Store, filters: Filters
) -> list[dict[str, Any]]:
    """Loads the model and searches as a server does; JAX is started here."""
    from vse_search.gallery import Gallery  # noqa: PLC0415 (loads OpenCV)
    from vse_search.searcher import Choice, Question, Searcher  # noqa: PLC0415

    options = config.search
    nobody = (None, None, None)
    with (
        vse_jax.started(config, "search", nobody, alone=True),
        opened(
            options, store.index, lambda: vse_jax.model_of(config, workdir)
        ) as found,
    ):
        searcher = Searcher(found, Gallery(found.store, options.max_pixels))

        def upload(path: Path) -> str:
            try:
                return searcher.add_upload(read_bytes(path))
            except InputError as error:
                reason = str(error).removeprefix(f"{path}: ")
                raise InputError(
                    f"{path}: {reason.removeprefix('the upload: ')}"
                ) from None

        query, uploads = _question(options, store, upload)
        choice = Choice(options.top, options.min_score, filters)
        return searcher.search(Question(query, uploads=uploads), choice)["hits"]


def _question(
    options: Config, store: Store, upload: Callable[[Path], str]
) -> tuple[str, list[str]]:
    """The query, in which uploads stand for this machine's files, and more uploads.

    A name in a query is a file's or, where there is none, that of a picture of the
    index. `upload` takes a file to whoever searches and gives its id.
    """

    def is_picture(name: str) -> bool:
        return os.path.isfile(os.path.expanduser(name)) or bool(store.named(name))

    def uploaded(name: str) -> str | None:
        file = os.path.expanduser(name)
        if os.path.isfile(file):
            return f"{upload(Path(file))}.jpg"
        if not store.named(name):
            raise InputError(
                f"query: {name}: no such file, and no picture of the index has this "
                "name"
            )
        return None

    query = (
        rename_pictures(options.query, uploaded, is_picture)
        if options.query is not None
        else ""
    )
    like = [] if options.like is None else [upload(Path(options.like))]
    return query, like


def _line(folder: Path, hit: Hit) -> bytes:
    """The path of a file. A line break in it would make two paths of it."""
    path = os.fsencode(folder / hit.row.file)
    return (printable(os.fsdecode(path)).encode() if b"\n" in path else path) + b"\n"


def _shown(found: list[Hit], folder: Path, form: str) -> str:
    """What is printed: paths are whole for programs, and below `folder` for people."""
    if form == "json":
        facts = [
            {"path": str(folder / hit.row.file), "score": hit.score, "id": hit.id}
            for hit in found
        ]
        return json.dumps(facts, indent=1) + "\n"
    if not found:
        return f"{printable(str(folder))}: no picture found\n"
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    lines = ["score   path", *(f"{hit.score:6.3f}  {hit.path}" for hit in found)]
    return f"{printable(str(folder))}\n" + "".join(
        f"{_cut(line, width)}\n" for line in lines
    )


def _cut(line: str, width: int) -> str:
    """A line that fits; of a long path the end says more than the middle."""
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= width else f"{line[:8]}…{line[9 - width :]}"
