"""What a compiled program does to its devices, read from its text and its analyses.

XLA's analyses count the body of a loop once; here it counts as often as it runs.
"""

import collections
import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jax.stages import Compiled

_ELEMENT = {"pred": 1, "bf16": 2, "f16": 2}  # bytes; others end in their bits
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z\-]*)\((.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%(\S+) \(.*\{$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
# Attributes that name a computation which its instruction runs.
_CALLS = re.compile(
    r"\b(?:calls|to_apply|body|true_computation|false_computation)=%([\w.\-]+)"
)
_NO_ESTIMATE = 2**40  # cycles; libtpu's way to say infinite


@dataclass(frozen=True)
class Collective:
    """kind, and shape of the result; of one device, in one run of the program:
    times, and bytes that the device sends each time."""

    kind: str
    shape: str
    times: int
    sent: float


@dataclass(frozen=True)
class Program:
    """A compiled program, on one device.

    arguments, temporaries: bytes. peak: both, the results and the program's own code.
    flops: XLA's count, and that of what a loop repeats. cycles: what the TPU's compiler
    expects, by source line; empty where the compiler says nothing. All branches of a
    conditional count.
    """

    arguments: int
    temporaries: int
    peak: int
    flops: float
    collectives: tuple[Collective, ...]
    cycles: dict[str, int]

    def sent(self) -> dict[str, float]:
        """Bytes that the device sends, by kind of collective."""
        by_kind: dict[str, float] = collections.defaultdict(float)
        for c in self.collectives:
            by_kind[c.kind] += c.times * c.sent
        return dict(by_kind)


def read_program(compiled: Compiled) -> Program:
    """What a compiled program does to each of its devices."""
    memory = compiled.memory_analysis()
    assert memory is not None
    text = ProgramText(compiled.as_text() or "")
    cost = compiled.cost_analysis() or {}
    return Program(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes,
        flops=cost.get("flops", 0.0) + text.repeated_flops(),
        collectives=text.collectives(),
        cycles=text.cycles_by_line(),
    )


@dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    kind: str
    rest: str  # operands and attributes
    inside: str  # its computation


class ProgramText:
    """The text of an optimised HLO module, as XLA prints it."""

    def __init__(self, text: str):
        header = text.partition("\n\n")[0]
        counts = re.findall(r"\b(?:replica_count|num_partitions)=(\d+)", header)
        self._devices = math.prod(map(int, counts))
        self._computations: dict[str, list[_Instruction]] = {}
        self._entry = ""
        self._tables: dict[str, list[str]] = collections.defaultdict(list)
        here: list[_Instruction] | None = None
        table = name = ""
        for line in text.splitlines():
            if start := _COMPUTATION.match(line):
                name = start[2]
                here = self._computations.setdefault(name, [])
                self._entry = name if start[1] else self._entry
            elif line.startswith("}"):
                here = None
            elif here is not None:
                if found := _INSTRUCTION.match(line):
                    called, shape, kind, rest = found.groups()
                    here.append(_Instruction(called, shape, kind, rest, name))
            elif line.isalpha():
                table = line  # FileNames, FunctionNames, FileLocations, StackFrames
            elif line[:1].isdecimal():
                self._tables[table].append(line.partition(" ")[2])

    def collectives(self) -> tuple[Collective, ...]:
        """Those between devices; the same shape and kind in one entry."""
        found: dict[tuple[str, str, float], int] = collections.Counter()
        for instruction, times in self._runs():
            kind = instruction.kind.removesuffix("-start")
            size = self._group_size(instruction.rest) if kind in _COLLECTIVES else 1
            share = _SENT[kind](size) if size > 1 else 0.0
            if instruction.inside.startswith("all-reduce-scatter"):
                # What a TPU's reduce-scatter is called: the sum of all, of which each
                # device gets its piece only.
                kind, share = "reduce-scatter", share / 2
            for shape in _results(instruction) if share else ():
                found[kind, shape, _bytes(shape) * share] += times
        return tuple(
            Collective(kind, shape, times, sent)
            for (kind, shape, sent), times in found.items()
        )

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

    def cycles_by_line(self) -> dict[str, int]:
        """The compiler's estimates, summed by the line of this package that asked."""
        cycles: dict[str, int] = collections.Counter()
        for instruction, times in self._runs():
            found = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
            if found and int(found[1]) < _NO_ESTIMATE:
                cycles[self._line_of(instruction)] += int(found[1]) * times
        return dict(cycles)

    def repeated_flops(self) -> float:
        """FLOP of products and convolutions in loops, but for the first time round."""
        again = (
            (times - 1) * self._flops(instruction)
            for instruction, times in self._runs()
            if instruction.kind in ("dot", "convolution") and times > 1
        )
        return sum(again, start=0.0)

    def _runs(self) -> Iterator[tuple[_Instruction, int]]:
        """Every instruction with the number of times that the program runs it."""
        waiting = [(self._entry, 1)]
        while waiting:
            computation, times = waiting.pop()
            for instruction in self._computations.get(computation, ()):
                yield instruction, times
                inner = times
                if instruction.kind == "while":
                    inner *= self._trips(instruction)
                waiting += [(name, inner) for name in _called(instruction)]

    def _trips(self, loop: _Instruction) -> int:
        """How often a loop's body runs: its count, or the bound of its condition."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
        if known:
            return int(known[1])
        condition = re.search(r"condition=%([\w.\-]+)", loop.rest)
        bounds = [
            int(bound[1])
            for i in self._computations.get(condition[1] if condition else "", ())
            if i.kind == "constant" and (bound := re.match(r"(\d+)\)", i.rest))
        ]
        return max(bounds, default=1)

    def _flops(self, instruction: _Instruction) -> float:
        """Two a multiply-add; the zeros between a dilated input's values are free."""
        output = _elements(instruction.shape)
        names = re.findall(r"%([\w.\-]+)", instruction.rest.partition(")")[0])
        left, right = (_dimensions(self._shapes.get(name, "")) for name in names[:2])
        if instruction.kind == "dot":
            contracted = re.search(
                r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest
            )
            axes = [int(a) for a in contracted[1].split(",") if a] if contracted else []
            return 2.0 * output * math.prod(left[a] for a in axes if a < len(left))
        labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.rest)
        if not labels or len(labels[1]) != len(right):
            return 0.0
        kernel = math.prod(right) / right[labels[1].index("o")]
        dilated = re.search(r"[lr]hs_dilate=([\dx]+)", instruction.rest)
        skipped = math.prod(map(int, dilated[1].split("x"))) if dilated else 1
        return 2 * output * kernel / skipped

    @functools.cached_property
    def _shapes(self) -> dict[str, str]:
        instructions = self._computations.values()
        return {i.name: i.shape for computation in instructions for i in computation}

    @functools.cached_property
    def _frames(self) -> dict[str, list[tuple[int, ...]]]:
        return {
            table: [tuple(map(int, re.findall(r"=(\d+)", line))) for line in lines]
            for table, lines in self._tables.items()
        }

    def _line_of(self, instruction: _Instruction) -> str:
        """FILE:LINE, the innermost that is in this package or beside it."""
        found = re.search(r"stack_frame_id=(\d+)", instruction.rest)
        frame = int(found[1]) if found else 0
        while frame:
            location, parent = self._frames["StackFrames"][frame - 1]
            file, _, line = self._frames["FileLocations"][location - 1][:3]
            name = self._tables["FileNames"][file - 1].strip('"')
            if "vse_jax/" in name and "site-packages" not in name:
                return f"vse_jax/{name.rpartition('vse_jax/')[2]}:{line}"
            frame = parent - 1  # 0 for the outermost one, whose parent is written 1
        return "elsewhere"


def _called(instruction: _Instruction) -> list[str]:
    """The computations that an instruction runs, once each time."""
    if instruction.kind in ("reduce", "scatter", "sort", "map", "reduce-scatter"):
        return []  # an operation on two numbers
    # A TPU's all-gather that runs beside other work stands in its start, in each fusion
    # that it runs beside and in its done: what counts is the start.
    if instruction.name.startswith("async-collective-done"):
        return []
    branches = re.search(r"branch_computations=\{(.*?)\}", instruction.rest)
    names = _CALLS.findall(instruction.rest)
    names += re.findall(r"%([\w.\-]+)", branches[1]) if branches else []
    return [name for name in names if not name.startswith("async_collective_fusion")]


# Parts of the result's bytes that a device of n sends, in a ring.
_SENT: dict[str, Callable[[int], float]] = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: float(n - 1),
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}


def _results(instruction: _Instruction) -> list[str]:
    """The arrays that a collective makes: f32[128,1024], …"""
    shapes = [f"{kind}[{dims}]" for kind, dims in _ARRAY.findall(instruction.shape)]
    if instruction.kind.endswith("-start") and not instruction.kind.startswith(
        "all-reduce"
    ):
        # (operands, results, the device's own notes)
        arrays = [shape for shape in shapes if shape not in ("u32[]", "s32[]")]
        return arrays[len(arrays) // 2 :]
    return shapes


def _dimensions(shape: str) -> list[int]:
    found = _ARRAY.search(shape)
    return [int(n) for n in found[2].split(",") if n] if found else []


def _elements(shape: str) -> int:
    return math.prod(_dimensions(shape))


def _bytes(shape: str) -> int:
    kind = shape.partition("[")[0]
    bits = re.search(r"\d+$", kind)
    each = _ELEMENT.get(kind) or (max(int(bits[0]) // 8, 1) if bits else 1)
    return each * _elements(shape)
