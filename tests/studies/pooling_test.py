"""The study of poolings, but for the trainings themselves."""

from studies import pooling as pooling_study
from vse_jax.base.config import flat_fields


def test_a_variant_differs_from_the_demo_in_its_pooling_only():
    demo = flat_fields(pooling_study.config_of("gpo", seed=3))
    assert (demo["seed"], demo["image.pool"], demo["text.pool"]) == (3, "gpo", "gpo")
    for name, (_, changes) in pooling_study.VARIANTS.items():
        fields = flat_fields(pooling_study.config_of(name, seed=3))
        assert fields == demo | changes
        assert set(changes) <= {"image.pool", "text.pool", "image.drop"}


def study(vsepp):
    results = {"test": [320.0, 330.0], "dev": [340.0, 341.0], "step_s": 0.5}
    variants = {
        name: results | {"title": title}
        for name, (title, _) in pooling_study.VARIANTS.items()
    }
    variants["vsepp"] = variants["vsepp"] | {"test": vsepp, "step_s": 0.25}
    return {"seeds": [0, 1], "variants": variants}


def test_the_page_says_what_was_found():
    page = pooling_study.document(study(vsepp=[300.0, 310.0]))
    assert "| GPO | 325.0 ± 7.1 | 320.0 / 330.0 |  | 340.5 ± 0.7 | 500 | 1.00 |" in page
    assert "| 305.0 ± 7.1 | 300.0 / 310.0 | -20.0 | 340.5 ± 0.7 | 250 | 0.50 |" in page
    assert "It is: the difference of the means is **+20.0**" in page
    assert "best row: here that is **GPO**, +0.0 against GPO" in page
    page = pooling_study.document(study(vsepp=[318.0, 338.0]))
    assert "It is not: the difference of the means is **-3.0**" in page
    assert "that is **average, [CLS] (VSE++)**, +3.0 against GPO" in page
