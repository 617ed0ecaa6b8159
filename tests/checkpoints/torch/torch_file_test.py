import argparse
import collections
import datetime
import decimal
import functools
import os
import pathlib
import pickle
import sys
import types

import numpy as np
import pytest
import torch

from vse_jax.base.errors import InputError
from vse_jax.checkpoints.torch import torch_file

BOTH = pytest.mark.parametrize("zipped", [False, True], ids=["legacy", "zip"])


class Hostile:
    """Unpickled by an ordinary unpickler, it calls `function` on `argument`."""

    def __init__(self, function, argument):
        self.call = (function, (argument,))

    def __reduce__(self):
        return self.call


def save(content, path, zipped=False):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@BOTH
def test_what_was_saved_comes_back(tmp_path, zipped):
    content = {
        "model": [{"a.weight": torch.arange(6.0).reshape(2, 3)}, {}],
        "opt": argparse.Namespace(margin=0.2, optim="adam"),
        "best_rsum": np.float64(527.5),
    }
    back = torch_file.read(save(content, tmp_path / "model.pth", zipped))
    assert back["opt"] == content["opt"]
    assert back["best_rsum"] == 527.5
    np.testing.assert_array_equal(
        torch_file.arrays(back["model"][0], "here")["a.weight"],
        np.arange(6.0, dtype=np.float32).reshape(2, 3),
    )


@BOTH
@pytest.mark.parametrize(
    ("function", "named"), [(os.system, f"{os.name}.system"), (eval, "eval")]
)
def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path, zipped, function, named):
    ran = tmp_path / "ran"
    argument = (
        f"touch {ran}"
        if function is os.system
        else f"__import__('os').mkdir({str(ran)!r})"
    )
    content = {"model": [{}, {}], "opt": Hostile(function, argument)}
    path = save(content, tmp_path / "model.pth", zipped)
    with pytest.raises(InputError, match=rf"model\.pth: refused: .*{named}") as error:
        torch_file.read(path)
    assert "\n" not in str(error.value)
    assert not ran.exists()
    torch.load(path, weights_only=False)  # the file would have run it
    assert ran.exists()


VALUES = {
    "device": torch.device("cuda:0"),
    "dtype": torch.float16,
    "set": {1, 2},
    "frozenset": frozenset({1}),
    "int64": np.int64(5),
    "uint8": np.uint8(5),
    "float16": np.float16(0.5),
    "bool": np.bool_(True),
    "text": np.str_("abc"),
    "array": np.arange(6).reshape(2, 3),
    "Fortran": np.asfortranarray(np.ones((2, 3), np.float32)),
    "kind": np.dtype("int32"),
    "date": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
    "decimal": decimal.Decimal("1.5"),
    "range": range(3),
    "ordered": collections.OrderedDict(a=1),
    "namespace": types.SimpleNamespace(a=argparse.Namespace(b=1)),
}


@BOTH
@pytest.mark.parametrize("name", VALUES)
def test_what_only_holds_a_value_is_read(tmp_path, zipped, name):
    found = torch_file.read(save({"a": VALUES[name]}, tmp_path / "m.pth", zipped))["a"]
    assert type(found) is type(VALUES[name])
    np.testing.assert_array_equal(found, VALUES[name])


@BOTH
def test_a_dict_with_a_default_is_read(tmp_path, zipped):
    content = {"a": collections.defaultdict(list, {"b": [1]})}
    back = torch_file.read(save(content, tmp_path / "model.pth", zipped))
    assert back["a"] == {"b": [1]}


@pytest.mark.parametrize("kind", ["PosixPath", "PureWindowsPath", "WindowsPath"])
@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_a_path_of_any_system_is_text(tmp_path, kind, module):
    path = save({"opt": pathlib.PurePosixPath("a", "b")}, tmp_path / "model.pth")
    written = path.read_bytes()
    named = f"c{module}\n{kind}\n".encode()
    path.write_bytes(written.replace(b"cpathlib\nPurePosixPath\n", named))
    joined = "a\\b" if "Windows" in kind else "a/b"
    assert torch_file.plain(torch_file.read(path)["opt"]) == joined


@BOTH
def test_a_function_that_is_only_named_is_not_called(tmp_path, zipped):
    content = {
        "a": torch.ones(1),
        "opt": argparse.Namespace(loss=os.path.join, new=len),
    }
    back = torch_file.read(save(content, tmp_path / "model.pth", zipped))
    assert isinstance(back["opt"].loss, torch_file.Refused)
    assert str(back["opt"].loss) == f"{os.path.__name__}.join"
    with pytest.raises(InputError, match=r"here: refused: it asks for posixpath\.join"):
        torch_file.arrays({"a": back["opt"].loss}, "here")


@BOTH
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (collections.deque([1]), "collections.deque"),
        (functools.partial(len), "functools.partial"),
        (Hostile(os.system, "true"), f"{os.name}.system"),
    ],
)
def test_what_is_called_is_named(tmp_path, zipped, value, name):
    path = save({"opt": argparse.Namespace(a=value)}, tmp_path / "model.pth", zipped)
    with pytest.raises(InputError) as error:
        torch_file.read(path)
    assert str(error.value).startswith(f"{path}: refused: it asks for {name}, which is")


@BOTH
def test_a_whole_module_is_not_damage(tmp_path, zipped):
    path = save({"model": torch.nn.Linear(1, 1)}, tmp_path / "model.pth", zipped)
    message = "holds a whole module; save its state_dict"
    if zipped:
        message = r"refused: it asks for torch\.nn\.modules\.linear\.Linear"
    with pytest.raises(InputError, match=message):
        torch_file.read(path)


def test_another_protocol_is_not_damage(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "model.pth", pickle_protocol=4)
    with pytest.raises(
        InputError, match="written with another pickle protocol than Py"
    ):
        torch_file.read(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "nest",
    [
        lambda tensors: tensors,
        lambda tensors: {"state_dict": tensors, "epoch": 3},
        lambda tensors: {"model": {"state_dict": tensors}},
        lambda tensors: {"ema": tensors},
        lambda tensors: {"model": tensors, "ema": tensors, "optimizer": {"s": tensors}},
    ],
)
def test_a_state_dict_is_found_deeper_in_the_file(tmp_path, nest):
    path = save(nest({"a": torch.ones(1)}), tmp_path / "model.pth")
    assert torch_file.read_tensors(path) == {"a": torch.ones(1)}


def test_several_state_dicts_are_not_one(tmp_path):
    tensors = {"a": torch.ones(1)}
    path = save({"teacher": tensors, "student": tensors}, tmp_path / "model.pth")
    with pytest.raises(
        InputError, match=r"holds several state dicts \(teacher, student"
    ):
        torch_file.read_tensors(path)


def test_a_plain_pickle_is_refused_and_runs_nothing(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps(Hostile(os.mkdir, str(tmp_path / "ran")), protocol=2))
    with pytest.raises(InputError, match="refused"):
        torch_file.read(path)
    assert not (tmp_path / "ran").exists()


@BOTH
@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_one_line(tmp_path, zipped, share):
    whole = save({"a": torch.rand(1000)}, tmp_path / "whole.pth", zipped).read_bytes()
    path = tmp_path / "model.pth"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"model\.pth: not a whole PyTorch") as error:
        torch_file.read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"PK\3\4", b"\x80\2."])
def test_another_kind_of_file_is_one_line(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.pth: not a whole PyTorch file"):
        torch_file.read(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.pth: No such file"):
        torch_file.read(tmp_path / "absent.pth")
    with pytest.raises(InputError, match="directory"):
        torch_file.read(tmp_path)


def test_a_state_dict_is_expected(tmp_path):
    with pytest.raises(InputError, match="holds no state dict"):
        torch_file.read_tensors(save([1, 2], tmp_path / "list.pth"))


def test_other_float_types_are_cast_and_that_is_said(caplog):
    tensors = {
        "half": torch.ones(2, dtype=torch.float16),
        "brain": torch.ones(2, dtype=torch.bfloat16),
        "double": torch.ones(2, dtype=torch.float64),
        "steps": torch.tensor(3),
    }
    with caplog.at_level("INFO", logger="absl"):
        arrays = torch_file.arrays(tensors, "model.pth")
    assert {key: str(x.dtype) for key, x in arrays.items()} == {
        "half": "float32",
        "brain": "float32",
        "double": "float32",
        "steps": "int64",
    }
    for dtype in ("float16", "bfloat16", "float64"):
        assert f"model.pth: 1 tensors are {dtype}, cast to float32" in caplog.messages


def test_all_tensors_that_are_not_finite_are_named():
    tensors = {
        "a": torch.tensor([1.0, float("nan")]),
        "b": torch.ones(3),
        "c": torch.tensor([-float("inf")]),
        "d": torch.tensor(1e300, dtype=torch.float64),  # too big for float32
    }
    with pytest.raises(InputError, match=r"^model\.pth: NaN or infinity in a, c, d$"):
        torch_file.arrays(tensors, "model.pth")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"epoch": 1}, r"a is no tensor \(dict\)"),
        (torch.ones(2, dtype=torch.complex64), "a is no dense tensor of real numbers"),
        (torch.ones(2, device="meta"), "a is no dense tensor of real numbers"),
        (torch.eye(2).to_sparse(), "a is no dense tensor of real numbers"),
    ],
)
def test_a_value_that_is_no_weight_is_named(value, message):
    with pytest.raises(InputError, match=f"^here: {message}$"):
        torch_file.arrays({"a": value}, "here")


def test_a_written_file_is_whole_and_in_the_old_format(tmp_path):
    path = tmp_path / "model.pth"
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    torch_file.write(path, torch_file.tensors({"a": array, "n": np.array(3)}))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]
    assert not path.read_bytes().startswith(b"PK")
    back = torch_file.read(path)
    np.testing.assert_array_equal(back["a"], array)
    assert back["n"] == 3
    assert back["n"].shape == ()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent/model\.pth: cannot be written"):
        torch_file.write(tmp_path / "absent" / "model.pth", {})


def test_without_pytorch_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"model\.pth: the package torch is not"):
        torch_file.read(tmp_path / "model.pth")
