"""--mode=plot: the coefficients that a trained model's GPO has learned."""

from vse_jax.base.files import AnyPath
from vse_jax.checkpoints.load import load_model
from vse_jax.config import Config
from vse_jax.figures.coefficients import learned_coefficients, plot_coefficients
from vse_jax.models.build import merge_model


def plot(config: Config, workdir: AnyPath, model: AnyPath | None = None) -> None:
    """Draws W/coefficients.{png,svg} of the best model in `model`, or in `workdir`.

    Raises:
        InputError: no model, or no encoder has a GPO.
    """
    loaded = load_model(config, model or workdir)
    vse = merge_model(loaded.graphdef, loaded.arrays)
    encoders = learned_coefficients(loaded.config, vse)
    workdir.mkdir(parents=True, exist_ok=True)
    print("\n".join(map(str, plot_coefficients(workdir, encoders))))
