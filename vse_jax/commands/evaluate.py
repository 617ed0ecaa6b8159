"""--mode=eval: ranks a split with the best checkpoint of a run."""

import json
from pathlib import Path

from vse_jax.base.files import AnyPath, any_path, write_atomically
from vse_jax.commands.embed import embed_best
from vse_jax.config import Config
from vse_jax.data.dataset import Split, read_split
from vse_jax.distributed.multihost import on_process_zero
from vse_jax.evaluation.cutoff import write_cutoff
from vse_jax.evaluation.cxc import cxc_metrics
from vse_jax.evaluation.eccv import eccv_metrics
from vse_jax.evaluation.encode import Embedder, Embeddings
from vse_jax.evaluation.qrels import qrels_metrics
from vse_jax.evaluation.retrieval import retrieval_metrics
from vse_jax.figures.retrieval import plot_retrieval

_TASKS = {
    "i2t": "image to caption",
    "t2i": "caption to image",
    "i2i": "image to image",
    "t2t": "caption to caption",
}
_PROTOCOLS = {
    "cxc": "Crisscrossed Captions",
    "eccv": "ECCV Caption",
    "qrels": "TREC qrels",
}
_COLUMNS = {
    "r1": "R@1",
    "r5": "R@5",
    "r10": "R@10",
    "medr": "median",
    "meanr": "mean",
    "map_at_r": "mAP@R",
    "rprecision": "R-P",
    "pmrp": "PMRP",
    "ndcg10": "nDCG@10",
    "map": "MAP",
    "mrr": "MRR",
}


def evaluate(
    config: Config,
    workdir: AnyPath,
    model: AnyPath | None = None,
    *,
    embedder: Embedder | None = None,
    split: Split | None = None,
) -> None:
    """Ranks config.eval.split with the best model in the folder `model`, or `workdir`.

    Writes eval_<split>.json and retrieval.png to `workdir`, prints the table; on the
    dev split, the cut-off of its own model, too. After training, its compiled
    `embedder` and the `split` as it was read are at hand.
    """
    split = split or read_split(config, config.eval.split)
    embeddings = embed_best(config, workdir, split, model, embedder)

    def report() -> None:
        metrics = split_metrics(config, split, embeddings)
        workdir.mkdir(parents=True, exist_ok=True)  # an ensemble's may be new
        text = json.dumps(metrics, indent=1) + "\n"
        write_atomically(workdir / f"eval_{split.name}.json", text.encode())
        plot_retrieval(
            workdir / "retrieval.png", split, embeddings.images, embeddings.captions
        )
        is_own = model is None and config.eval.ensemble is None
        if is_own and split.name == config.data.dev_split:
            write_cutoff(workdir, split, embeddings)
        print(format_table(metrics, f"{config.data.name} {split.name}"))

    on_process_zero(report)


def split_metrics(config: Config, split: Split, embeddings: Embeddings) -> dict:
    """The contents of eval_<split>.json: recalls, and other protocols when asked."""
    found = embeddings.images, embeddings.captions, split.captions_per_image
    metrics = retrieval_metrics(*found)
    if config.eval.cxc:
        folder = split.root / "cxc_annots"
        metrics["cxc"] = cxc_metrics(*found, split.image_ids, folder)
    if config.eval.eccv:
        named = config.eval.plausible_matches
        folder = Path(named) if named else None
        metrics["eccv"] = eccv_metrics(*found, split.image_ids, folder)
    if config.eval.qrels is not None:
        file = any_path(config.eval.qrels, "config.eval.qrels")
        metrics["qrels"] = qrels_metrics(*found, split.image_ids, file)
    if config.eval.ensemble is not None:
        metrics["ensemble"] = config.eval.ensemble.split(",")
    return metrics


def format_table(metrics: dict, title: str) -> str:
    """The tables of all protocols in `metrics`, under one another."""
    size = f"{metrics['images']:,} images, {metrics['captions']:,} captions"
    lines = _table(f"{title}: {size}", metrics)
    if "fold5" in metrics:
        fold = metrics["fold5"]
        lines += _table(f"mean of 5 folds of {fold['images']:,} images", fold)
    for key, name in _PROTOCOLS.items():
        if key in metrics:
            lines += _table(name, metrics[key])
    return "\n".join(lines)


def _table(title: str, metrics: dict) -> list[str]:
    rows = {_TASKS[key]: metrics[key] for key in _TASKS if key in metrics}
    columns = [key for key in _COLUMNS if key in next(iter(rows.values()))]
    lines = [title, " " * 22 + "".join(f"{_COLUMNS[key]:>8}" for key in columns)]
    for name, row in rows.items():
        lines.append(f"  {name:20}" + "".join(f"{row[key]:8.1f}" for key in columns))
    if "rsum" in metrics:
        lines.append(f"  {'rsum':20}{metrics['rsum']:8.1f}")
    return lines
