"""What is read from compiled programs, against what is known of them by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vse_jax.distributed.mesh import make_mesh
from vse_jax.planning.program import ProgramText, read_program
from vse_jax.planning.topology import Chip

SLOW = Chip(memory=0, flops=2e6, links=1e6, network=1e5, multipliers=1)


@pytest.fixture
def mesh(tiny_config):
    return make_mesh(tiny_config, jax.devices()[:4])


def compiled(function, mesh, specs, out, shapes):
    places = [NamedSharding(mesh, spec) for spec in specs]
    jitted = jax.jit(
        function, in_shardings=places, out_shardings=NamedSharding(mesh, out)
    )
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return read_program(jitted.lower(*arrays).compile())


def test_a_product_over_a_shared_axis_is_summed_by_all(mesh):
    rows, columns = P("data", None), P(None, "data")
    found = compiled(jnp.matmul, mesh, [columns, rows], P(), [(8, 16), (16, 32)])
    (summed,) = found.collectives
    assert (summed.kind, summed.shape, summed.times) == ("all-reduce", "f32[8,32]", 1)
    # Around a ring of four: three quarters of the result to add up, and as much to
    # hand out.
    assert summed.sent == 2 * 3 / 4 * 8 * 32 * 4
    assert found.flops == pytest.approx(2 * 8 * 4 * 32, rel=0.2)
    assert found.arguments_bytes == 4 * (8 * 4 + 4 * 32)
    assert found.peak_bytes >= found.arguments_bytes + 8 * 32 * 4


def test_what_a_loop_does_counts_as_often_as_it_runs(mesh):
    def chain(x, kernel):
        def step(x, _):
            return jnp.tanh(x @ kernel), None

        return jax.lax.scan(step, x, length=5)[0]

    columns, rows = P(None, "data"), P("data", None)
    found = compiled(chain, mesh, [columns, rows], columns, [(64, 64), (64, 64)])
    assert sum(c.times for c in found.collectives) >= 5
    # Each device has a quarter of every product.
    assert found.flops == pytest.approx(5 * 2 * 64**3 / 4, rel=0.1)


def test_the_compilers_cycles_belong_to_the_line_of_this_package_that_asked():
    text = ProgramText(
        """HloModule step

FileNames
1 "/site-packages/flax/nnx/linear.py"
2 "/home/me/vse_jax/models/bert.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=1}
2 {file_name_id=2 function_name_id=1 line=140 end_line=140 column=1 end_column=1}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}

%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %a = f32[8]{0} fusion(%p), stack_frame_id=2, c={"estimated_cycles":"10"}
}

%condition (p: s32[]) -> pred[] {
  %n = s32[] constant(12)
  ROOT %lt = pred[] compare(%p, %n), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %w = f32[8]{0} while(%p), condition=%condition, body=%body
  ROOT %b = f32[8]{0} copy(%w), c={"estimated_cycles":"3"}
}
"""
    )
    assert text.cycles_by_line() == {"vse_jax/models/bert.py:140": 120, "elsewhere": 3}


def collectives(line):
    """Those of a program for eight devices that is one line."""
    header = "HloModule step, entry_computation_layout={(f32[8])}, num_partitions=8"
    main = f"ENTRY %main (p: f32[8]) -> f32[8] {{\n{line}\n}}\n"
    return ProgramText(f"{header}\n\n{main}").collectives()


@pytest.mark.parametrize(
    ("groups", "shape", "kind", "sent"),
    [
        ("{{0,1},{2,3}}", "f32[6]", "all-gather", 12),
        ("[2,4]<=[8]", "bf16[8]", "all-gather", 12),
        ("mesh['a'=2,'b'=4] {'b'}", "f32[8]", "all-reduce", 48),
        (
            "mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}",
            "f32[8]",
            "all-gather",
            24,
        ),
        ("{{0,1,2,3}}", "f32[2]", "reduce-scatter", 24),
        ("{}", "f32[8]", "all-reduce", 56),
    ],
)
def test_groups_as_xla_writes_them(groups, shape, kind, sent):
    line = f"  %x = {shape}{{0}} {kind}(%p), replica_groups={groups}, dimensions={{0}}"
    (found,) = collectives(line)
    assert (found.kind, found.shape, found.sent) == (kind, shape, sent)


@pytest.mark.parametrize(
    ("shapes", "kind", "sent"),
    [
        ("(f32[4], f32[16])", "all-gather", {"f32[16]": 48}),
        (
            "((f32[2], f32[4]), (f32[8], f32[16]))",
            "all-gather",
            {"f32[8]": 24, "f32[16]": 48},
        ),
        ("(f32[8], f32[8], u32[], u32[])", "collective-permute", {"f32[8]": 32}),
    ],
)
def test_collectives_that_begin_here_and_end_later(shapes, kind, sent):
    groups = "replica_groups={{0,1,2,3}}"
    if kind == "collective-permute":
        groups = "source_target_pairs={{0,1},{1,0}}"
    found = collectives(f"  %x = {shapes} {kind}-start(%p), {groups}, dimensions={{0}}")
    assert {c.shape: c.sent for c in found} == sent
    assert {c.kind for c in found} == {kind}


def test_a_tpus_fused_collectives_are_what_they_do():
    """A sum of which each keeps a piece; a gather that runs beside other work."""
    text = ProgramText(
        """
%all-reduce-scatter.1 (p: f32[8]) -> f32[4] {
  %all = f32[8]{0} all-reduce(%p), replica_groups={{0,1}}
  ROOT %piece = f32[4]{0} dynamic-slice(%all)
}

%start (p: f32[4]) -> f32[8] {
  ROOT %g.1 = f32[8]{0} all-gather(%p), replica_groups={{0,1}}, dimensions={0}
}

%async_collective_fusion.2 (p: f32[4]) -> f32[8] {
  ROOT %g.2 = f32[8]{0} all-gather(%p), replica_groups={{0,1}}, dimensions={0}
}

%done (p: f32[4]) -> f32[8] {
  ROOT %g.3 = f32[8]{0} all-gather(%p), replica_groups={{0,1}}, dimensions={0}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %a = f32[4]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
  %async-collective-start = f32[8]{0} fusion(%a), kind=kCustom, calls=%start
  %b = f32[8]{0} fusion(%a), kind=kLoop, calls=%async_collective_fusion.2
  ROOT %async-collective-done = f32[8]{0} fusion(%a), kind=kCustom, calls=%done
}
"""
    )
    found = {c.kind: (c.times, c.sent) for c in text.collectives()}
    assert found == {"reduce-scatter": (1, 16), "all-gather": (1, 16)}


def test_what_is_sent_beside_work_is_waited_for_as_far_as_the_work_is_shorter():
    """A gather of 24 + 2 µs beside 10 µs of work, then a sum of 48 + 2 µs."""
    text = ProgramText(
        """
%start (p: f32[2]) -> f32[8] {
  ROOT %g.1 = f32[8]{0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}
}

%done (p: f32[2]) -> f32[8] {
  ROOT %g.2 = f32[8]{0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (p: f32[2]) -> f32[8] {
  %async-collective-start.3 = f32[8]{0} fusion(%p), kind=kCustom, calls=%start
  %b = f32[8]{0} fusion(%p), kind=kLoop, c={"estimated_cycles":"10"}
  %async-collective-done.3 = f32[8]{0} fusion(%b), kind=kCustom, calls=%done
  ROOT %s = f32[8]{0} all-reduce(%b), replica_groups={{0,1,2,3}}
}
"""
    )
    assert text.waiting_s(SLOW) == pytest.approx(16e-6 + 50e-6)


def test_what_crosses_from_slice_to_slice_goes_over_the_network():
    """As libtpu writes it: through the hosts, here beside 10 µs of work."""
    how = (
        'is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="s",'
        '_xla_megascale_target="{1:2,4}x{0:7}",_xla_megascale_transfer_type="%s"}'
    )
    text = """
ENTRY %%main (p: f32[6]) -> f32[6] {
  %%send = (f32[6]{0}, u32[], token[]) send(%%p, %%t), %(how)s
  %%b = f32[6]{0} fusion(%%p), kind=kLoop, c={"estimated_cycles":"10"}
  %%recv = (f32[6]{0}, u32[], token[]) recv(%%t), %(how)s
  %%send-done = token[] send-done(%%send)
  %%recv-done = (f32[6]{0}, token[]) recv-done(%%recv)
}
"""
    summed = ProgramText(text % {"how": how % "ALL_REDUCE"})
    (found,) = summed.collectives()
    assert found.kind == "all-reduce between slices"
    assert (found.shape, found.times, found.sent) == ("f32[6]", 1, 2 * 2 / 3 * 24)
    # 32 bytes at 0.1 MB/s and a trip of 50 µs, less the work.
    assert summed.waiting_s(SLOW) == pytest.approx(320e-6 + 50e-6 - 10e-6)
    (found,) = ProgramText(text % {"how": how % "ALL_GATHER"}).collectives()
    assert (found.kind, found.sent) == ("all-gather between slices", 2 * 24)
