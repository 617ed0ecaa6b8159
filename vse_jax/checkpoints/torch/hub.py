"""Released checkpoints from the Hugging Face Hub."""

from pathlib import Path

from vse_jax.base.errors import InputError
from vse_jax.checkpoints.hub import hub_errors

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
    import huggingface_hub  # noqa: PLC0415 (half a second, for few)

    with hub_errors(f"--hub={name}"):
        path = huggingface_hub.hf_hub_download(
            f"{owner}/{repository}", f"{folder}/{CHECKPOINT}"
        )
    return Path(path)
