"""The floors, which are lower bounds on time, against numbers worked by hand."""

from __future__ import annotations

import dataclasses

import pytest

from bench import floors
from bench.cpu import rows as cpu_rows
from bench.floors import Floor, Limits

# An H200: a copy at 4.3 TB/s; 132 multiprocessors at 1.755 GHz with 16 exponentials and 128 multiply-adds per clock.
H200 = Limits(bytes=4.3e12, exponentials=16 * 132 * 1.755e9, fmas=128 * 132 * 1.755e9)


def test_the_longest_of_the_three_is_the_floor() -> None:
    limits = Limits(bytes=10.0, exponentials=5.0, fmas=2.0)
    assert Floor(100, 10, 2).parts(limits) == {"bytes": 10.0, "exponentials": 2.0, "fmas": 1.0}
    assert (Floor(100, 10, 2).seconds(limits), Floor(100, 10, 2).bound(limits)) == (10.0, "bytes")
    assert (Floor(100, 60, 2).seconds(limits), Floor(100, 60, 2).bound(limits)) == (12.0, "exponentials")
    assert (Floor(100, 60, 26).seconds(limits), Floor(100, 60, 26).bound(limits)) == (13.0, "fmas")


def test_cross_entropy_of_equal_sizes() -> None:
    floor = floors.cross_entropy(2, 3, (4, 5), (4, 5))
    # 2*3*20 = 120 logits, read and written in 4 bytes; 40 labels
    assert floor == Floor(bytes=2 * 480 + 40, exponentials=120, fmas=360)
    assert floors.cross_entropy(2, 3, (4, 5), (4, 5), logit_bytes=2, label_bytes=8).bytes == 2 * 240 + 320


def test_cross_entropy_of_equal_sizes_on_an_h200() -> None:
    floor = floors.cross_entropy(8, 19, (512, 1024), (512, 1024))
    # 79.7 million logits: 319 MB read, 319 MB written, 4.2 MB of labels
    assert floor.bytes == 2 * 318_767_104 + 4_194_304
    assert floor.seconds(H200) == pytest.approx(0.149e-3, rel=0.01)
    assert floor.bound(H200) == "bytes"


def test_resized_cross_entropy() -> None:
    floor = floors.cross_entropy(1, 3, (2, 2), (8, 8))
    # 12 logits, read twice and written once; 64 pixels, label and log-sum-exp twice; 3 * 64 exponentials, twice
    assert floor == Floor(bytes=3 * 48 + 2 * 64 * 5, exponentials=2 * 192, fmas=7 * 192)
    # a gradient that is formed with the loss: each logit is read once; 4 patches of 4 x 4 pixels
    once = floors.cross_entropy(1, 3, (2, 2), (8, 8), gather=False)
    assert once == Floor(bytes=2 * 48 + 64, exponentials=4 * 4 * 3, fmas=4 * 192)
    assert floors.cross_entropy(1, 3, (2, 2), (16, 8), gather=False).exponentials == 2 * 4 * 4 * 3
    assert floors.cross_entropy(1, 3, (8, 8), (8, 12), gather=False).exponentials == 8 * 12 * 3


def test_resized_cross_entropy_is_bound_by_exponentials_on_an_h200() -> None:
    floor = floors.cross_entropy(8, 150, (128, 128), (512, 512))
    parts = floor.parts(H200)
    assert parts["bytes"] == pytest.approx(0.06e-3, rel=0.03)
    assert parts["exponentials"] == pytest.approx(0.17e-3, rel=0.02)
    assert parts["fmas"] < parts["exponentials"]
    assert floor.bound(H200) == "exponentials"


def test_counting() -> None:
    assert floors.confusion_matrix(1, 3, (2, 2), (8, 8)) == Floor(bytes=48 + 64 + 8 * 9, fmas=12)
    assert floors.cam_counts(1, 3, (2, 2), (8, 8)) == Floor(bytes=48 + 64 + 24 * 3, fmas=24)
    assert floors.cam_counts(1, 3, (2, 2), (8, 8), maps=1) == Floor(bytes=16 + 64 + 24 * 3, fmas=8)


def test_an_operator_without_a_floor_is_an_error() -> None:
    """A new operator must not silently get the floor of another one."""
    row = dataclasses.replace(cpu_rows.ROWS[0], operator="new_operator")
    with pytest.raises(ValueError, match="no floor for the operator 'new_operator'"):
        row.floor(gather=True)
