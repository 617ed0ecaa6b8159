"""Two hosts on one machine: a network, a name and folders of its own for each."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

NAMES = ("vse-a", "vse-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
OUTSIDE = "10.77.0.254"  # this machine, for both
_SWITCH = "vse-switch"


def possible() -> bool:
    """Whether this user may make network namespaces here."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"vse-{os.getpid()}"  # all workers of the tests ask at the same moment
    steps = (["add", name], ["exec", name, "true"], ["del", name])
    ended = [
        subprocess.run(["ip", "netns", *step], check=False, capture_output=True)
        for step in steps
    ]
    return all(step.returncode == 0 for step in ended)


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Both hosts, with a cable each to a switch, as this machine has one."""
    try:
        _ip(f"link add {_SWITCH} type bridge")
        _ip(f"addr add {OUTSIDE}/24 dev {_SWITCH}")
        _ip(f"link set {_SWITCH} up")
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            _ip(f"netns add {name}")
            _ip(f"link add {name} type veth peer name cable netns {name}")
            _ip(f"link set {name} master {_SWITCH} up")
            _ip(f"-n {name} addr add {address}/24 dev cable")
            _ip(f"-n {name} link set lo up")
            _ip(f"-n {name} link set cable up")
            # gloo asks for the address of the host's own name.
            hosts = Path("/etc/netns") / name / "hosts"
            hosts.parent.mkdir(parents=True, exist_ok=True)
            hosts.write_text(f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n")
        yield
    finally:
        for name in NAMES:
            _ip(f"netns del {name}")
            shutil.rmtree(Path("/etc/netns") / name)
        _ip(f"link del {_SWITCH}")


def plug() -> None:
    _ip(f"link set {NAMES[0]} master {_SWITCH}")


def pull() -> None:
    """Nothing that the first host sends or is sent arrives, and nobody is told."""
    _ip(f"link set {NAMES[0]} nomaster")


def python(host: int, hidden: Path) -> list[str]:
    """The Python of a host that finds `hidden`, a folder of the other one, empty."""
    hide = f'mount -t tmpfs none "{hidden}" && exec "$@"'
    return ["ip", "netns", "exec", NAMES[host], "sh", "-c", hide, "-", sys.executable]


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)
