"""--mode=export_model: the best model as programs that run without this package."""

import jax

from vse_jax.base.extras import require_extra
from vse_jax.base.files import AnyPath, file_size
from vse_jax.checkpoints.export import PLATFORMS, write_exported
from vse_jax.checkpoints.load import load_model
from vse_jax.config import Config, with_fields
from vse_jax.distributed.mesh import on_one_device


def export_model(
    config: Config, workdir: AnyPath, model: AnyPath | None = None
) -> None:
    """Writes W/exported/: both encoders as programs, and what prepares their inputs.

    Of the best model in the folder `model`, or in `workdir`.

    Raises:
        InputError: no model or no vocabulary, the folder cannot be written, or no
            package for config.export.format.
    """
    onnx = config.export.format == "onnx"
    if onnx:
        require_extra("config.export.format", "onnx", "onnx")
        config = with_fields(config, {"compute_dtype": "float32"})
    config, mesh = on_one_device(config)
    config, graphdef, arrays, _ = load_model(config, model or workdir, mesh)
    target = write_exported(config, workdir, graphdef, jax.device_get(arrays))
    size = sum(map(file_size, target.iterdir())) / 1e6
    there = "ONNX" if onnx else ", ".join(PLATFORMS)
    print(f"{target}: both encoders for {there}, {size:,.1f} MB")
