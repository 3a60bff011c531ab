"""What benchmarks/hlo.py reads from compiled text: small programs whose bytes can be counted by hand."""

from __future__ import annotations

from benchmarks.hlo import Bytes, Part, Program, Sent

TPU = """
HloModule step, is_scheduled=true

%taken (p0: f32[100,8], p1: s32[]) -> f32[1,8] {
  %p0 = f32[100,8]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %row = f32[1,8]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,8}
}

%stored (p0: f32[100,8], p1: f32[1,8], p2: s32[]) -> f32[100,8] {
  %p0 = f32[100,8]{1,0} parameter(0)
  %p1 = f32[1,8]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %all = f32[100,8]{1,0} dynamic-update-slice(%p0, %p1, %p2, %p2)
}

%body (state: (s32[], f32[100,8])) -> (s32[], f32[100,8]) {
  %state = (s32[], f32[100,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %rows = f32[100,8]{1,0} get-tuple-element(%state), index=1
  %row = f32[1,8]{1,0} fusion(%rows, %i), kind=kLoop, calls=%taken
  %new = f32[100,8]{1,0} fusion(%rows, %row, %i), kind=kLoop, calls=%stored
  ROOT %next = (s32[], f32[100,8]{1,0}) tuple(%i, %new)
}

%logged (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %norm = f32[4]{0} all-reduce(%x), replica_groups={{0,1}}
}

%skipped (x: f32[4]) -> f32[4] {
  ROOT %x = f32[4]{0} parameter(0)
}

ENTRY %main (a: bf16[3,5], x: f32[4], rows: f32[100,8]) -> f32[100,8] {
  %a = bf16[3,5]{1,0:T(8,128)(2,1)} parameter(0)
  %x = f32[4]{0} parameter(1)
  %rows = f32[100,8]{1,0} parameter(2)
  %fetch = (bf16[3,5]{1,0:T(8,128)(2,1)S(1)}, bf16[3,5]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%a)
  %near = bf16[3,5]{1,0:T(8,128)(2,1)S(1)} copy-done(%fetch)
  %b = pred[4]{0} convert(%near)
  %zero = s32[] constant(0)
  %state = (s32[], f32[100,8]{1,0}) tuple(%zero, %rows)
  %looped = (s32[], f32[100,8]{1,0}) while(%state), body=%body, backend_config={"known_trip_count":{"n":"100"}}
  %d = f32[4]{0} conditional(%zero, %x, %x), branch_computations={%skipped, %logged}
  %f = f32[4]{0} conditional(%zero, %x, %x), true_computation=%logged, false_computation=%skipped
  %e = (f32[5]{0}, pred[7]{0}) all-gather(%x, %b), dimensions={0}
  ROOT %result = f32[100,8]{1,0} get-tuple-element(%looped), index=1
}
"""


def test_kernels_and_bytes_of_the_entry_the_loop_and_the_branches() -> None:
    """Padded tiles; the copy to fast memory once; of the loop's rows only the one that a turn reads and writes."""
    tile = 8 * 128 * 2
    assert Program(TPU).parts() == [
        Part("entry", 3, Bytes(tile + 4 + 16 + 4 + 20 + 7, tile + tile), None),
        Part("entry/loop 1", 2, Bytes((32 + 4 + 32) + (32 + 4 + 32), 0), 100),
        Part("entry/branch 1", 0, Bytes(0, 0), None),
        Part("entry/branch 2", 1, Bytes(16 + 16, 0), None),
        Part("entry/branch 3", 1, Bytes(16 + 16, 0), None),
        Part("entry/branch 4", 0, Bytes(0, 0), None),
    ]


def test_a_gpus_command_buffer_is_part_of_the_entry() -> None:
    text = """
%buffer (p: f32[10]) -> f32[10] {
  %p = f32[10]{0} parameter(0)
  ROOT %twice = f32[10]{0} add(%p, %p)
}

ENTRY %main (x: f32[10]) -> f32[10] {
  %x = f32[10]{0} parameter(0)
  ROOT %call = f32[10]{0} call(%x), to_apply=%buffer
}
"""
    assert Program(text).parts() == [Part("entry", 1, Bytes(120, 0), None)]


def test_collectives_of_every_step_and_of_the_branch_that_logs() -> None:
    assert Program(TPU).collectives() == {
        "every step": {"all-gather": Sent(1, 27)},
        "more when logged": {"all-reduce": Sent(1, 16)},
    }


def test_the_end_of_a_message_in_the_background_is_counted_and_its_start_is_not() -> None:
    text = """
ENTRY %main (x: f32[6]) -> f32[6] {
  %x = f32[6]{0} parameter(0)
  %start = (f32[6]{0}, f32[12]{0}) all-gather-start(%x), dimensions={0}
  ROOT %done = f32[12]{0} all-gather-done(%start)
}
"""
    assert Program(text).collectives()["every step"] == {"all-gather": Sent(1, 48)}


def test_a_message_that_a_chain_of_kernels_sends_is_counted_once() -> None:
    text = """
%first (x: f32[6]) -> f32[12] {
  %x = f32[6]{0} parameter(0)
  ROOT %a = f32[12]{0} all-gather(%x), dimensions={0}, frontend_attributes={chain_id="1"}
}

%second (x: f32[6]) -> f32[12] {
  %x = f32[6]{0} parameter(0)
  ROOT %b = f32[12]{0} all-gather(%x), dimensions={0}, frontend_attributes={chain_id="1"}
}

ENTRY %main (x: f32[6]) -> f32[12] {
  %x = f32[6]{0} parameter(0)
  %c = f32[12]{0} fusion(%x), kind=kCustom, calls=%first
  ROOT %d = f32[12]{0} fusion(%x), kind=kCustom, calls=%second
}
"""
    assert Program(text).collectives()["every step"] == {"all-gather": Sent(1, 48)}
