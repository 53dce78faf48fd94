"""Traffic read from a program's text, on a program whose traffic is counted by hand."""

import pytest

from benchmarks.hlo_traffic import array_bytes, by_layer, read

PROGRAM = """HloModule jit_f

%fused (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %n = bf16[8,128]{1,0:T(8,128)(2,1)} negate(%p)
}

ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %fusion.1 = f32[8,64]{1,0:T(8,128)} fusion(%a), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"100"}
  %copy-start = (f32[8,64]{1,0:T(8,128)S(1)}, f32[8,64]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%fusion.1), cross_program_prefetch_index=0
  %copy-done = f32[8,64]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %all-reduce.1 = f32[8,64]{1,0:T(8,128)S(1)} all-reduce(%copy-done), channel_id=1, replica_groups={{0,1}}
  ROOT %fusion.2 = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%all-reduce.1, %a), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"20"}
}
"""  # noqa: E501 (lines as XLA prints them)


@pytest.mark.parametrize(
    ("kind", "shape", "layout", "expected"),
    [
        ("f32", "", ":T(128)", 4),
        ("f32", "3,5", "", 60),
        ("bf16", "16,30,32,32,64", "4,0,3,2,1:T(8,128)(2,1)", 16 * 30 * 32 * 32 * 128 * 2),
        ("bf16", "3,200", "0,1:T(8,128)(2,1)", 200 * 128 * 2),  # 3 is the fast axis
        ("f32", "144", "0:T(256)S(1)", 256 * 4),
    ],
)
def test_arrays_are_filled_up_to_whole_tiles(kind, shape, layout, expected):
    assert array_bytes(kind, shape, layout) == expected


def test_only_hbm_counts_and_a_copy_once():
    traffic = read(PROGRAM)
    small, large = 8 * 128 * 4, 8 * 128 * 2  # f32[8,64] fills rows of 128
    # fusion.1 reads a and writes; the copy; fusion.2 reads a and writes.
    assert traffic.hbm_bytes == (large + small) + small + 2 * large
    assert traffic.collectives == {"all-reduce": (1, small)}
    assert traffic.cycles == 120


def test_every_byte_and_cycle_belongs_to_one_part():
    source = ', metadata={op_name="jit(step)/transpose(jvp(Net))/trunk/block/conv/mul"}'
    program = PROGRAM.replace("calls=%fused", f"calls=%fused{source}", 1)
    parts = by_layer(program, "Net")
    small, large = 8 * 128 * 4, 8 * 128 * 2
    assert parts == {
        "backward trunk/block": (large + small, 100),
        "copies": (small, 0),
        "fusion": (2 * large, 20),
    }
    traffic = read(program)
    assert sum(moved for moved, _ in parts.values()) == traffic.hbm_bytes
    assert sum(cycles for _, cycles in parts.values()) == traffic.cycles


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        read("HloModule empty")
