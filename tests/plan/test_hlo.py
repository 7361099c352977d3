"""Counts on small programs whose answers are known, compiled for the CPU."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign import parallel
from jaxalign.models.attention import attention_mask
from jaxalign.models.flops import visible_pairs
from jaxalign.plan import hlo
from jaxalign.plan.collectives import (
    axes_of,
    find_collectives,
    needless_gathers,
    parse_groups,
    sent_by,
    whole_sums,
)
from jaxalign.plan.costs import Visible, convolution_flops, count_bytes, count_flops, count_kernels

M, K, N = 64, 32, 48


def compiled(function, *arguments):
    return hlo.parse(jax.jit(function).lower(*arguments).compile().as_text())


def test_a_product_of_matrices():
    program = compiled(jnp.matmul, jnp.ones((M, K)), jnp.ones((K, N)))
    assert count_flops(program) == {"matmul": 2 * M * K * N, "attention": 0}


def test_a_scan_counts_every_turn():
    def chain(x, weights):
        def turn(x, w):
            return jax.lax.scan(lambda y, _: (jnp.tanh(y @ w), None), x, length=3)[0], None

        return jax.lax.scan(turn, x, weights)[0]

    program = compiled(chain, jnp.ones((M, K)), jnp.ones((5, K, K)))
    assert count_flops(program)["matmul"] == 5 * 3 * 2 * M * K * K


def test_a_loop_that_depends_on_data_runs_as_often_as_said():
    def until(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1e6, lambda x: x @ w, x)

    program = compiled(until, jnp.ones((K, K)), jnp.ones((K, K)))
    assert count_flops(program, unknown_trips=7)["matmul"] == 7 * 2 * K**3


def test_bytes_of_a_slice_are_those_of_the_slice():
    def total(stack):
        return jax.lax.scan(lambda s, x: (s + jnp.tanh(x).sum(), None), 0.0, stack)[0]

    layers = jnp.ones((16, 256, 256))
    # A layer is read, its tanh written and read again; the whole stack in every turn would be 16 times as much.
    assert layers.nbytes <= count_bytes(compiled(total, layers)) <= 3.2 * layers.nbytes


def convolution(left, kernel, out, attributes):
    array = "%{} = f32[{}]{{}} parameter({})"
    text = (
        "ENTRY %main () -> f32[] {\n  " + array.format("a", left, 0) + "\n  " + array.format("b", kernel, 1)
    )
    text += f"\n  ROOT %c = f32[{out}]{{}} convolution(%a, %b), {attributes}\n}}\n"
    owner = hlo.parse(text).computations["main"]
    return convolution_flops(owner["c"], owner)


def test_products_in_the_form_of_convolutions():
    """As the TPU compiler writes them: rows as a spatial dimension, heads as a kernel that only padding lets slide."""
    assert (
        convolution("4,8,16", "16,32,1", "4,8,32", "window={size=1}, dim_labels=0bf_io0->0bf")
        == 2 * 4 * 8 * 16 * 32
    )
    heads = "window={size=1x2 pad=0_0x1_1 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f"
    assert convolution("4,8,16,1", "16,2,32,1", "4,8,2,32", heads) == 2 * 4 * 8 * 16 * 2 * 32
    summed = "window={size=4}, dim_labels=0fb_0io->bf0"
    assert convolution("4,8,16", "4,8,32", "16,32,1", summed) == 2 * 4 * 8 * 16 * 32


def test_padding_and_dilation_of_a_real_convolution_are_no_work():
    x, kernel = jnp.ones((1, 1, 10)), jnp.ones((1, 1, 3))
    program = compiled(lambda x, k: jax.lax.conv_general_dilated(x, k, (1,), "SAME"), x, kernel)
    found = [i for c in program.computations.values() for i in c.values() if i.opcode == "convolution"]
    if found:  # else the CPU compiler made something else of it
        assert count_flops(program)["matmul"] == 2 * (3 * 10 - 2)


def test_pairs_are_counted_once_and_within_the_window():
    seen = np.tril(np.ones((50, 50)))
    assert visible_pairs(50) == seen.sum()
    assert visible_pairs(50, 8) == (seen - np.tril(seen, -8)).sum()
    assert visible_pairs(50, 100) == seen.sum()


def test_pairs_of_packed_rows_are_those_that_the_mask_lets_see_each_other():
    """With segments skipped the pairs of the mask, without them those of a row that is one sequence."""
    rows, window = ((5, 3, 1), (10,)), 4
    visible = Visible(window, 0.25, rows)
    for near in (0.0, 0.25, 1.0):
        seen = {True: [], False: []}
        for lengths in rows:
            lengths = (*lengths, 12 - sum(lengths))  # what is left is padding, which sees itself
            for skips in seen:
                parts = lengths if skips else (12,)
                segments = np.repeat(np.arange(len(parts)), parts)[None]
                places = np.concatenate([np.arange(n) for n in parts])[None]
                far, close = (
                    np.asarray(attention_mask(places, segments, places, segments, size)).sum()
                    for size in (0, window)
                )
                seen[skips].append((1 - near) * far + near * close)
        for skips, counted in seen.items():
            assert visible.pairs(12, near=near, skips=skips) == pytest.approx(np.mean(counted))


CHOICE = """
%far (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %d = f32[8,8]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
%close (q: f32[8,8]) -> f32[8,8] {
  %q = f32[8,8]{1,0} parameter(0)
  ROOT %n = f32[8,8]{1,0} negate(%q)
}
ENTRY %main (i: s32[], x: f32[8,8]) -> f32[8,8] {
  %i = s32[] parameter(0)
  %x = f32[8,8]{1,0} parameter(1)
  ROOT %c = f32[8,8]{1,0} conditional(%i, %x, %x), BRANCHES, metadata={op_name="jit(f)/layers/attention/cond"}
}
"""


@pytest.mark.parametrize(
    "branches",
    ["branch_computations={%far, %close}", "true_computation=%close, false_computation=%far"],
)
def test_each_branch_of_attention_counts_for_the_layers_that_take_it(branches):
    program = hlo.parse(CHOICE.replace("BRANCHES", branches))
    assert count_flops(program)["matmul"] == 2 * 8**3
    visible = Visible(window=4, local=0.75)
    assert count_flops(program, visible=visible)["matmul"] == 2 * 8**3 / 4
    assert count_kernels(program, visible=visible) == 1  # a quarter of a product, three of a negation
    assert count_bytes(program, visible=visible) == (3 / 4 + 2 * 3 / 4) * 256


def test_products_that_cublas_does():
    text = """
ENTRY %main (a: bf16[64,32], b: bf16[32,48]) -> bf16[64,48] {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = bf16[32,48]{1,0} parameter(1)
  %g = (bf16[64,48]{1,0}, s8[4096]{0}) custom-call(%a, %b), CALL
  ROOT %r = bf16[64,48]{1,0} get-tuple-element(%g), index=0
}
"""
    call = (
        'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
    )
    call += '{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}'
    assert count_flops(hlo.parse(text.replace("CALL", call)))["matmul"] == 2 * M * K * N


@pytest.fixture
def cube():
    return parallel.make_mesh(parallel.MeshConfig(data=1, fsdp=2, context=2, tensor=2), jax.devices()[:8])


def place(mesh, shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))


def collectives(mesh, function, *arguments, out):
    shardings = NamedSharding(mesh, PartitionSpec(*out))
    text = jax.jit(function, out_shardings=shardings).lower(*arguments).compile().as_text()
    return find_collectives(hlo.parse(text), mesh)


@pytest.mark.parametrize("axis", ["fsdp", "context", "tensor"])
def test_a_gather_is_told_by_axis_and_bytes(cube, axis):
    found = collectives(cube, lambda x: x, place(cube, (64, 32), axis), out=())
    assert [(x.kind, x.axes, x.group, x.times) for x in found] == [("all-gather", (axis,), 2, 1)]
    assert found[0].payload == 64 * 32 * 4 and found[0].sent == 64 * 32 * 4 / 2


def test_sums_over_two_axes(cube):
    """A contraction over two split dimensions; an all-reduce sends twice its share."""
    x = place(cube, (64, 32), ("fsdp", "tensor"), None)
    found = collectives(cube, lambda x: x.T @ x, x, out=())
    assert sent_by(found, "axes") == {"fsdp+tensor": 2 * 32 * 32 * 4 * 3 / 4}
    assert sent_by(found, "kind") == {"all-reduce": 2 * 32 * 32 * 4 * 3 / 4}


def test_collectives_in_a_scan_count_every_turn(cube):
    whole = NamedSharding(cube, PartitionSpec())

    def turns(x, weights):
        def turn(x, w):
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), whole), None

        return jax.lax.scan(turn, x, weights)[0]

    found = collectives(
        cube, turns, place(cube, (8, 32)), place(cube, (6, 32, 32), None, "fsdp", None), out=()
    )
    assert {x.axes for x in found} == {("fsdp",)} and 6 in {x.times for x in found}


NESTED = """
%inner (p: f32[8,256], i: s32[]) -> f32[1,256] {
  %p = f32[8,256]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %d = f32[1,256]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,256}
}
%outer (q: f32[8,256], j: s32[], b: f32[2,256]) -> (f32[1,256], f32[2,256], f32[8,256]) {
  %q = f32[8,256]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %b = f32[2,256]{1,0} parameter(2)
  %f = f32[1,256]{1,0} fusion(%q, %j), kind=kLoop, calls=%inner
  %n = f32[1,256]{1,0} negate(%f)
  %g = f32[8,256]{1,0} all-gather(%b), replica_groups=[2,4]<=[8], dimensions={0}, frontend_attributes={chain_id="3"}
  ROOT %t = (f32[1,256]{1,0}, f32[2,256]{1,0}, f32[8,256]{1,0}) tuple(%n, %b, %g)
}
ENTRY %main (x: f32[8,256], k: s32[], y: f32[2,256]) -> f32[1,256] {
  %x = f32[8,256]{1,0} parameter(0)
  %k = s32[] parameter(1)
  %y = f32[2,256]{1,0} parameter(2)
  %o = (f32[1,256]{1,0}, f32[2,256]{1,0}, f32[8,256]{1,0}) fusion(%x, %k, %y), kind=kOutput, calls=%outer
  ROOT %r = f32[1,256]{1,0} get-tuple-element(%o), index=0
}
"""


def test_attributes_of_many_lines_and_threads_end_no_computation_too_early():
    text = """
%body (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %c = f32[4]{0} custom-call(%p), custom_call_target="tpu_custom_call", backend_config="module {
}, {
"
  ROOT %n = f32[4]{0} negate(%c)
}, execution_thread="host"

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %r = f32[4]{0} call(%x), to_apply=%body
}
"""
    program = hlo.parse(text)
    assert [list(computation) for computation in program.computations.values()] == [
        ["p", "c", "n"],
        ["x", "r"],
    ]


def test_a_slice_inside_a_nested_fusion_is_a_slice_and_buffers_pass_through():
    # A row and its number are read, a row is written; the buffers of the gather are moved by the gather.
    assert count_bytes(hlo.parse(NESTED)) == 256 * 4 + 4 + 256 * 4


def test_steps_of_one_gather_are_one_gather(cube):
    step = "  %g{0} = f32[8,256]{{1,0}} all-gather(%b), replica_groups=[1,8]<=[8], dimensions={{0}}, "
    step += 'frontend_attributes={{chain_id="{1}"}}\n'
    begin = "ENTRY %main (b: f32[1,256]) -> f32[8,256] {\n  %b = f32[1,256]{1,0} parameter(0)\n"
    text = begin + step.format(1, 3) + step.format(2, 3) + step.format(3, 4) + "}\n"
    assert [x.payload for x in find_collectives(hlo.parse(text), cube)] == [8 * 256 * 4] * 2


def test_groups_in_all_their_forms():
    by_list = parse_groups("replica_groups={{0,2},{1,3}}", 4)
    by_iota = parse_groups("replica_groups=[2,2]<=[2,2]T(1,0)", 4)
    by_mesh = parse_groups("replica_groups=mesh['a'=2,'b'=2] {'a'}", 4)
    assert by_list.tolist() == by_iota.tolist() == by_mesh.tolist() == [[0, 2], [1, 3]]
    assert parse_groups("replica_groups={}", 4).tolist() == [[0, 1, 2, 3]]
    swapped = parse_groups("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", 4)
    assert swapped.tolist() == [[0, 2], [1, 3]]
    part = parse_groups("replica_groups=mesh['a'=8] {'a':(2)2}", 8)
    assert part.tolist() == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert parse_groups("source_target_pairs={{0,1},{1,0}}", 4).tolist() == [[0, 1], [1, 0]]
    with pytest.raises(ValueError, match="unknown form"):
        parse_groups("replica_groups=?", 4)


def test_groups_that_follow_no_axis(cube):
    assert axes_of(np.array([[0, 1, 2, 4], [3, 5, 6, 7]]), cube) == ("?",)


def test_needless_gathers_are_named(cube):
    gather = find_collectives(
        hlo.parse(
            "ENTRY %main () -> f32[] {\n  %p = f32[512,1024]{} parameter(0)\n"
            "  ROOT %g = f32[1024,1024]{} all-gather(%p), replica_groups=[4,2]<=[2,2,2]T(2,1,0), "
            'metadata={op_name="jit(f)/layers/mlp/up/dot_general"}\n}\n'
        ),
        cube,
    )
    size = {"layers/mlp/up/kernel": 4.0 * 2**20}
    assert needless_gathers(gather, size, passes=1, layers=2) == []
    assert (
        "up/kernel is gathered 2 times a step; 1 would do"
        in needless_gathers(gather * 2, size, passes=1, layers=2)[0]
    )
    # A bias has the name of its kernel, whose gather is not its own.
    both = {"layers/mlp/up/bias": 2.0 * 4096} | size
    assert needless_gathers(gather, both, passes=1, layers=2) == []
    (told,) = needless_gathers(gather * 2, both, passes=1, layers=2)
    assert told.startswith("layers/mlp/up/kernel is gathered 2 times")
    # Of both layers at once, before a loop that reads them at every token.
    whole = [dataclasses.replace(gather[0], op_name=r"params[\'layers\'][\'mlp\'][\'up\'][\'kernel\']")]
    assert needless_gathers(whole, both, passes=1, layers=2) == []
    assert "no parameter" in needless_gathers(gather, {"layers/mlp/down/kernel": 1.0}, passes=1, layers=2)[0]
    unnamed = dataclasses.replace(gather[0], kind="all-reduce", of_zeros=True, times=2)
    assert (
        "8 MiB a step are gathered by all-reduces" in needless_gathers([unnamed], size, passes=1, layers=2)[0]
    )
    nameless = [dataclasses.replace(gather[0], op_name="")]
    assert needless_gathers(nameless, {"layers/a": 8.0 * 2**20}, passes=1, layers=2) == []
    (told,) = needless_gathers(nameless, {"layers/a": 4.0 * 2**20, "norm": 8.0}, passes=1, layers=2)
    assert "an array without a name" in told


def test_a_gather_of_several_parameters_is_one_of_each(cube):
    """As the compiler for GPUs joins them, their names between brackets."""
    (gather,) = find_collectives(
        hlo.parse(
            "ENTRY %main () -> f32[] {\n  %p = bf16[512,1024]{} parameter(0)\n  %q = bf16[512,512]{} parameter(1)\n"
            "  ROOT %g = ((bf16[512,1024]{}, bf16[512,512]{}), (bf16[1024,1024]{}, bf16[1024,512]{})) "
            "all-gather-start(%p, %q), replica_groups=[4,2]<=[2,2,2]T(2,1,0), "
            'metadata={op_name="jit(f)/layers/attention/(key/dot:query/dot)"}\n}\n'
        ),
        cube,
    )
    assert gather.payload == 2 * (1024 * 1024 + 1024 * 512)
    sizes = {"layers/attention/query/kernel": 4.0 * 2**20, "layers/attention/key/kernel": 2.0 * 2**20}
    twice = dataclasses.replace(gather, times=2)
    assert needless_gathers([twice], sizes, passes=1, layers=2) == []
    assert len(needless_gathers([twice] * 2, sizes, passes=1, layers=2)) == 2


def test_gradients_that_are_summed_whole_are_told(cube):
    """Along an axis that splits parameters a device keeps its part; a scatter, or small sums, are no waste."""
    x = place(cube, (64, 32), ("fsdp", "tensor"), None)
    (summed,) = collectives(cube, lambda x: x.T @ x, x, out=())
    (warning,) = whole_sums([dataclasses.replace(summed, times=2**10)], {"fsdp"}, least=2**10)
    assert "4 MiB a step are summed by all-reduces along fsdp+tensor" in warning
    assert "its part along fsdp: reduce-scatters" in warning
    assert whole_sums([summed], {"data"}, least=0) == []
    assert whole_sums([summed], {"fsdp"}, least=2**12) == []
    assert whole_sums([dataclasses.replace(summed, kind="reduce-scatter")], {"fsdp"}, least=0) == []
