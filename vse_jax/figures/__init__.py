"""Drawings, by matplotlib."""

from vse_jax.base.extras import require_extra

require_extra("drawing", "figures")
