"""What the study of poolings compares: a recipe, and what each variant changes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from configs import openmoji_cells
from vse_jax.config import FIELDS, Config, typed, with_fields


class Variant(NamedTuple):
    """One row of the study.

    title: how it is called.
    changes: field → value, where it differs from the recipe.
    seeds: with which it is run.
    """

    title: str
    changes: dict[str, Any]
    seeds: tuple[int, ...] = (0, 1, 2)


def _pools(image: str, text: str | None = None) -> dict[str, str]:
    return {"image.pool": image, "text.pool": text or image}


# What is compared.
POOLINGS = {
    "gpo": Variant("GPO", {}),
    "max": Variant("maximum", _pools("max")),
    "gpo_whole": Variant("GPO without size augmentation", {"image.drop": 0.0}),
    "avg": Variant("average", _pools("avg")),
    "vsepp": Variant("average, [CLS] (VSE++)", _pools("avg", "cls")),
    "kmax": Variant("mean of the 5 largest", _pools("kmax")),
    "selfattn": Variant("self-attention", _pools("selfattn")),
    "ep": Variant("efficient probing, 32 queries", _pools("ep")),
}

_LONG: dict[str, Any] = {"num_epochs": 25, "optimizer.lr_update": 15}
# What decides between GPO and the maximum: one condition is changed in each.
REASONS = {
    "gpo_fast": Variant(
        "GPO, its own rate × 10",
        {
            "optimizer.rules": (
                ("^text/bert/", 0.0, -1),
                ("/gpool/", 10.0, 0),
                (".*", 1.0, 0),
            )
        },
        (0,),
    ),
    "gpo_from_max": Variant(
        "GPO that starts at the maximum", _pools("studies.pools:FromMaximum"), (0,)
    ),
    "gpo_colder": Variant("GPO with temperature 0.01", _pools("studies.pools:Colder")),
    "gpo_unclipped": Variant("GPO, no clip", {"optimizer.clip": 0.0}, (0,)),
    "gpo_25": Variant("GPO, 25 epochs, rate drops after 15", _LONG, (0,)),
    "max_25": Variant(
        "maximum, 25 epochs, rate drops after 15", _LONG | _pools("max"), (0,)
    ),
}

VARIANTS = POOLINGS | REASONS


def recipe() -> Config:
    """The config that all variants change."""
    return typed(openmoji_cells.get_config())


def config_of(name: str, seed: int) -> Config:
    """The config of a variant's run."""
    return with_fields(recipe(), {**VARIANTS[name].changes, "seed": seed})


def flags_of(name: str, seed: int) -> list[str]:
    """The same as arguments of main.py."""
    fields = {"seed": seed} | VARIANTS[name].changes
    assert fields.keys() <= FIELDS.keys()
    return [f"--config.{field}={value}" for field, value in fields.items()]


def in_order() -> Iterator[tuple[str, int]]:
    """(variant, seed) of all runs: the poolings seed by seed, then the reasons.

    So what is there early is comparable.
    """
    for variants in (POOLINGS, REASONS):
        for seed in sorted({seed for v in variants.values() for seed in v.seeds}):
            yield from ((name, seed) for name, v in variants.items() if seed in v.seeds)
