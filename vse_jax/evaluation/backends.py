"""What computes the vectors of images in JAX's place: ONNX Runtime and OpenVINO."""

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Float32

from vse_jax.base.cores import usable_cores
from vse_jax.base.errors import InputError
from vse_jax.base.extras import require_extra
from vse_jax.checkpoints.export import encoder_functions, onnx_file
from vse_jax.config import Config, SearchConfig, keeps_aspect
from vse_jax.data.collate import Batch

Run = Callable[[Batch], Float32[np.ndarray, "b d"]]


class ImageBackend:
    """The image encoder on the CPU, by config.search.backend; threads may share it.

    Called with a batch, whose size may be any, it gives the vectors. The first call
    makes the program, which takes seconds.

    Raises:
        InputError: a package is not installed, or images keep their aspect (NaFlex);
            when called, the CPU has no bfloat16, or the encoder has an operation that
            `onnx_program` does not know.
    """

    def __init__(self, config: Config, graphdef: nnx.GraphDef, model: dict[str, Any]):
        backend = config.search.backend
        require_extra("config.search.backend", backend)
        if keeps_aspect(config.image):
            raise InputError(
                f"config.search.backend: {backend!r} takes no model for images of any "
                "aspect (NaFlex)"
            )
        self._of = config, graphdef, model
        self._making = threading.Lock()
        self._run: Run | None = None

    def __call__(self, batch: Batch) -> Float32[np.ndarray, "b d"]:
        with self._making:
            if self._run is None:
                self._run = self._made()
        return self._run(batch)

    def _made(self) -> Run:
        config, graphdef, model = self._of
        encoder = encoder_functions(config, graphdef, model)["image"]
        with onnx_file(encoder, "image") as file:
            if config.search.backend == "onnx":
                return _onnxruntime(str(file))
            return _openvino(str(file), config.search)


def backend_name(options: SearchConfig) -> str:
    """As the index of images keeps it: 'jax', 'onnx' or 'openvino bfloat16'."""
    rounds = options.precision != "float32"
    return f"{options.backend} {options.precision}" if rounds else options.backend


def _onnxruntime(file: str) -> Run:
    import onnxruntime  # noqa: PLC0415 (an optional package)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        file, options, providers=["CPUExecutionProvider"]
    )
    return lambda batch: session.run(None, batch)[0]


def _openvino(file: str, options: SearchConfig) -> Run:
    # Its telemetry would tell its makers that a model was read. Without that package,
    # which it asks to be installed, it tells nobody.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino  # noqa: PLC0415 (an optional package)

    precision = {"float32": "f32", "bfloat16": "bf16"}[options.precision]
    # Without this OpenVINO takes bfloat16 wherever the CPU has it.
    wanted = {"INFERENCE_PRECISION_HINT": precision}
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES"
    ):
        raise InputError("config.search.precision: this CPU has no bfloat16")
    program = core.compile_model(file, "CPU", wanted)

    def run(batch: Batch) -> Float32[np.ndarray, "b d"]:
        # A request is one thread's at a time.
        return program.create_infer_request().infer(batch)[0].copy()

    return run
