"""Copies that go, as values are written where they are read; and copies that stay."""

from __future__ import annotations

import numpy as np
from optimize_cases import EVERY, MIDDLE, kinds, same, start
from random_programs import Builder, Image

from landscapex.engine.steps import LstmCell, table


def test_a_halo_is_written_around_the_value_at_once():
    b, x = start()
    program = same(b.lowered(b.conv(b.padded(x, 1), 3)))
    assert kinds(program) == {"Contract": 2}
    assert sorted(buffer.elements for buffer in program.buffers) == [72, 108, 256]


def test_parts_of_a_joined_value_are_written_beside_each_other():
    b, x = start()
    y, z = b.conv(x, 3, 1), b.conv(x, 2, 1)
    program = same(b.lowered(b.conv(b.padded(b.cat(x, y, z), 1), 3)))
    assert kinds(program) == {"Contract": 4}


def test_a_narrow_halo_lies_in_a_wide_one():
    b, x = start()
    y, z = b.conv(b.padded(x, 1), 3, 3), b.conv(b.padded(x, 2), 3, 5)
    program = same(b.lowered(b.cat(y, z)))
    assert kinds(program) == {"Contract": 3}


def test_a_halo_does_not_wrap_around_rows():
    b, x = start()
    tall = b.image(4, 10, 6)
    b.copy(x, tall.part(EVERY, slice(2, -2)))
    program = same(b.lowered(b.cat(b.conv(tall, 2, 1)), b.conv(b.padded(x, 1), 3, 3)))
    assert kinds(program)["Map"] == 1


def test_values_in_rows_and_in_reverse_take_tables_apart():
    b, x = start()
    turned = b.padded(x.part(slice(None, None, -1), slice(None, None, -1)), 1)
    y, z = b.conv(turned, 2, 3, groups=2), b.conv(x, 2, 3, groups=2)
    assert kinds(same(b.lowered(z, y))) == {"Contract": 3}


def test_a_copy_stays_where_its_readers_cannot_say_what_they_read():
    b, x = start()
    rolled = Image(x.buffer, np.roll(x.index.reshape(-1), 5).reshape(x.index.shape))
    arranged = b.image(*x.index.shape)
    b.copy(rolled, arranged)
    assert kinds(same(b.lowered(b.conv(arranged, 2), b.conv(x, 2)))) == {"Contract": 3, "Map": 1}


def test_a_copy_stays_where_a_value_lies_twice():
    b, x = start(size=4)
    twice = b.padded(Image(x.buffer, np.repeat(x.index, 2, 2)), 1)
    assert kinds(same(b.lowered(b.conv(twice, 2)))) == {"Contract": 2, "Map": 1}


def test_a_copy_of_a_part_stays_where_others_read_the_rest():
    b, x = start()
    part = b.padded(x.part(EVERY, slice(0, 4), slice(0, 4)), 1)
    assert kinds(same(b.lowered(b.conv(x, 2), b.conv(part, 2)))) == {"Contract": 3, "Map": 1}


def test_fills_of_different_values_are_not_confused():
    b, x = start()
    zeros = b.padded(x, 1, 0.0)
    ones = b.padded(x, 1, 1.0)
    program = same(b.lowered(b.conv(zeros, 2), b.conv(ones, 3)))
    assert kinds(program) == {"Contract": 3, "Map": 1}


def test_a_filled_part_of_a_source_keeps_its_fill():
    b, x = start()
    source = b.image(4, 6, 12, fill=2.0)
    b.copy(x, source.part(EVERY, EVERY, slice(0, 6)))
    target = b.image(4, 6, 14, fill=3.0)
    b.copy(source, target.part(EVERY, EVERY, MIDDLE))
    same(b.lowered(b.conv(target, 2)))


def test_a_target_with_two_writers_is_not_read_from_one_source():
    b, x = start()
    y = b.softmax(x)
    both = b.cat(x, y)
    same(b.lowered(x, y, b.conv(both, 2, 1)))


def test_outputs_follow_their_values():
    b, x = start()
    y = b.conv(b.padded(x, 1), 2)
    b.norm(x)
    program = same(b.lowered(x.part(EVERY, slice(None, None, 2)), y))
    assert program.outputs[0][1].shape == (4, 3, 6)
    assert kinds(program) == {"Contract": 2}


def test_an_output_that_moved_is_not_fused_away():
    b, x = start()
    y = b.conv(b.input(2, 6, 6), 2, 1)
    z = b.norm(b.cat(x, y))
    assert kinds(same(b.lowered(x, z))) == {"Contract": 2, "Map": 1}


def test_cells_do_not_read_inputs():
    b = Builder()
    gates = b.conv(b.input(2, 1, 1), 8, 1)
    given = b.input(2, 1, 1)
    cell, h, c = b.image(2, 1, 1), b.image(2, 1, 1), b.image(2, 1, 1)
    b.copy(given, cell)
    at = table(gates.index.reshape(4, 2))
    b.steps.append(
        LstmCell(gates.buffer, at, cell.buffer, cell.flat, c.buffer, c.flat, h.buffer, h.flat)
    )
    assert kinds(same(b.lowered(h))) == {"Contract": 1, "Map": 1, "LstmCell": 1}
