"""--mode=search: the images of an index that fit a query best."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from absl import logging

import vse_jax
from vse_jax import AnyPath, Config, InputError, SearchConfig, printable, read_bytes
from vse_search.client import MOST_HITS, Unanswered, running
from vse_search.commands import index_folder
from vse_search.query import hint, rename_images
from vse_search.searcher import Found, Query, Searcher
from vse_search.store import Filters, Hit, Store


def search(config: Config, workdir: AnyPath, model: AnyPath | None = None) -> None:
    """Prints what config.search asks for.

    The model that made the index is the best in the folder `model`, or in `workdir`. A
    server of the index answers where one runs that can: the answer is the same.

    Raises:
        InputError: nothing is asked for, a wrong query, filter or image, no index, or
            one of another model.
    """
    options = config.search
    if options.query is None and options.like is None:
        raise InputError(
            "config.search.query: say what to look for, or name an image "
            "with config.search.like"
        )
    filters = Filters(options.after, options.before, options.camera, options.folder)
    wanted = Query(top=options.top, min_score=options.min_score, filters=filters)
    index = index_folder(config, workdir)
    with Store.open(index, read_only=True) as store:
        folder, found = store.folder, None
        if options.top <= MOST_HITS and (client := running(index, options.engine)):
            try:
                asked = asdict(_query(wanted, options, store, client.upload))
                answer = client.search(**asked.pop("filters"), **asked)
                scores = {hit["id"]: hit["score"] for hit in answer["hits"]}
                hits = store.hits(scores, filters)
                found = Found(hits, answer.get("cutoff"))  # older ones have none
            except Unanswered as error:
                logging.info("%s; searching without the server", error)
        if found is None:
            found = _search_here(config, model or workdir, store, wanted)
    if told := hint(options.query or ""):
        logging.info("query: %s", told)
    if options.format == "paths":  # the files' names as they are, for other programs
        sys.stdout.flush()
        sys.stdout.buffer.write(b"".join(_line(folder, hit) for hit in found.hits))
        sys.stdout.flush()
    else:
        print(_shown(found.hits, folder, options.format), end="")
    if (
        found.cutoff is not None
        and options.min_score is None
        and len(found.hits) < options.top
    ):
        logging.info(
            "%s at least %.3f, as this model asks; --config.search.min_score=-1 shows "
            "what comes next all the same",
            "no other image scores" if found.hits else "nothing found: no image scores",
            found.cutoff,
        )


def _search_here(config: Config, model: AnyPath, store: Store, wanted: Query) -> Found:
    """Loads the model and searches as a server does; JAX is started here."""
    with (
        vse_jax.started(config, "search", (None, None, None), alone=True),
        Searcher.open(
            config.search, store.index, lambda: vse_jax.model_of(config, model)
        ) as searcher,
    ):

        def upload(path: Path) -> str:
            data = read_bytes(path)
            try:
                return searcher.add_upload(data)
            except InputError as error:
                reason = str(error).removeprefix("the upload: ")
                raise InputError(f"{path}: {reason}") from None

        return searcher.search(_query(wanted, config.search, store, upload))


def _query(
    wanted: Query, options: SearchConfig, store: Store, upload: Callable[[Path], str]
) -> Query:
    """With what config.search looks for; uploads stand for this machine's files.

    A name in a query is a file's or, where there is none, that of an image of the
    index. `upload` takes a file to whoever searches and gives its id.
    """

    def is_image(name: str) -> bool:
        return os.path.isfile(os.path.expanduser(name)) or bool(store.named(name))

    def uploaded(name: str) -> str | None:
        file = os.path.expanduser(name)
        if os.path.isfile(file):
            return f"{upload(Path(file))}.jpg"
        if not store.named(name):
            raise InputError(
                f"query: {name}: no such file, and no image of the index has this name"
            )
        return None

    text = ""
    if options.query is not None:
        text = rename_images(options.query, uploaded, is_image)
    like = [] if options.like is None else [upload(Path(options.like))]
    return replace(wanted, query=text, uploads=like)


def _line(folder: Path, hit: Hit) -> bytes:
    """The path of a file. A line break in it would make two paths of it."""
    path = os.fsencode(folder / hit.file)
    return (printable(os.fsdecode(path)).encode() if b"\n" in path else path) + b"\n"


def _shown(found: list[Hit], folder: Path, form: str) -> str:
    """What is printed: paths are whole for programs, and below `folder` for people."""
    if form == "json":
        facts = [
            {
                "path": str(folder / hit.file),
                "score": round(hit.score or 0.0, 6),
                "id": hit.id,
            }
            for hit in found
        ]
        return json.dumps(facts, indent=1) + "\n"
    if not found:
        return f"{printable(str(folder))}: no image found\n"
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    lines = ["score   path", *(f"{hit.score:6.3f}  {hit.path}" for hit in found)]
    return f"{printable(str(folder))}\n" + "".join(
        f"{_cut(line, width)}\n" for line in lines
    )


def _cut(line: str, width: int) -> str:
    """A line that fits; of a long path the end says more than the middle."""
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= width else f"{line[:8]}…{line[9 - width :]}"
