"""--mode=serve: a page and a JSON API that find the images of an index."""

import vse_jax
from vse_jax import AnyPath, Config, InputError
from vse_search.commands import index_folder


def serve(config: Config, workdir: AnyPath) -> None:
    """Serves config.search.index, or W/index, until SIGTERM or Ctrl-C.

    Raises:
        InputError: no index, one of another model, an address that cannot be used or
            that others reach without a token, or packages that are not installed.
    """
    try:
        from vse_search.serving import serve_index  # noqa: PLC0415 (optional packages)
    except ModuleNotFoundError as error:
        raise InputError(
            f"--mode=serve: no package {error.name!r}; make setup-search"
        ) from None
    index = index_folder(config, workdir)
    serve_index(config.search, index, lambda: vse_jax.model_of(config, workdir))
