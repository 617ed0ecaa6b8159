"""Opens what a search needs: a model and the index that it made."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from vse_jax import Config
from vse_search.encoder import Encoder
from vse_search.engine import Engine
from vse_search.engines import make_engine
from vse_search.indexing import check_model
from vse_search.store import Store


class Opened(NamedTuple):
    """A model, an index that it made, and what searches it."""

    encoder: Encoder
    store: Store
    engine: Engine


def index_folder(config: Config, workdir: Path) -> Path:
    """Where the index of a run is."""
    return Path(config.search.index or workdir / "index")


@contextlib.contextmanager
def opened(
    options: Config, index: Path, load: Callable[[], Encoder]
) -> Iterator[Opened]:
    """Opens an index to read, with the model that `load` gives.

    Args:
        options: config.search.
        index: folder of the index.
        load: called when the index was found to be whole.

    Raises:
        InputError: no index, a broken one, one of another model, or no engine.
    """
    with Store.open(index, read_only=True) as store:
        encoder = load()
        check_model(store, encoder)
        yield Opened(encoder, store, make_engine(store, options.engine, options.url))
