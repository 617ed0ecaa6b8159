"""--mode=push: the best model as W/share/, and on the Hugging Face Hub."""

import jax

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath, file_size, local_copy
from vse_jax.checkpoints.folder import check_repository, model_name, publish
from vse_jax.checkpoints.load import load_model
from vse_jax.checkpoints.share import CARD, write_shared
from vse_jax.config import Config
from vse_jax.distributed.mesh import on_one_device


def push(
    config: Config,
    workdir: AnyPath,
    repo: str | None,
    model: AnyPath | None = None,
) -> None:
    """Writes W/share/ and uploads it to `repo`, USER/NAME on the Hub, if there is one.

    Of the best model in the folder `model`, or in `workdir`.

    Raises:
        InputError: no model, the folder cannot be written, a malformed name, no
            permission, or no connection.
    """
    if repo is not None:
        check_repository(repo)
    if config.eval.ensemble is not None:
        raise InputError("config.eval.ensemble: one model is shared, not an ensemble")
    _, mesh = on_one_device(config)
    model = model or workdir
    config, _, arrays, _ = load_model(config, model, mesh)
    target = workdir / "share"
    folder = write_shared(config, model, jax.device_get(arrays), target, repo)
    size = sum(map(file_size, folder.iterdir())) / 1e6
    print(f"{folder}: {size:,.1f} MB; vse_jax.load reads it")
    if "TO FILL IN" in (folder / CARD).read_text(encoding="utf-8"):
        print(f"{folder / CARD}: fill in what is marked TO FILL IN, the licences")
    if repo is None:
        print("not uploaded: name a repository with --repo=USER/NAME")
        return
    message = f"vse_jax: the best model of {model_name(model)}"
    with local_copy(folder) as files:
        url = publish(files, repo, private=config.hub.private, message=message)
    print(f'{url}: vse_jax.load("hf://{repo}")')
