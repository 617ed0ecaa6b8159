"""The modes of the search application: index, search, serve, explain."""

from pathlib import Path

from vse_jax import Config


def index_folder(config: Config, workdir: Path) -> Path:
    """Where the index of a run is."""
    return Path(config.search.index or workdir / "index")
