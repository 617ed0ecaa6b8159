import os
import subprocess
import sys

from benchmarks.compare import Others

WORK = """
import time
while time.process_time() < 1: pass
print("done", flush=True)
input()
"""


def test_ones_own_processes_do_not_count(monkeypatch):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", WORK]
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        used = {}
        groups = {"it is mine": process.pid, "nothing is": 0}
        for name, group in groups.items():
            monkeypatch.setattr(os, "getpgrp", lambda group=group: group)
            used[name] = Others()
        process.stdout.readline()
        for name, group in groups.items():
            monkeypatch.setattr(os, "getpgrp", lambda group=group: group)
            used[name] = used[name].cores()
        process.communicate(b"\n")
    assert used["nothing is"] > used["it is mine"] + 0.05
