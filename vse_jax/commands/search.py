"""--mode=search: the pictures of an index that fit a query best."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from vse_jax.base.errors import InputError
from vse_jax.base.files import printable
from vse_jax.search.client import MOST_HITS, Client, running
from vse_jax.search.encoder import Encoder
from vse_jax.search.engine import Filters, Hit
from vse_jax.search.exact import hits
from vse_jax.search.opening import index_folder, opened
from vse_jax.search.query import Part, combine, parse, rename_pictures
from vse_jax.search.store import Store


def search(config: ConfigDict, workdir: Path) -> None:
    """Prints what config.search asks for; a server of the index answers if one runs.

    Raises:
        InputError: nothing is asked for, a wrong query, filter or picture, no index, or
            one of another model.
    """
    options = config.search
    parts = asked_parts(options)
    fields = ("after", "before", "camera", "folder")
    filters = Filters(**{name: options[name] for name in fields})
    index = index_folder(config, workdir)
    with Store.open(index, read_only=True) as store:
        folder = store.folder
        client = running(index) if options.top <= MOST_HITS else None
        if client is not None:
            found = hits(store, None, _ask(client, options, filters), filters)
    if client is None:
        found = _find(config, workdir, parts, filters)
    if options.format == "paths":  # the files' names as they are, for other programs
        sys.stdout.flush()
        sys.stdout.buffer.write(b"".join(_line(folder, hit) for hit in found))
        sys.stdout.flush()
    else:
        print(_shown(found, folder, options.format), end="")


def asked_parts(options: ConfigDict) -> list[Part]:
    """Of config.search.query and config.search.like.

    Raises:
        InputError: neither is given, or the query cannot be understood.
    """
    if options.query is None and options.like is None:
        raise InputError(
            "config.search.query: say what to look for, or name a picture "
            "with config.search.like"
        )
    parts = [] if options.query is None else parse(options.query)
    parts = [
        part._replace(value=os.path.expanduser(part.value))
        if part.kind == "picture"
        else part
        for part in parts
    ]
    if options.like is not None:
        parts.append(Part("picture", options.like))
    return parts


def part_vectors(parts: Sequence[Part], encoder: Encoder) -> list[np.ndarray]:
    """The vector [D] of each part.

    Raises:
        InputError: no such picture, or one that cannot be read.
    """
    return [
        encoder.encode_captions([part.value])[0]
        if part.kind == "sentence"
        else encoder.encode_images([part.value])[0]
        for part in parts
    ]


def _find(
    config: ConfigDict, workdir: Path, parts: list[Part], filters: Filters
) -> list[Hit]:
    """Loads the model and searches; JAX is started here, not before."""
    from vse_jax.api import model_of  # noqa: PLC0415 (loads jax: seconds)
    from vse_jax.devices import runtime  # noqa: PLC0415 (the same)

    options = config.search
    nobody = (None, None, None)
    with runtime.started(config, "search", nobody, alone=True):
        index = index_folder(config, workdir)
        with opened(options, index, lambda: model_of(config, workdir)) as (
            encoder,
            _,
            engine,
        ):
            vectors = part_vectors(parts, encoder)
            vector, _ = combine([part.weight for part in parts], vectors)
            return engine.search(
                vector, top=options.top, filters=filters, min_score=options.min_score
            )


def _ask(client: Client, options: ConfigDict, filters: Filters) -> dict[int, float]:
    """Asks a server, which gets the pictures of the query as uploads.

    Returns:
        The scores of the pictures found, by id, best first.
    """

    def upload(name: str) -> str:
        return client.upload(Path(os.path.expanduser(name)))

    query, uploads = "", []
    if options.query is not None:
        query = rename_pictures(options.query, lambda name: f"{upload(name)}.jpg")
    if options.like is not None:
        uploads.append(upload(options.like))
    found = client.search(
        query=query,
        uploads=uploads,
        top=options.top,
        min_score=options.min_score,
        **asdict(filters),
    )
    return {hit["id"]: hit["score"] for hit in found}


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
