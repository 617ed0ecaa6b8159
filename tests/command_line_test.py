"""What the programs share: paths in flags and fields, whose messages are shown."""

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError
from vse_jax.command_line import PathParser, final_config, override, read_config
from vse_jax.config import FIELDS, Config, config_dict, flat_fields, save_config

PATHS = [name for name, spec in FIELDS.items() if spec.path or spec.paths]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def given(name, *overrides):
    """The config of a command line."""
    return final_config(read_config(name), overrides)


class TestPaths:
    @pytest.mark.parametrize("field", PATHS)
    def test_a_tilde_is_the_home_folder_in_each_field(self, field, home):
        config = given("configs/openmoji.py", f"--config.{field}=~/a b/c")
        assert flat_fields(config)[field] == f"{home}/a b/c"

    @pytest.mark.parametrize("field", PATHS)
    def test_also_in_a_config_file_and_a_saved_config(self, field, home):
        file = home / "mine.py"
        file.write_text(
            "from configs import common\n"
            "def get_config(value):\n"
            "    c = common.base()\n"
            f"    c.{field} = value\n"
            "    return c\n"
        )
        assert flat_fields(given("~/mine.py:~/x"))[field] == f"{home}/x"
        config = draft()
        config.update_from_flattened_dict({field: "~/x"})
        save_config(config, home / "config.json")
        assert flat_fields(given("~/config.json"))[field] == f"{home}/x"

    @pytest.mark.parametrize("field", PATHS)
    @pytest.mark.parametrize(
        "path",
        ["gs://bucket/~/x", "hf://user/name", "package:name/~", "a/~", "~no-such-user"],
    )
    def test_what_is_no_tilde_path_stays(self, field, path):
        config = given("configs/openmoji.py", f"--config.{field}={path}")
        assert flat_fields(config)[field] == path

    def test_each_member_of_an_ensemble(self, home):
        user = pwd.getpwuid(os.getuid())
        members = f"--config.eval.ensemble=~/a, ~{user.pw_name}/b,c,gs://d"
        config = given("configs/openmoji.py", members)
        assert config.eval.ensemble == f"{home}/a,{user.pw_dir}/b,c,gs://d"

    def test_flags(self, home):
        parsed = PathParser().parse("~/a b/c")
        assert parsed == home / "a b" / "c"
        assert PathParser().parse("a/~") == Path("a/~")

    def test_a_config_in_a_folder_with_a_colon(self, home):
        folder = home / "12:30"
        folder.mkdir()
        save_config(Config(), folder / "config.json")
        assert given("~/12:30/config.json") == Config()


class TestOverrides:
    def test_every_wrong_one_is_named(self):
        arguments = [
            "--config.batch_siez=3",
            "--config.batch_size",
            "--config.seed=x",
            "--config.embed_dim=8",
        ]
        config = config_dict()
        unknown, valueless, wrong_type = override(config, arguments)
        assert unknown.endswith("did you mean --config.batch_size?")
        assert valueless.endswith("write --config.batch_size=VALUE")
        assert wrong_type.startswith("--config.seed=x: ")
        assert config.embed_dim == 8

    def test_an_error_in_a_config_file_names_its_line(self, tmp_path):
        file = tmp_path / "bad.py"
        file.write_text("def get_config():\n    x = 1\n    return x + 'a'\n")
        with pytest.raises(InputError, match=r"bad\.py, line 3: TypeError"):
            read_config(str(file))
        with pytest.raises(InputError, match=r"no such file absent\.py"):
            read_config("absent.py:x")


# Each prints what it is, as an info and as a warning, by absl's logger.
SAYS = """
from absl import logging
logging.info("{0} info")
logging.warning("{0} warning")
"""
PROGRAM = """
from absl import app
from vse_jax import command_line as cli

def run(_):
    import orbax.chatter, other, vse_jax.chatter

app.run(cli.program(run), flags_parser=cli.parse)
"""


@pytest.mark.parametrize("clone", ["vse_jax", "orbax", "elsewhere"])
def test_only_the_package_itself_chatters(clone, tmp_path):
    """Also with the virtual environment inside of a clone of any name."""
    package = tmp_path / clone / "vse_jax"
    shutil.copytree("vse_jax", package)
    site = tmp_path / clone / ".venv" / "lib" / "site-packages"
    (site / "orbax").mkdir(parents=True)
    (package / "chatter.py").write_text(SAYS.format("ours"))
    (site / "orbax" / "chatter.py").write_text(SAYS.format("orbax"))
    (site / "other.py").write_text(SAYS.format("other"))

    def shown(*flags):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *flags],
            cwd=tmp_path / clone,
            env=os.environ | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=True,
        )
        return [" ".join(line.split()[-2:]) for line in done.stderr.splitlines()]

    assert shown() == ["other warning", "ours info", "ours warning"]
    assert "orbax info" in shown("--verbosity=1")
