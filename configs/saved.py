"""The config that a run saved: --config=configs/saved.py:WORKDIR.

`main.py` uses it when --workdir is given without --config.
"""

from pathlib import Path

from configs import common
from vse_jax.base.config import load_config
from vse_jax.base.errors import InputError


def get_config(workdir: str = ""):
    if not workdir:
        raise InputError("--config=configs/saved.py:WORKDIR: no WORKDIR given")
    return load_config(common.base(), Path(workdir) / "config.json")
