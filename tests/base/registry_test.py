"""What a config names: a short name, or a class of one's own."""

import sys

import pytest

from vse_jax.base.errors import InputError
from vse_jax.base.registry import Registry, check_code, is_path

OWN = f"""
from {__name__} import Base as Ours

class Base:
    def pool(self, values, mask):
        return self.k

class Fine(Ours):
    def __init__(self, k):
        self.k = k
    def pool(self, values, mask):
        return self.k

class Lacks(Ours):
    def pool(self, values):
        pass

class Wants(Ours):
    def __init__(self, colour):
        pass
"""


class Base:
    def __init__(self, k: int):
        self.k = k

    def pool(self, values, mask):
        return self.k


POOLS: Registry[Base] = Registry(
    "pooling", {"plain": f"{__name__}:Base"}, Base, {"pool": ("values", "mask")}
)


@pytest.fixture
def own(tmp_path, monkeypatch) -> str:
    """The name of a module in the current folder."""
    (tmp_path / "own_pools_of_a_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "own_pools_of_a_test"
    sys.modules.pop("own_pools_of_a_test", None)


def test_a_short_name_and_a_path(own):
    assert POOLS.make("config.pool", "plain", k=3).k == 3
    made = POOLS.make("config.pool", f"{own}:Fine", k=4, features=8)
    assert made.pool(None, None) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("foo", "config.pool: 'foo' is none of plain, nor of the form"),
        ("{own}:Absent", "config.pool: the module {own} has no Absent"),
        ("{own}:Base", "is no pooling: no .*registry_test.Base"),
        ("{own}:Lacks", "is no pooling: pool takes no mask"),
        ("{own}:Wants", "asks for colour; there is k"),
    ],
)
def test_what_does_not_fit_is_named(own, name, message):
    with pytest.raises(InputError, match=message.format(own=own)):
        POOLS.make("config.pool", name.format(own=own), k=3)


def test_code_of_a_shared_model_needs_trust_and_lies_elsewhere(own, tmp_path):
    fields = {"image.pool": f"{own}:Fine", "text.pool": "gpo"}
    model = tmp_path / "model"
    model.mkdir()
    check_code({"text.pool": "gpo"}, model, trusted=False)
    with pytest.raises(InputError, match=rf"image\.pool = {own}:Fine"):
        check_code(fields, model, trusted=False)
    check_code(fields, model, trusted=True)
    with pytest.raises(InputError, match="you are in it"):
        check_code(fields, tmp_path, trusted=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.b:C", True), ("gpo", False), ("a:b:c", False), ("a b:C", False), (3, False)],
)
def test_the_form_of_a_path(name, expected):
    assert is_path(name) == expected
