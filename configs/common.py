"""What the configs share. The fields and their published values: vse_jax/config.py.

A config only overrides: `get_config` takes the locked `ConfigDict` of `base` and sets
what its recipe has otherwise. An unknown field or a wrong type is an error there.
"""

from ml_collections import ConfigDict

from vse_jax.base.errors import InputError
from vse_jax.config import config_dict, grid_rules, region_rules

__all__ = ["base", "grid_rules", "pick", "region_rules"]


def base(variant: str = "") -> ConfigDict:
    """Returns the full, locked config of the published recipe, grid and BERT on COCO.

    Args:
        variant: '' as published, or 'fast': the encoders in bfloat16. What stands after
            the colon of --config=configs/coco_grid.py:fast.
    """
    c = config_dict()
    if variant not in ("", "fast"):
        raise InputError(f"--config=…:{variant}: no such variant; there is 'fast'")
    if variant == "fast":
        c.compute_dtype = "bfloat16"
    return c


def pick(variant: str, choices: tuple[str, ...], default: str) -> tuple[str, str]:
    """(the one of `choices` that a recipe's VARIANT[,fast] names, what is left)."""
    words = variant.split(",")
    named = [word for word in words if word in choices]
    rest = ",".join(word for word in words if word not in choices)
    if len(named) > 1 or rest not in ("", "fast"):
        listed = ", ".join(choices)
        raise InputError(f"--config=…:{variant}: one of {listed}, with ',fast' or not")
    return (named or [default])[0], rest
