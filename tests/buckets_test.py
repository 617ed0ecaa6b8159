"""Runs in buckets: the real services' servers, over HTTP."""

import contextlib
import json
import random
import signal
import socket

import numpy as np
import pytest

import vse_jax
from tests.helpers import buckets
from tests.helpers.buckets import BUCKET, network
from tests.helpers.programs import (
    assert_same_run,
    one_line_error,
    run,
    start,
    wait_for,
)
from vse_jax.base import lock
from vse_jax.base.buckets import UNFINISHED, BucketPath
from vse_jax.base.errors import InputError
from vse_jax.base.files import (
    any_path,
    local_copy,
    whole_file,
    whole_folder,
    write_atomically,
)
from vse_jax.base.lock import only_writer
from vse_jax.command_line import PathParser

pytestmark = pytest.mark.system
both = pytest.mark.parametrize("scheme", ["gs", "s3"])


@pytest.fixture
def folder(in_buckets, scheme, request):
    """A new folder in a bucket."""
    return any_path(f"{scheme}://{BUCKET}/{request.node.name}", "--workdir")


# ---- Files ---------------------------------------------------------------------------


@both
class TestFiles:
    def test_an_object_is_whole_or_not_there(self, folder):
        with contextlib.suppress(ZeroDivisionError), whole_file(folder / "a") as file:
            file.write_bytes(b"half")
            _ = 1 / 0
        assert not (folder / "a").exists()
        assert not folder.is_dir()
        with whole_file(folder / "a") as file:
            file.write_bytes(b"whole")
        write_atomically(folder / "b" / "c", b"deeper")
        assert (folder / "a").read_bytes() == b"whole"
        assert folder.is_dir()
        assert not folder.is_file()
        assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]
        assert sorted(folder.glob("*")) == [folder / "a", folder / "b"]
        with pytest.raises(ValueError, match="write_bytes"):
            (folder / "a").open("w")

    def test_a_folder_is_replaced_or_says_that_it_is_not_whole(self, folder):
        for names in ("old", "both"), ("new", "both"):
            with whole_folder(folder, replace=True) as new:
                for name in names:
                    (new / name).write_bytes(names[0].encode())
        with local_copy(folder) as copy:
            found = {file.name: file.read_bytes() for file in copy.iterdir()}
        assert found == {"new": b"new", "both": b"new"}
        with pytest.raises(InputError, match="is already there"), whole_folder(folder):
            pass
        (folder / UNFINISHED).write_bytes(b"")  # a kill leaves it
        with pytest.raises(InputError, match="not written to its end"):
            local_copy(folder).__enter__()

    def test_what_is_missing_is_named(self, folder):
        with pytest.raises(FileNotFoundError) as error:
            (folder / "none").read_bytes()
        assert error.value.filename == str(folder / "none")
        elsewhere = any_path(f"{str(folder)[:2]}://nowhere/run/config.json", "")
        with pytest.raises(OSError, match="there is no bucket 'nowhere'") as written:
            write_atomically(elsewhere, b"")
        assert written.value.filename == str(elsewhere)


# ---- One writer ----------------------------------------------------------------------


@both
class TestOneWriter:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        monkeypatch.setattr(lock, "BEAT", 0.3)
        monkeypatch.setattr(lock, "GONE", 1.5)

    def test_the_second_is_told_of_the_first(self, folder, monkeypatch):
        path = folder / "lock"
        with only_writer(path, "trains here"):
            holder = json.loads(path.read_bytes())
            who = f"pid {holder['pid']} on {socket.gethostname()}, since"
            # Of this host, a process of this number would count as ended.
            monkeypatch.setattr(lock, "_boot", lambda: "another")
            with pytest.raises(InputError) as error:
                only_writer(path, "trains here").__enter__()
            assert str(error.value).startswith(f"{folder}: another process ({who}")
        assert not path.exists()

    def test_what_gives_no_sign_of_life_is_taken_over(self, folder, caplog):
        path = folder / "lock"
        left = {"host": "elsewhere", "pid": 1, "since": "2026", "token": "x"}
        path.write_bytes(json.dumps(left).encode())
        with only_writer(path, "trains here"):
            assert json.loads(path.read_bytes())["host"] == socket.gethostname()
        assert not path.exists()


# ---- What is refused -----------------------------------------------------------------


def test_other_urls_and_missing_packages(monkeypatch):
    parser = PathParser(bucket="--workdir")
    with pytest.raises(InputError, match=r"--workdir: hdfs://x/y: neither a folder"):
        parser.parse("hdfs://x/y")
    with pytest.raises(InputError, match="names no bucket"):
        parser.parse("gs://")
    with pytest.raises(ValueError, match="needs a local path"):
        PathParser().parse("gs://x/y")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = r"package gcsfs is not installed: pip install 'vse_jax\[gcs\]'"
    with pytest.raises(InputError, match=line):
        parser.parse("gs://x/y")


@both
def test_no_bucket_and_no_rights(scheme, services, environment, tiny_root):
    config = f"--config=tests/helpers/tiny.py:{tiny_root}"
    there = environment | buckets.environment(**services)
    line = one_line_error([config, f"--workdir={scheme}://nowhere/run"], there)
    assert f"{scheme}://nowhere/run/lock: there is no bucket 'nowhere'" in line
    with network(services[scheme], 0) as proxy:
        proxy.refuses = 403
        here = environment | buckets.environment(**{**services, scheme: proxy.address})
        line = one_line_error([config, f"--workdir={scheme}://{BUCKET}/run"], here)
        assert f"error: {scheme}://{BUCKET}/run/lock: Permission denied" in line


# ---- Runs ----------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path):
    """What a bucket's folder holds, in a local one."""

    def copy(workdir: BucketPath):
        with local_copy(workdir) as files:
            return files.rename(tmp_path / "copy")

    return copy


@both
def test_a_run_in_a_bucket(
    scheme, folder, services, environment, tiny_args, trained, tmp_path, copied
):
    """Stopped, killed, and gone on with: it is the run on a disk; all modes read it."""
    there = environment | buckets.environment(**services)
    root = folder.parent / f"data-{scheme}" / "tiny"
    config = [*tiny_args, f"--config.data.export_to={tmp_path / 'tiny'}"]
    run([*config, "--mode=export"], environment)
    local = any_path(tiny_args[0].partition(":")[2], "")
    for file in (tmp_path / "tiny").rglob("*"):
        if file.is_file():
            (root / str(file.relative_to(tmp_path / "tiny"))).upload(file)
    (root.parent / "vocab/vocab.txt").upload(local.parent / "vocab" / "vocab.txt")
    train = [
        *tiny_args,
        f"--workdir={folder}",
        f"--config.data.root={root}",
        "--config.data.format=tfds",
        f"--config.data.cache={tmp_path / 'cache'}",
    ]

    process = start(train, there)
    saved = folder / "checkpoints" / "7" / "commit_success.txt"
    assert wait_for(saved.exists, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert not (folder / "lock").exists()
    at = random.uniform(0, 1)
    process = start(train, there)
    wait_for(lambda: (folder / "lock").exists(), process)
    with contextlib.suppress(Exception):
        process.wait(timeout=2 + 4 * at)
    process.kill()
    process.communicate()
    run(train, there)
    assert_same_run(copied(folder), trained[0])

    run([f"--workdir={folder}", "--mode=eval"], there)
    expected = json.loads((trained[0] / "eval_test.json").read_text())
    assert json.loads((folder / "eval_test.json").read_bytes()) == expected
    run([f"--workdir={folder}", "--mode=embed"], there)
    out, _ = run([f"--workdir={folder}", "--mode=plot"], there)
    assert f"{folder}/coefficients.png" in out
    run([f"--workdir={folder}", "--mode=push"], there)
    mine, theirs = vse_jax.load(str(folder)), vse_jax.load(trained[0])
    captions = ["a red cross at the left", "a blue bar"]
    vectors = theirs.encode_captions(captions)
    np.testing.assert_array_equal(mine.encode_captions(captions), vectors)
    shared = vse_jax.load(str(folder / "share"))
    np.testing.assert_array_equal(shared.encode_captions(captions), vectors)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.json", "run.json", "vocab.txt", "metrics.jsonl", "eval_test.json"),
        *("checkpoints", "tensorboard", "embeddings", "share"),
        *(
            "cutoff.json",
            "curves.png",
            "retrieval.png",
            "coefficients.png",
            "coefficients.svg",
        ),
    }


@both
def test_a_bad_network(
    scheme, folder, services, environment, tiny_args, trained, copied
):
    """One of twenty requests fails: the run is still the one on a disk."""
    with network(services[scheme], 0.05, stalls=0) as proxy:
        here = buckets.environment(**{**services, scheme: proxy.address})
        # Saved at the ends of epochs only.
        run([tiny_args[0], f"--workdir={folder}"], environment | here)
        assert proxy.bad > 5
    assert_same_run(copied(folder), trained[0])


def test_two_runs_in_one_folder(services, environment, tiny_args):
    there = environment | buckets.environment(**services)
    workdir = f"--workdir=gs://{BUCKET}/two"
    first = start([*tiny_args, workdir, "--config.num_epochs=10000"], there)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in buckets.environment(**services).items():
                patch.setenv(name, value)
            path = any_path(f"gs://{BUCKET}/two/lock", "")
            assert wait_for(path.exists, first)
        line = one_line_error([*tiny_args, workdir], there)
        assert f"gs://{BUCKET}/two: another process (pid {first.pid} on" in line
    finally:
        first.kill()
        first.communicate()
