"""Checks of what is drawn."""

from vse_jax.data.images import load_image


def assert_drawn(folder, name):
    """PNG of a page's width, SVG with text; returns both contents."""
    assert load_image(folder / f"{name}.png").shape[1] >= 1000
    assert (folder / f"{name}.svg").read_text().count("<path") > 20
    return [(folder / f"{name}.{kind}").read_bytes() for kind in ("png", "svg")]
