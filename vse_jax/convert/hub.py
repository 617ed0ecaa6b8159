"""Released checkpoints from the Hugging Face Hub."""

from pathlib import Path

from vse_jax.base.errors import InputError

CHECKPOINT = "model_best.pth"


def download(name: str) -> Path:
    """Returns the local path of a released checkpoint, downloaded unless it is cached.

    Args:
        name: OWNER/REPOSITORY/FOLDER, such as cccjc/vse-infty/coco_butd_region_bert;
            the folder holds model_best.pth.

    Raises:
        InputError: a malformed name, no such repository or file, or no connection.
    """
    owner, _, rest = name.partition("/")
    repository, _, folder = rest.partition("/")
    if not (owner and repository and folder):
        raise InputError(f"--hub={name}: write OWNER/REPOSITORY/FOLDER")
    try:
        import huggingface_hub  # noqa: PLC0415 (only conversion installs it)
    except ImportError:
        raise InputError(
            f"--hub={name}: needs huggingface_hub, which is not installed "
            "(make setup-dev)"
        ) from None
    try:
        path = huggingface_hub.hf_hub_download(
            f"{owner}/{repository}", f"{folder}/{CHECKPOINT}"
        )
    except Exception as error:  # the Hub's, the HTTP library's and the disk's own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"--hub={name}: {reason}") from error
    return Path(path)
