"""Two hosts that share a bucket and nothing else; the network of one is cut."""

import shutil

import pytest

from tests.distributed.cluster_test import LOST, losses
from tests.helpers import buckets, hosts
from tests.helpers.programs import start, wait_for
from vse_jax.base.files import any_path

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        not hosts.possible(), reason="needs root and iproute2, for network namespaces"
    ),
]
STEPS = 20


@pytest.fixture
def start_pair(tiny_root, environment, tmp_path, monkeypatch):
    """start_pair(workdir): a run on both, their data in places of their own."""
    roots = []
    for name in hosts.NAMES:
        shutil.copytree(tiny_root.parent / "vocab", tmp_path / name / "vocab")
        roots.append(shutil.copytree(tiny_root, tmp_path / name / "tiny"))
    args = [
        f"--config=tests/helpers/tiny.py:{tiny_root}",
        *("--config.seed=1", f"--config.max_steps={STEPS}", "--num_processes=2"),
        *("--config.checkpoint.every_steps=2", "--config.eval.batch_size=24"),
        f"--coordinator={hosts.ADDRESSES[0]}:7777",
    ]

    def both(workdir):
        return [
            start(
                [
                    *args,
                    f"--workdir={workdir}",
                    f"--config.data.root={roots[host]}",
                    f"--process_id={host}",
                ],
                environment | there | {"VSE_JAX_TIMEOUT": "20"},
                program=[*hosts.python(host, hidden=roots[1 - host]), "main.py"],
            )
            for host in range(2)
        ]

    with hosts.connected(), buckets.gcs_server(tmp_path / "gs", hosts.OUTSIDE) as url:
        there = buckets.environment(gs=url, s3="")
        for name, value in there.items():
            monkeypatch.setenv(name, value)
        yield both


def test_a_cut_connection_ends_both_and_the_run_goes_on(start_pair):
    def finish(processes, code):
        found = [process.communicate(timeout=300)[1] for process in processes]
        assert [process.returncode for process in processes] == [code, code], found
        return found

    whole = any_path(f"gs://{buckets.BUCKET}/whole", "")
    cut = whole.with_name("cut")
    finish(start_pair(whole), 0)
    processes = start_pair(cut)
    saved = cut / "checkpoints" / "4" / "commit_success.txt"
    assert wait_for(saved.exists, processes[0])
    hosts.pull()
    for err in finish(processes, 75):
        assert err.splitlines()[-1].startswith(LOST), err
    hosts.plug()
    reached = losses(cut)
    assert 0 < len(reached) < STEPS
    finish(start_pair(cut), 0)
    assert losses(cut) == losses(whole)
