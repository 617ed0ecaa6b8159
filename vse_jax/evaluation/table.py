"""The contents of eval_<split>.json as tables for the terminal."""

_TASKS = {
    "i2t": "image to caption",
    "t2i": "caption to image",
    "i2i": "image to image",
    "t2t": "caption to caption",
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
}


def format_table(metrics: dict, title: str) -> str:
    """The tables of all protocols in `metrics`, under one another."""
    lines = _table(
        f"{title}: {metrics['images']:,} images, {metrics['captions']:,} captions",
        metrics,
    )
    if "fold5" in metrics:
        fold = metrics["fold5"]
        lines += _table(f"mean of 5 folds of {fold['images']:,} images", fold)
    for key, name in (("cxc", "Crisscrossed Captions"), ("eccv", "ECCV Caption")):
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
