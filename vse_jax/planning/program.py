"""What a compiled program costs each of its devices.

JAX's analyses give memory and FLOP. The program's text gives the rest: collectives,
the products that a loop repeats (XLA's analysis counts a loop's body once), and the
cycles that the TPU's compiler expects.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from jax.stages import Compiled

from vse_jax.planning.topology import Chip

# What a device of n sends around a ring, in parts of the result's bytes.
_SENT = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1.0,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
# The same between n slices, in parts of what a device gives: it sends its own.
_SENT_BETWEEN = {
    "ALL_REDUCE": lambda n: 2 * (n - 1) / n,
    "ALL_GATHER": lambda n: n - 1.0,
    "REDUCE_SCATTER": lambda n: (n - 1) / n,
    "ALL_TO_ALL": lambda n: (n - 1) / n,
    "ONE_TO_ONE": lambda n: 1.0,
}
_COMPUTATION = re.compile(r"(ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z\-]*)\((.*)")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
# Attributes that name a computation which the instruction runs.
_CALLS = re.compile(
    r"\b(?:calls|to_apply|body|true_computation|false_computation)=%([\w.\-]+)"
)
_NO_ESTIMATE = 2**40  # cycles: libtpu's infinity
_HOP = 1e-6  # s from one TPU to the next; √n of them, the side of a torus of n chips
_TRIP = 5e-5  # s from one slice to another through both hosts: assumed, not published


@dataclass(frozen=True)
class Collective:
    """kind, and shape of its result; how often one run of the program executes it, and
    whether a loop does; bytes that a device sends each time; FILE:LINE of the cause."""

    kind: str
    shape: str
    times: int
    looped: bool
    sent: float
    line: str


@dataclass(frozen=True)
class Program:
    """A compiled program, on one device; all branches of a conditional count.

    peak_bytes: arguments and temporaries with the results and the program's code.
    flops: XLA's count and what loops repeat. sent_bytes: by kind of collective.
    collectives: the most expensive first. cycles_by_line: what the TPU's compiler
    expects, the largest first. waiting_s: while nothing is computed, since what comes
    next is still being sent; both for TPUs only.
    """

    arguments_bytes: int
    temporaries_bytes: int
    peak_bytes: int
    flops: float
    sent_bytes: dict[str, float]
    collectives: list[Collective]
    cycles_by_line: dict[str, int]
    waiting_s: float = 0.0


def read_program(compiled: Compiled, chip: Chip | None = None) -> Program:
    """The cost of a compiled program to each of its devices; chip: if they are TPUs."""
    memory = compiled.memory_analysis()
    assert memory is not None
    arguments = memory.argument_size_in_bytes
    temporaries = memory.temp_size_in_bytes
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    code = memory.generated_code_size_in_bytes
    cost = compiled.cost_analysis() or {}
    text = ProgramText(compiled.as_text() or "")
    collectives = sorted(text.collectives(), key=lambda c: -c.times * c.sent)
    sent: dict[str, float] = defaultdict(float)
    for c in collectives:
        sent[c.kind] += c.times * c.sent
    return Program(
        arguments_bytes=arguments,
        temporaries_bytes=temporaries,
        peak_bytes=arguments + temporaries + results + code,
        flops=cost.get("flops", 0.0) + text.repeated_flops(),
        sent_bytes=dict(sent),
        collectives=collectives,
        cycles_by_line=dict(text.cycles_by_line().most_common()),
        waiting_s=text.waiting_s(chip) if chip else 0.0,
    )


class _Instruction(NamedTuple):
    name: str
    shape: str
    kind: str
    rest: str  # operands and attributes
    computation: str  # that it belongs to

    def find(self, pattern: str) -> str | None:
        """The group of a pattern in the operands and attributes."""
        found = re.search(pattern, self.rest)
        return found[1] if found else None

    @property
    def cycles(self) -> int:
        """What the TPU's compiler expects; 0 where it does not say."""
        cycles = int(self.find(r'"estimated_cycles":"(\d+)"') or _NO_ESTIMATE)
        return cycles if cycles < _NO_ESTIMATE else 0


class ProgramText:
    """The text of an optimized HLO module, as XLA prints it."""

    def __init__(self, text: str):
        header = text.partition("\n\n")[0]
        counts = re.findall(r"\b(?:replica_count|num_partitions)=(\d+)", header)
        self._devices = math.prod(map(int, counts))
        self._computations: dict[str, list[_Instruction]] = {}
        self._shapes: dict[str, str] = {}
        name = entry = ""
        for line in text.splitlines():
            if start := _COMPUTATION.match(line):
                name = start[2]
                entry = name if start[1] else entry
                self._computations[name] = []
            elif found := _INSTRUCTION.match(line):
                result, shape, kind, rest = found.groups()
                instruction = _Instruction(result, shape, kind, rest, name)
                self._computations[name].append(instruction)
                self._shapes[result] = shape
        self._runs = list(self._run(entry, 1))
        self._source_lines = _source_lines(text)

    def collectives(self) -> list[Collective]:
        """Those between devices; equal ones share an entry."""
        found: Counter[tuple[str, str, bool, float, str]] = Counter()
        for instruction, times in self._runs:
            kind, _, arrays = self._sends(instruction)
            for shape, sent in arrays:
                line = self._line(instruction)
                found[kind, shape, times > 1, sent, line] += times
        return [
            Collective(kind, shape, times, looped, sent, line)
            for (kind, shape, looped, sent, line), times in found.items()
        ]

    def cycles_by_line(self) -> Counter[str]:
        """The compiler's estimates, summed by this package's line that caused them."""
        cycles: Counter[str] = Counter()
        for instruction, times in self._runs:
            if instruction.cycles:
                cycles[self._line(instruction)] += instruction.cycles * times
        return cycles

    def waiting_s(self, chip: Chip) -> float:
        """Seconds in which a TPU computes nothing: what is sent, as far as not hidden.

        The text is in the order of the schedule. The links take one collective at a
        time, from its start on; the device goes on until it comes to its end. So does
        the network between slices.
        """
        now = computed = free = network_free = 0.0  # free: when the links are
        ends: dict[str, float] = {}  # of what is being sent
        received: dict[str, str] = {}  # what each recv waits for
        end = ""
        for instruction, times in self._runs:
            seconds = instruction.cycles * times / chip.clock
            now, computed = now + seconds, computed + seconds
            name, kind = instruction.name, instruction.kind
            _, devices, arrays = self._sends(instruction)
            transfer = instruction.find(r'host_transfer_rendezvous="([^"]*)"') or name
            if arrays and kind == "send":
                seconds = sum(sent for _, sent in arrays) / chip.network + _TRIP
                network_free = max(now, network_free) + times * seconds
                ends[transfer] = network_free
            elif kind == "recv":
                received[name] = transfer
            elif arrays:
                seconds = sum(sent for _, sent in arrays) / chip.links
                free = max(now, free) + times * (seconds + math.sqrt(devices) * _HOP)
                if kind.endswith("-start"):
                    end = name
                if end:
                    ends[end] = free
                else:
                    now = free
                end = ""
            elif name.startswith("async-collective-start"):  # the next one is in it
                end = name.replace("start", "done")
            elif name.startswith("async-collective-done"):
                now = max(now, ends.get(name, now))
            elif kind.endswith("-done"):
                start = instruction.find(r"%([\w.\-]+)") or ""
                now = max(now, ends.get(received.get(start, start), now))
        return now - computed

    def _sends(
        self, instruction: _Instruction
    ) -> tuple[str, int, list[tuple[str, float]]]:
        """A collective's kind, devices, and results with the bytes that a device sends.

        No results where nothing is sent to another device.
        """
        transfer = instruction.find(r'_xla_megascale_transfer_type="(\w+)"')
        if instruction.kind == "send" and transfer:
            slices = instruction.find(r'_xla_megascale_target="\{([\d,:]+)\}') or ""
            count = 0
            for part in slices.split(","):
                first, _, last = part.partition(":")
                count += int(last or first) - int(first) + 1
            shape = _results(instruction)[0]
            sent = _bytes(shape) * _SENT_BETWEEN[transfer](count)
            kind = f"{transfer.lower().replace('_', '-')} between slices"
            return kind, count, [(shape, sent)]
        kind = instruction.kind.removesuffix("-start")
        devices = self._group_size(instruction.rest) if kind in _SENT else 1
        if devices == 1:
            return kind, 1, []
        sent = _SENT[kind](devices)
        if instruction.computation.startswith("all-reduce-scatter"):
            # How a TPU writes a reduce-scatter: the sum of all, of which each device
            # keeps a part.
            kind, sent = "reduce-scatter", sent / 2
        arrays = [(shape, _bytes(shape) * sent) for shape in _results(instruction)]
        return kind, devices, arrays

    def _line(self, instruction: _Instruction) -> str:
        """This package's line that caused an instruction."""
        return self._source_lines[int(instruction.find(r"stack_frame_id=(\d+)") or 0)]

    def repeated_flops(self) -> float:
        """FLOP of products and convolutions in loops, without the first iteration."""
        return math.fsum(
            (times - 1) * self._flops(instruction)
            for instruction, times in self._runs
            if times > 1 and instruction.kind in ("dot", "convolution")
        )

    def _run(self, computation: str, times: int) -> Iterator[tuple[_Instruction, int]]:
        """Every instruction with the number of times that the program executes it."""
        for instruction in self._computations.get(computation, ()):
            yield instruction, times
            inner = times
            if instruction.kind == "while":
                inner *= self._trips(instruction)
            for name in _called(instruction):
                yield from self._run(name, inner)

    def _trips(self, loop: _Instruction) -> int:
        """A loop's iterations: as the compiler knows, or its condition's bound."""
        if known := loop.find(r'"known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition = loop.find(r"condition=%([\w.\-]+)") or ""
        inside = self._computations.get(condition, [])
        constants = (i for i in inside if i.kind == "constant")
        return max((int(i.find(r"^(\d+)\)") or 1) for i in constants), default=1)

    def _group_size(self, attributes: str) -> int:
        """Devices that take part together; 2 for the pairs of a permutation."""
        if "source_target_pairs" in attributes:
            return 2
        if "replica_groups={}" in attributes:
            return self._devices
        if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
            return len(listed[1].split(","))
        if tiled := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
            return int(tiled[1])
        if axes := re.search(r"replica_groups=mesh\[([^]]*)\].*?\{(.*?)\}", attributes):
            sizes = {a: int(n) for a, n in re.findall(r"'(\w+)'=(\d+)", axes[1])}
            return math.prod(sizes[a] for a in re.findall(r"'(\w+)'", axes[2]))
        return 1

    def _flops(self, instruction: _Instruction) -> float:
        """Two a multiply-add; the zeros between a dilated input's values are free."""
        rest, output = instruction.rest, math.prod(_dimensions(instruction.shape))
        operands = re.findall(r"%([\w.\-]+)", rest.partition(")")[0])[:2]
        left, right = (_dimensions(self._shapes.get(name, "")) for name in operands)
        if instruction.kind == "dot":
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", rest)
            axes = map(int, contracted[1].split(",")) if contracted else ()
            return 2.0 * output * math.prod(left[a] for a in axes if a < len(left))
        labels = re.search(r"dim_labels=\w+_(\w+)->", rest)
        if not labels or len(labels[1]) != len(right):
            return 0.0
        kernel = math.prod(right) / right[labels[1].index("o")]
        dilated = re.search(r"[lr]hs_dilate=([\dx]+)", rest)
        zeros = math.prod(map(int, dilated[1].split("x"))) if dilated else 1
        return 2 * output * kernel / zeros


def _called(instruction: _Instruction) -> list[str]:
    """The computations that an instruction runs, once each time."""
    if instruction.kind in ("reduce", "scatter", "sort", "map", "reduce-scatter"):
        return []  # an operation on two numbers
    # A TPU writes an all-gather that overlaps with other work into its start, into each
    # fusion that it overlaps with and into its done: only the start counts.
    if instruction.name.startswith("async-collective-done"):
        return []
    names = _CALLS.findall(instruction.rest)
    if branches := re.search(r"branch_computations=\{(.*?)\}", instruction.rest):
        names += re.findall(r"%([\w.\-]+)", branches[1])
    return [name for name in names if not name.startswith("async_collective_fusion")]


def _results(instruction: _Instruction) -> list[str]:
    """The arrays that a collective makes: f32[128,1024], …"""
    shapes = [f"{kind}[{dims}]" for kind, dims in _ARRAY.findall(instruction.shape)]
    if instruction.kind.endswith("-start") and instruction.kind != "all-reduce-start":
        # (operands, results, the device's own notes)
        arrays = [shape for shape in shapes if shape not in ("u32[]", "s32[]")]
        return arrays[len(arrays) // 2 :]
    return shapes


def _source_lines(text: str) -> dict[int, str]:
    """Stack frame → FILE:LINE of its innermost call in this package; 0: no frame."""
    numbered = re.compile(r"^\d+ (.*)$", re.MULTILINE)
    tables = {
        name: numbered.findall(text.partition(f"\n{name}\n")[2].partition("\n\n")[0])
        for name in ("FileNames", "FileLocations", "StackFrames")
    }
    lines = {0: "elsewhere"}
    for number, frame in enumerate(tables["StackFrames"], start=1):
        # Numbers count from 1; a frame's parent comes before it, written one too high.
        location, parent = map(int, re.findall(r"=(\d+)", frame))
        file, _, line = re.findall(r"=(\d+)", tables["FileLocations"][location - 1])[:3]
        name = tables["FileNames"][int(file) - 1].strip('"')
        lines[number] = lines[parent - 1]
        if "vse_jax/" in name and "site-packages" not in name:
            lines[number] = f"vse_jax/{name.rpartition('vse_jax/')[2]}:{line}"
    return lines


def _dimensions(shape: str) -> list[int]:
    found = _ARRAY.search(shape)
    return [int(n) for n in found[2].split(",") if n] if found else []


def _bytes(shape: str) -> int:
    bits = re.search(r"\d+", shape.partition("[")[0])  # pred has none: a byte
    return (max(int(bits[0]) // 8, 1) if bits else 1) * math.prod(_dimensions(shape))
