"""The modes of the search application: index, search, serve, explain."""

from pathlib import Path

from vse_jax import AnyPath, Config, InputError


def index_folder(config: Config, workdir: AnyPath) -> Path:
    """Where the index of a run is; InputError: the run is in a bucket."""
    if config.search.index is not None:
        return Path(config.search.index)
    if not isinstance(workdir, Path):
        raise InputError(f"config.search.index: name a local folder; {workdir} is none")
    return workdir / "index"
