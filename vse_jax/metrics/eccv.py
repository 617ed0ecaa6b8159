"""ECCV Caption: COCO retrieval with the missing matches of its 5K test set added.

Chun et al., ECCV 2022. The annotations and COCO's caption ids are those in the package
`eccv_caption`; the metrics equal its own (in %), without its ranked lists of ids.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Float, Int

from vse_jax.errors import InputError
from vse_jax.metrics.positives import positions, read_object
from vse_jax.metrics.ranking import check_finite

_FILES = {"i2t": "image_to_caption.json", "t2i": "caption_to_image.json"}
