"""--mode=serve: a page and a JSON API that find the images of an index."""

import vse_jax
from vse_jax import AnyPath, Config, require_extra
from vse_search.commands import index_folder


def serve(config: Config, workdir: AnyPath, model: AnyPath | None = None) -> None:
    """Serves config.search.index, or W/index, until SIGTERM or Ctrl-C.

    The model that made the index is the best in the folder `model`, or in `workdir`.

    Raises:
        InputError: no index, one of another model, an address that cannot be used or
            that others reach without a token, or packages that are not installed.
    """
    require_extra("--mode=serve", "search", "fastapi", "uvicorn")
    from vse_search.serving import serve_index  # noqa: PLC0415 (optional packages)

    index = index_folder(config, workdir)
    serve_index(
        config.search, index, lambda: vse_jax.model_of(config, model or workdir)
    )
