"""A model's folder: what it holds, and its way from and to the Hugging Face Hub.

It is a run's, a shared one, or a SigLIP of Hugging Face. Nothing here loads JAX. The
Hub's library knows who you are: `hf auth login`, or HF_TOKEN in the environment.
"""

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vse_jax.base.buckets import BucketPath, check_whole
from vse_jax.base.errors import InputError
from vse_jax.base.files import HUB, AnyPath, any_path, check_inside, hub_command
from vse_jax.config import MODEL_FILE, SHARED_FILES, WEIGHT_PARTS, Config, load_config

_PART = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
_ADDRESS = re.compile(rf"({_PART}/{_PART})(?:@([\w./-]+))?", re.ASCII)
# What config.json calls the models that can be used: its model_type. A run's has none.
_ARCHITECTURES = {
    "vse_jax": "what --mode=push writes",
    "siglip": "SigLIP, and SigLIP2 of fixed resolution",
    "siglip2": "NaFlex",
}
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_HINTS = {  # by the status of the Hub's answer
    401: f"not logged in: {_LOGIN}",
    403: "no permission: your token has to be one that may write there",
    429: "too many requests; try again later",
}


def is_siglip(folder: AnyPath) -> bool:
    """Whether a folder's config.json is one of Hugging Face, of a SigLIP."""
    return str(_architecture(folder)).startswith("siglip")


def _architecture(folder: AnyPath) -> Any:
    """The model_type of a folder's config.json; None: it says none."""
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return about.get("model_type") if isinstance(about, dict) else None


def _check_architecture(folder: AnyPath, what: str) -> None:
    """Raises InputError about `what` if a folder holds a model of another kind."""
    kind = _architecture(folder)
    if kind is not None and kind not in tuple(_ARCHITECTURES):
        known = " or ".join(f"{name!r} ({of})" for name, of in _ARCHITECTURES.items())
        raise InputError(f"{what}: model_type is {kind!r}, not {known}")


def model_folder(name: str | AnyPath, what: str) -> AnyPath:
    """The folder of a model by its name: a path, a URL of a bucket, or hf://USER/NAME.

    `what`: the flag or field that names it.

    Raises:
        InputError: there is no such folder, or trouble with the Hub (`fetch`).
    """
    if str(name).startswith(HUB):
        return fetch(str(name))
    folder = any_path(os.path.expanduser(name), what)
    if isinstance(folder, Path) and not folder.is_dir():
        raise InputError(f"{what}: there is no folder {name}")
    return folder


def model_name(folder: AnyPath) -> str:
    """What to call a model: its folder's name, or USER/NAME of one from the Hub.

    The Hub's cache keeps it as models--USER--NAME/snapshots/COMMIT.
    """
    folder = folder.resolve()
    kind, *name = folder.parent.parent.name.split("--")
    is_cached = folder.parent.name == "snapshots" and kind == "models"
    return "/".join(name) if is_cached else folder.name


def model_languages(folder: AnyPath) -> list[str]:
    """The languages that a model's card names, as ISO 639 codes; [] where it does not.

    Hugging Face's card, README.md, has them in its header as `language`.
    """
    card = folder / "README.md"
    if not isinstance(card, Path) or not card.is_file():
        return []
    from huggingface_hub import metadata_load  # noqa: PLC0415 (half a second, for few)

    try:
        named = (metadata_load(card) or {}).get("language") or []
    except Exception:  # any text may stand there, and only a sentence depends on it
        return []
    named = [named] if isinstance(named, str) else named
    named = named if isinstance(named, list) else []
    return [code for code in named if isinstance(code, str)]


def check_trainable(folder: AnyPath) -> None:
    """Raises InputError if a run would mix with a model that came from elsewhere."""
    if (folder / MODEL_FILE).is_file() or is_siglip(folder):
        raise InputError(
            f"{folder}: holds a model that is not trained here; name another --workdir"
        )


def model_config(folder: AnyPath, *, trust_code: bool = False) -> Config:
    """The config of the model in a folder.

    `trust_code`: a shared model's own classes may be imported.

    Raises:
        InputError: no model's folder, or of a model that cannot be used here; names
            what is wrong.
    """
    if isinstance(folder, BucketPath):
        check_whole(folder)
        if is_siglip(folder):
            raise InputError(f"{folder}: a SigLIP is loaded from a local folder")
    elif is_siglip(folder):
        # On demand: it loads jax, and the command line is quick to refuse without.
        from vse_jax.checkpoints.siglip import siglip_config  # noqa: PLC0415

        return siglip_config(folder)
    _check_architecture(folder, str(folder / "config.json"))
    return load_config(folder / "config.json", trust_code=trust_code)


# ---- The Hub -------------------------------------------------------------------------


def fetch(address: str) -> Path:
    """The folder of a model, downloaded unless the Hub's cache has it.

    Only `SHARED_FILES` and `WEIGHT_PARTS` are asked for; the weights, if config.json is
    of a model that can be used. The Hub's library shows how far it has come, and takes
    up a download that was interrupted. Without a connection, what the cache holds of
    the model is taken. The address is hf://USER/NAME, or hf://USER/NAME@REVISION (a
    branch, tag or commit).

    Raises:
        InputError: a malformed address, no such repository or revision, no permission,
            no connection, or a model of another architecture.
    """
    found = _ADDRESS.fullmatch(address.removeprefix(HUB))
    if not found:
        raise InputError(f"{address}: write hf://USER/NAME or hf://USER/NAME@REVISION")
    repository, revision = found.groups()
    weights = MODEL_FILE, f"{MODEL_FILE}.index.json"
    with _hub(address) as hub:
        get = functools.partial(hub.snapshot_download, repository, revision=revision)
        folder = Path(get(allow_patterns=["config.json"]))
        check_inside(folder, ["config.json"])
        if not (folder / "config.json").is_file():
            raise InputError(
                f"{address}: holds no config.json: not a model for vse_jax"
            )
        _check_architecture(folder, address)
        folder = Path(get(allow_patterns=[*SHARED_FILES, WEIGHT_PARTS]))
    check_inside(folder, [*SHARED_FILES, *(f.name for f in folder.glob(WEIGHT_PARTS))])
    if not any((folder / name).is_file() for name in weights):
        raise InputError(
            f"{address}: holds no {MODEL_FILE}: not a model for vse_jax; or its "
            "download was interrupted, which the same command goes on with"
        )
    return folder


def fetch_released(name: str) -> Path:
    """The local path of a released model_best.pth, downloaded unless it is cached.

    Its name: OWNER/REPOSITORY/FOLDER, such as cccjc/vse-infty/coco_butd_region_bert.

    Raises:
        InputError: a malformed name, no such repository or file, or no connection.
    """
    owner, _, rest = name.partition("/")
    repository, _, folder = rest.partition("/")
    if not (owner and repository and folder):
        raise InputError(f"--hub={name}: write OWNER/REPOSITORY/FOLDER")
    file = f"{folder}/model_best.pth"
    with _hub(f"--hub={name}") as hub:
        return Path(hub.hf_hub_download(f"{owner}/{repository}", file))


def check_repository(name: str) -> None:
    """Raises InputError unless a name has the form USER/NAME."""
    found = _ADDRESS.fullmatch(name)
    if not found or found[2]:
        raise InputError(f"--repo={name}: write USER/NAME")


def publish(folder: Path, repository: str, *, private: bool, message: str) -> str:
    """Uploads a folder's files as one commit; the repository's address in a browser.

    The repository, USER/NAME, is made if need be, `private` or not.

    Raises:
        InputError: not logged in, no permission, or no connection.
    """
    with _hub(f"--repo={repository}") as hub:
        url = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message
        )
    return str(url)


@contextlib.contextmanager
def _hub(what: str) -> Iterator[Any]:
    """The Hub's library; what goes wrong: one line about `what`, and what to do."""
    import huggingface_hub  # noqa: PLC0415 (half a second, for few)
    from huggingface_hub import errors  # noqa: PLC0415

    try:
        yield huggingface_hub
    except InputError:
        raise
    except Exception as error:  # the Hub's, the HTTP library's and the disk's own
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            hint = f"its owner has to let you in: ask on its page, and {_LOGIN}"
        elif isinstance(error, errors.RevisionNotFoundError):
            hint = "there is no such revision"
        elif isinstance(error, errors.RepositoryNotFoundError):
            hint = f"there is no such repository, or it is private: {_LOGIN}"
        elif isinstance(error, errors.LocalTokenNotFoundError):
            hint = _LOGIN
        elif status is None and _is_network(error):
            hint = "the Hub cannot be reached; check the connection"
            if what.startswith(HUB):
                hint += (
                    f", or fetch it elsewhere by `{hub_command(what)}` and name that"
                )
        else:
            hint = _HINTS.get(status or 0, "failed")
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{what}: {hint} ({reason})") from error


def _is_network(error: BaseException | None) -> bool:
    """Whether no answer came at all; the Hub's library wraps what the sockets say."""
    while error is not None:
        names = {kind.__name__ for kind in type(error).__mro__}
        if names & {"TransportError", "ConnectionError", "TimeoutError"}:
            return True
        error = error.__cause__ or error.__context__
    return False
