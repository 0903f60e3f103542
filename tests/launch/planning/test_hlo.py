"""Compiled programs as text: rounds of loops, groups in every notation, bytes sent and bytes moved."""

from types import SimpleNamespace

import numpy as np
import pytest

from launch.planning.collectives import Collective, collectives, wire_bytes
from launch.planning.hlo import parse
from launch.planning.traffic import memory_traffic

# As the TPU compiler writes: a loop without a count, fusions that carry a transfer on, a reduce-scatter as a fusion.
TEXT = """HloModule step, is_scheduled=true

%body (p: (s32[], f32[128])) -> (s32[], f32[128]) {
  %p = (s32[]{:T(128)}, f32[128]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[128]{0:T(128)} get-tuple-element(%p), index=1
  %all-reduce.1 = f32[128]{0:T(128)} all-reduce(%x), channel_id=1, replica_groups=[4,2]<=[8], to_apply=%sum
  ROOT %t = (s32[]{:T(128)}, f32[128]{0:T(128)}) tuple(%i, %all-reduce.1)
}

%condition (q: (s32[], f32[128])) -> pred[] {
  %c = s32[]{:T(128)} constant(15)
  %q = (s32[]{:T(128)}, f32[128]{0:T(128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %c), direction=LT
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%begin (s: bf16[64]) -> (bf16[64], bf16[512]) {
  %s = bf16[64]{0} parameter(0)
  %all-gather.1 = bf16[512]{0} all-gather(%s), channel_id=2, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={0}
  ROOT %begun = (bf16[64]{0}, bf16[512]{0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (u: bf16[64], v: bf16[512], w: f32[100]) -> (f32[100], bf16[512]) {
  %u = bf16[64]{0} parameter(0)
  %v = bf16[512]{0} parameter(1)
  %w = f32[100]{0} parameter(2)
  %twice = f32[100]{0} add(%w, %w)
  %all-gather.2 = bf16[512]{0} all-gather(%u), channel_id=2, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={0}
  ROOT %both = (f32[100]{0}, bf16[512]{0}) tuple(%twice, %all-gather.2)
}

%all-reduce-scatter (input: f32[256]) -> f32[64] {
  %input = f32[256]{0} parameter(0)
  %all-reduce.2 = f32[256]{0} all-reduce(%input), channel_id=3, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum
  %zero = u32[] constant(0)
  ROOT %mine = f32[64]{0} dynamic-slice(%all-reduce.2, %zero), dynamic_slice_sizes={64}
}

%put (stack: f32[15,100], row: f32[1,100], at: s32[]) -> f32[15,100] {
  %stack = f32[15,100]{1,0} parameter(0)
  %row = f32[1,100]{1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %update = f32[15,100]{1,0} dynamic-update-slice(%stack, %row, %at, %at)
}

%layer (layers: f32[15,100], n: s32[]) -> f32[1,100] {
  %layers = f32[15,100]{1,0} parameter(0)
  %n = s32[] parameter(1)
  ROOT %taken = f32[1,100]{1,0} dynamic-slice(%layers, %n, %n), dynamic_slice_sizes={1,100}
}

%product (all: f32[15,100], which: s32[], by: f32[1,100]) -> f32[1,100] {
  %all = f32[15,100]{1,0} parameter(0)
  %which = s32[] parameter(1)
  %by = f32[1,100]{1,0} parameter(2)
  %one = f32[1,100]{1,0} fusion(%all, %which), kind=kLoop, calls=%layer
  ROOT %times = f32[1,100]{1,0} multiply(%one, %by)
}

%put-in (into: f32[15,100], what: f32[1,100], where: s32[]) -> f32[15,100] {
  %into = f32[15,100]{1,0} parameter(0)
  %what = f32[1,100]{1,0} parameter(1)
  %where = s32[] parameter(2)
  ROOT %done = f32[15,100]{1,0} fusion(%into, %what, %where), kind=kLoop, calls=%put
}

ENTRY %main (x.0: f32[128], w.0: f32[100], g.0: f32[256], s.0: bf16[64]) -> f32[64] {
  %zero.0 = s32[] constant(0)
  %x.0 = f32[128]{0} parameter(0)
  %w.0 = f32[100]{0} parameter(1)
  %g.0 = f32[256]{0} parameter(2)
  %s.0 = bf16[64]{0} parameter(3)
  %start = (s32[], f32[128]{0}) tuple(%zero.0, %x.0)
  %loop = (s32[], /*index=1*/f32[128]{0}) while(%start), condition=%condition, body=%body
  %begin.0 = (bf16[64]{0}, bf16[512]{0}) fusion(%s.0), kind=kCustom, calls=%begin
  %buffer = bf16[512]{0} get-tuple-element(%begin.0), index=1
  %meanwhile.0 = (f32[100]{0}, bf16[512]{0}) fusion(%s.0, %buffer, %w.0), kind=kLoop, calls=%meanwhile
  %fast = (f32[100]{0:S(1)}, f32[100]{0}, u32[]{:S(2)}) copy-start(%w.0)
  %fast.done = f32[100]{0:S(1)} copy-done(%fast)
  %stacked = f32[15,100]{1,0} broadcast(%fast.done), dimensions={1}
  %row.0 = f32[1,100]{1,0} reshape(%fast.done)
  %put.0 = f32[15,100]{1,0} fusion(%stacked, %row.0, %zero.0), kind=kLoop, calls=%put
  %product.0 = f32[1,100]{1,0} fusion(%put.0, %zero.0, %row.0), kind=kOutput, calls=%product
  %put.1 = f32[15,100]{1,0} fusion(%put.0, %product.0, %zero.0), kind=kLoop, calls=%put-in
  ROOT %scattered = f32[64]{0} fusion(%g.0), kind=kCustom, calls=%all-reduce-scatter
}
"""


def mesh(*shape, slices=1):
    """A mesh as far as its shape and slices are concerned; slices lie along the first axis."""
    devices = np.empty(int(np.prod(shape)), object)
    for i in range(len(devices)):
        devices[i] = SimpleNamespace(slice_index=i * slices // len(devices))
    names = ("data", "fsdp", "tensor")[: len(shape)]
    return SimpleNamespace(devices=devices.reshape(shape), axis_names=names, size=devices.size)


def test_loops_run_as_often_as_their_condition_says():
    program = parse(TEXT)
    assert program.entry == "main"
    assert program.runs["body"] == 15 and program.runs["meanwhile"] == 1
    assert program.unknown_loops == 0
    known = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert parse(known).runs["body"] == 7
    unknown = parse(TEXT.replace("direction=LT", "direction=NE"))
    assert unknown.unknown_loops == 1 and unknown.runs["body"] == 1


BRANCHES = """
%idle (a: (f32[64], f32[64])) -> (f32[64], f32[64]) {
  %a = (f32[64]{0}, f32[64]{0}) parameter(0)
  %a.0 = f32[64]{0} get-tuple-element(%a), index=0
  ROOT %same = (f32[64]{0}, f32[64]{0}) tuple(%a.0, %a.0)
}

%busy (b: f32[64]) -> (f32[64], f32[64]) {
  %b = f32[64]{0} parameter(0)
  %all-reduce.3 = f32[64]{0} all-reduce(%b), channel_id=4, replica_groups={{0,1},{2,3}}, to_apply=%sum
  ROOT %summed = (f32[64]{0}, f32[64]{0}) tuple(%all-reduce.3, %b)
}

%some (c: f32[64]) -> (f32[64], f32[64]) {
  %c = f32[64]{0} parameter(0)
  %half = f32[32]{0} slice(%c), slice={[0:32]}
  ROOT %padded = (f32[64]{0}, f32[64]{0}) tuple(%c, %c)
}

%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add = f32[] add(%x, %y)
}

ENTRY %main (i: s32[], d: f32[64]) -> (f32[64], f32[64]) {
  %i = s32[] parameter(0)
  %d = f32[64]{0} parameter(1)
  %pair = (f32[64]{0}, f32[64]{0}) tuple(%d, %d)
  ROOT %choice = (f32[64]{0}, f32[64]{0}) conditional(%i, BRANCHES
}
"""


@pytest.mark.parametrize(
    ("branches", "taken"),
    [
        ("%pair, %d, %d), branch_computations={%idle, %busy, %some}", "busy"),
        ("%d, %d, %pair), branch_computations={%busy, %some, %idle}", "busy"),
        ("%d, %pair), true_computation=%busy, false_computation=%idle", "busy"),
        ("%pair, %d), branch_computations={%idle, %some}", "some"),
    ],
)
def test_of_branches_the_dearest_runs(branches, taken):
    program = parse(BRANCHES.replace("BRANCHES", branches))
    assert {name: program.runs[name] for name in ("idle", "busy", "some")} == {
        name: int(name == taken) for name in ("idle", "busy", "some")
    }
    assert memory_traffic(program) == (2 * 256 if taken == "busy" else 2 * 128)
    assert [row.within for row in collectives(program, mesh(2, 2))] == ([256.0] if taken == "busy" else [])


def test_transfers_by_axis_and_round():
    found = {(row.kind, row.axes): row for row in collectives(parse(TEXT), mesh(2, 2, 2))}
    assert set(found) == {
        ("all-reduce", ("tensor",)),
        ("all-gather", ("data", "fsdp", "tensor")),
        ("reduce-scatter", ("fsdp", "tensor")),
    }
    reduced = found["all-reduce", ("tensor",)]
    assert (reduced.count, reduced.within) == (15, 15 * 2 * 512 / 2), "2 (n - 1) / n of 128 floats, every round"
    gathered = found["all-gather", ("data", "fsdp", "tensor")]
    assert (gathered.count, gathered.within) == (1, 128 * 7), "one transfer, though two fusions carry it"
    assert found["reduce-scatter", ("fsdp", "tensor")].within == 1024 * 3 / 4


def test_transfers_across_slices_cross_once():
    rows = {row.kind: row for row in collectives(parse(TEXT), mesh(2, 2, 2, slices=2))}
    gathered, scattered = rows["all-gather"], rows["reduce-scatter"]
    assert (gathered.within, gathered.between) == (128 * 2 * 3, 128), "each device fetches its own part's twin"
    assert (scattered.within, scattered.between) == (768, 0)


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1,2,3,4,5,6,7}}", ("data", "fsdp", "tensor")),
        ("replica_groups={}", ("data", "fsdp", "tensor")),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",)),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", ("fsdp",)),
        ("replica_groups=[2,4]<=[8]", ("fsdp", "tensor")),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_0','axis_2'}", ("data", "tensor")),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}", ("data",)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1':(1)2}", ("fsdp",)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1':(2)2}", ("tensor",)),
    ],
)
def test_groups_in_every_notation(groups, axes):
    text = TEXT.replace("replica_groups=[4,2]<=[8]", groups)
    assert ("all-reduce", axes) in {(row.kind, row.axes) for row in collectives(parse(text), mesh(2, 2, 2))}


def permuted(pairs, mesh):
    """The transfers of a loop's collective-permute."""
    permute = f"collective-permute(%x), channel_id=1, source_target_pairs={pairs}"
    text = TEXT.replace("all-reduce(%x), channel_id=1, replica_groups=[4,2]<=[8]", permute)
    return [row for row in collectives(parse(text), mesh) if row.kind == "collective-permute"]


def test_permutations_send_all_of_it():
    (row,) = permuted("{{0,2},{2,0},{1,1}}", mesh(2, 2, 2))
    assert row == Collective("collective-permute", ("fsdp",), 15, 15 * 512.0, 0.0)


def test_a_ring_over_slices_is_as_slow_as_its_slow_links():
    ring = "{{0,1},{1,2},{2,3},{3,4},{4,5},{5,6},{6,7},{7,0}}"
    (row,) = permuted(ring, mesh(8, slices=2))
    assert row == Collective("collective-permute", ("data",), 15, 0.0, 15 * 512.0)
    (row,) = permuted(ring, mesh(8))
    assert row == Collective("collective-permute", ("data",), 15, 15 * 512.0, 0.0)


def test_what_stays_in_its_place_is_not_sent():
    assert permuted("{{0,0},{1,1}}", mesh(2, 2, 2)) == []
    assert permuted("{}", mesh(2, 2, 2)) == []


def test_wire_bytes():
    assert wire_bytes("all-reduce", 100, members=4) == (150, 0)
    assert wire_bytes("all-to-all", 80, members=4) == (60, 0)
    assert wire_bytes("all-gather", 10, members=8, slices=2) == (60, 10)
    assert wire_bytes("all-reduce", 100, members=8, slices=2) == (150, 25)
    assert wire_bytes("collective-permute", 10, members=2, slices=2) == (0, 10)


def test_traffic():
    expected = {
        "all-reduce of every round, in and out": 15 * 2 * 512,
        "the loop's test": 15 * (4 + 4 + 1),
        "all-gather, in and out": 128 + 1024,
        "reduce-scatter's sum, in and out": 2 * 1024,
        "its slice, written by the fusion": 256,
        "addition beside the transfer": 400 + 400,
        "copy to the memory on the chip, read": 400,
        "broadcast from there, written": 6000,
        "reshape from there, written": 400,
        "row put in place: read and written": 400 + 400,
        "its position": 4,
        "a fusion inside of a fusion takes one row of fifteen; the product is written": 400 + 4 + 400 + 400,
        "and another puts it in place": 400 + 4 + 400,
    }
    assert memory_traffic(parse(TEXT)) == sum(expected.values())


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("HloModule empty")
