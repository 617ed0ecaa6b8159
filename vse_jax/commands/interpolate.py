"""--mode=interpolate: weights between a fine-tuned model and the one it started from.

WiSE-FT (Wortsman et al., 2022, section 3): (1 − α) · start + α · fine-tuned keeps more
of what the start knew than fine-tuning alone, and often gains on the new data, too.
"""

import jax

from vse_jax.base.errors import InputError
from vse_jax.base.files import AnyPath
from vse_jax.checkpoints.finetuning import (
    Scores,
    make_report,
    retention_splits,
    write_report,
)
from vse_jax.checkpoints.load import load_model
from vse_jax.checkpoints.pretrained import begins_whole, load_whole_start
from vse_jax.checkpoints.share import write_shared
from vse_jax.config import Config
from vse_jax.data.dataset import read_split
from vse_jax.distributed.compile_cache import CompileCache
from vse_jax.evaluation.cutoff import write_cutoff
from vse_jax.evaluation.encode import Embedder


def interpolate(config: Config, workdir: AnyPath) -> None:
    """Scores the mixtures of config.interpolate.alphas; the best is W/interpolated/.

    The best has the largest sum of rsum on dev and, if config.eval.retention names
    one, on the retention split. Its folder is a shared model's.

    Raises:
        InputError: no model in `workdir`, or one that began from no whole model.
    """
    if not begins_whole(config):
        raise InputError(
            f"{workdir}: its config names no whole model that it began from "
            "(config.weights, or SigLIP's encoders with their own poolings)"
        )
    splits = [read_split(config, config.data.dev_split), *retention_splits(config)]
    config, graphdef, tuned, mesh = load_model(config, workdir)
    start = load_whole_start(config, tuned)

    def mixture(alpha: float):
        return jax.tree.map(lambda x, y: (1 - alpha) * x + alpha * y, start, tuned)

    models: dict[str, Scores] = {}
    sums: dict[str, float] = {}
    by_name = {f"α = {alpha:g}": alpha for alpha in config.interpolate.alphas}
    with CompileCache() as programs:
        embedder = Embedder(config, graphdef, tuned, mesh, programs)
        for name, alpha in by_name.items():
            model = mixture(alpha)
            scores = {split.name: embedder.evaluate(model, split) for split in splits}
            models[name] = scores
            sums[name] = sum(metrics["rsum"] for metrics in scores.values())
        best = max(sums, key=lambda name: sums[name])
        chosen = mixture(by_name[best])
        of_dev = embedder.embed(chosen, splits[0])
    report, arrays = make_report(config, models, best), jax.device_get(chosen)
    target = workdir / "interpolated"
    write_shared(config, workdir, arrays, target, None, report)
    write_report(target, report)
    write_cutoff(target, splits[0], of_dev)
    print(f"{target}: {best} (0: its start, 1: fine-tuned), by the sum of rsum")
