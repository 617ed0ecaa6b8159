"""--mode=explain: why an image and a caption have their similarity."""

from vse_jax import AnyPath, Config, InputError, load_image, model_of, plot_explanation
from vse_search.query import parse


def explain(config: Config, workdir: AnyPath, model: AnyPath | None = None) -> None:
    """Draws W/explanation.png for config.search.query and config.search.like.

    By the best model in the folder `model`, or in `workdir`.

    Raises:
        InputError: one of them is missing or bad, a region model, or an encoder that
            is no `SetEncoder`.
    """
    query, like = config.search.query or "", config.search.like or ""
    for field, value in (("query", query), ("like", like)):
        if not value.strip():
            raise InputError(f"config.search.{field}: needed by --mode=explain")
    parts = parse(query)
    if len(parts) > 1 or parts[0].kind != "caption" or parts[0].weight < 0:
        raise InputError("config.search.query: --mode=explain takes one caption")
    caption = parts[0].value
    image = load_image(like)
    loaded = model_of(config, model or workdir)
    if loaded.takes_regions:
        raise InputError(
            f"{loaded.name}: a region model, which sees no cells of an image; "
            "vse_jax.load(…).explain splits its regions"
        )
    found = loaded.explain(image, caption)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "explanation.png"
    methods = f"cells: {found.cells_method}; words: {found.words_method}"
    plot_explanation(path, image, caption, found.cells, found.words, methods)
    print(f"similarity {found.similarity:.3f}")
    print(methods)
    for word, part in found.words:
        print(f"{part:+.3f}  {word}")
    print(path)
