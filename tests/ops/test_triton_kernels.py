"""Edge cases that only the Triton kernels have: tiles, chunks, halos, offsets, configurations.

They run in the interpreter, or on a GPU with CAWA_FAST_TEST_DEVICE=cuda. The tests with the fixture ``backend`` compare
the results of the operators on all backends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

import cawa_fast.functional as CF
from cawa_fast import reference
from cawa_fast._ops import backends, native
from tests.conftest import DEVICE
from tests.support.cases import CONTENTS, LAYOUTS, RATIOS, noise, one_class, smooth
from tests.support.interpreter import chunks_of_classes
from tests.support.losses import check

pytest.importorskip("triton")

from cawa_fast.kernels import _launch, _tiling, cam_counts, confusion_matrix, cross_entropy, labels

MODULES = (labels, confusion_matrix, cam_counts, cross_entropy)


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if DEVICE == "cpu":
            from tests.support import interpreter

            stack.enter_context(interpreter.kernels_on_the_cpu(monkeypatch))
        else:
            stack.enter_context(torch.device(DEVICE))
            monkeypatch.setattr(native, "cuda_available", lambda: False)
        yield


def check_counts(logits, target, classes, corners=False, normalize="max"):
    """Both counting operators must equal the reference exactly."""
    matrix = CF.confusion_matrix(logits, target, ignore_index=255, align_corners=corners)
    assert matrix.equal(reference.confusion_matrix(logits, target, classes, 255, corners))
    counts = CF.cam_counts(logits, target, ignore_index=255, align_corners=corners, normalize=normalize)
    expected = reference.cam_counts(logits, target, 0.5, normalize, "present", 255, corners)
    assert all(a.equal(b) for a, b in zip(counts, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("ratio", ["same", "x4"])
@pytest.mark.parametrize("classes", [1, 2, 16, 17, 19, 33, 150])
def test_chunks_of_classes(classes, ratio):
    case = noise(classes, 1, (2, 3), {"same": (2, 3), "x4": (8, 12)}[ratio])
    weight = torch.rand(classes) + 0.5
    # larger chunks for many classes, since the interpreter is slow; a GPU has too few registers for them
    with chunks_of_classes({33: 16, 150: 64}.get(classes, 8) if DEVICE == "cpu" else 8):
        check(*case, weight)
        check(*case, weight, smoothing=0.2)
        check_counts(*case, classes)


@pytest.mark.parametrize("options", [{"gamma": 2.0}, {"smoothing": 0.2}], ids=str)
@pytest.mark.parametrize("size", [((2, 3), (2, 3)), ((2, 3), (8, 12)), ((4, 9), (3, 5))], ids=["same", "x4", "down"])
def test_offsets(size, options):
    case = noise(11, 1, *size)  # more than one chunk of classes
    check(*case, torch.rand(11) + 0.5, offset=5 * torch.randn(11), **options)


TINY = {
    "label_histogram": {"BLOCK": 32, "DISTINCT": 1, "num_warps": 1},
    "confusion_matrix": {"ROWS": 4, "COLUMNS": 8, "DISTINCT": 1, "num_warps": 1},
    "cam_counts": {"ROWS": 4, "COLUMNS": 8, "num_warps": 1},
    "cam_extremes": {"ROWS": 4, "COLUMNS": 8, "TILES": 3, "num_warps": 1},
    "cross_entropy": {"ITEMS": 32, "CLASSES": 2, "PHASES": 2, "num_warps": 1},
    "cross_entropy_backward": {"CLASSES": 2, "PHASES": 1, "ROWS": 2, "num_warps": 1},
    "cross_entropy_same": {"ITEMS": 32, "CLASSES": 2, "num_warps": 1},
}


CONTENTS_OF_TILES = (noise, smooth, one_class)
SIZES_OF_TILES = (((2, 36), (3, 71)), ((7, 3), (29, 12)), ((9, 5), (4, 11)), ((6, 33), (6, 33)))


@pytest.mark.slow
@pytest.mark.parametrize("content", range(len(CONTENTS_OF_TILES)), ids=[make.__name__ for make in CONTENTS_OF_TILES])
@pytest.mark.parametrize("size", range(len(SIZES_OF_TILES)))
def test_many_small_tiles(size, content):
    """Tiles, strips and blocks end everywhere, and a tile has more distinct pairs than are counted at once."""
    case = CONTENTS_OF_TILES[content](5, 2, *SIZES_OF_TILES[size])
    corners = (size + content) % 2 == 1  # each size and each content with both
    with contextlib.ExitStack() as stack:
        for kernel, configuration in TINY.items():
            stack.enter_context(_tiling.forced(kernel, configuration))
        check(*case, torch.rand(5) + 0.5, corners=corners)
        check_counts(*case, 5, corners)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "index"), [(kernel, i) for kernel, table in _tiling.TABLES.items() for i in range(len(table))]
)
def test_every_configuration(kernel, index):
    case = smooth(6, 1, (9, 13), (36, 50))
    same = smooth(6, 1, (9, 40), (9, 40))
    with _tiling.forced(kernel, _tiling.TABLES[kernel][index]):
        if kernel.startswith("cross_entropy"):
            check(*(same if kernel == "cross_entropy_same" else case), torch.rand(6) + 0.5)
        else:
            check_counts(*case, 6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ratio", ["same", "non-integer"])
def test_offsets_of_64_bits(monkeypatch, ratio, layout):
    """The code for tensors beyond 2^31 elements, on small ones."""
    for module in (confusion_matrix, cam_counts, cross_entropy):
        monkeypatch.setattr(module, "needs_64_bits", lambda tensor: True)
    original = cross_entropy._problem
    monkeypatch.setattr(cross_entropy, "_problem", lambda *arguments: original(*arguments) | {"LONG": True})
    case = noise(5, 2, *RATIOS[ratio])
    check(LAYOUTS[layout](case.logits), case.target, torch.rand(5) + 0.5)
    check_counts(LAYOUTS[layout](case.logits), case.target, 5)


def test_needs_64_bits():
    # strides decide, as for reduction "none" of 14 images of 150 x 1024 x 1024
    assert not _launch.needs_64_bits(torch.empty(1).expand(2, 150, 1024, 1024))
    assert _launch.needs_64_bits(torch.empty(1, device="meta").as_strided((1, 2, 1024, 1024), (0, 0, 2**22, 1)))
    assert not _launch.needs_64_bits(
        torch.empty(1, device="meta").as_strided((1, 2, 512, 1024), (2**40, 2**35, 1024, 1))
    )


@pytest.mark.parametrize("corners", [False, True])
def test_patches_hold_all_samples_of_a_tile(corners):
    """Counted for many sizes. If a patch were too small, the kernel would decide a tile without some of its samples."""
    tile = {"ROWS": 8, "COLUMNS": 32}
    checked = 0
    for in_size in [*range(1, 40), 128, 129, 277, 1023]:
        for out_size in [*range(1, 50, 3), 511, 512, 513, 1024]:
            rows, columns = _tiling.patch(tile, (in_size, in_size), (out_size, out_size), corners)
            if rows == 0:
                continue
            taps = reference.bilinear_taps(in_size, out_size, corners, torch.float32, torch.device("cpu"))
            for size, pixels in ((rows, tile["ROWS"]), (columns, tile["COLUMNS"])):
                for first in range(0, out_size, pixels):
                    last = min(first + pixels, out_size) - 1
                    assert int(taps.high[last] - taps.low[first]) < size
                    checked += 1
    assert checked > 1000


def test_most_outputs_is_the_largest_number_of_pixels_in_a_cell():
    for corners in (False, True):
        for in_size in range(1, 30):
            for out_size in range(1, 60):
                most = _tiling.most_outputs(in_size, out_size, corners)
                # exact, in integers: position = (out * scale + shift) / unit
                scale, shift, unit = (
                    (in_size - 1, 0, max(out_size - 1, 1))
                    if corners
                    else (2 * in_size, in_size - out_size, 2 * out_size)
                )
                cells = [(i * scale + shift) // unit for i in range(out_size)]
                assert max(cells.count(cell) for cell in set(cells)) <= most, (in_size, out_size, corners)


@pytest.mark.slow
@pytest.mark.parametrize("content", ["not_finite", "ties"])
@pytest.mark.parametrize("normalize", reference.NORMALIZATIONS)
def test_hostile_maps_on_small_tiles(normalize, content):
    case = CONTENTS[content](3, 2, (4, 7), (13, 22))
    with contextlib.ExitStack() as stack:
        for kernel in ("cam_counts", "cam_extremes", "confusion_matrix"):
            stack.enter_context(_tiling.forced(kernel, TINY[kernel]))
        check_counts(*case, 3, normalize=normalize)


def test_classes_that_tie_at_one_sample_of_a_patch():
    """At that sample the lower class wins, although it wins nowhere else."""
    logits = torch.ones(1, 2, 4, 4)
    logits[0, 1] = 2
    logits[0, 1, 0, 0] = 1
    target = torch.zeros(1, 16, 16, dtype=torch.uint8)
    check_counts(logits, target, 2)
    assert CF.confusion_matrix(logits, target)[0, 0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("offset", [1, -1])
def test_classes_one_unit_in_the_last_place_apart(offset):
    """Rounding may move an interpolation of equal samples away from them, so decisions from samples need a margin."""
    low = torch.rand(64, 1, 1, 1) * 9
    high = torch.nextafter(low, torch.full_like(low, torch.inf))
    classes = torch.cat((low, high) if offset > 0 else (high, low), 1).expand(64, 2, 3, 3)
    target = torch.zeros(64, 7, 10, dtype=torch.uint8)
    check_counts(classes, target, 2)
    alike = classes.sum(1, keepdim=True)  # at a threshold that some interpolated values exceed
    for tau in (0.5, 1 - 2**-24):
        counts = CF.cam_counts(alike[:8], target[:8], tau=tau)
        expected = reference.cam_counts(alike[:8], target[:8], tau, "max", "present", -100, False)
        assert all(a.equal(b) for a, b in zip(counts, expected, strict=True))


def test_products_that_underflow():
    """Half of the smallest number rounds to 0, so that an interpolated value may be less than all its samples."""
    least = torch.tensor([0.0, 2.0**-149]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    target = torch.ones(1, 5, 5, dtype=torch.uint8)
    check_counts(least, target, 2, corners=True)
    assert CF.confusion_matrix(least, target, align_corners=True)[1, 0] > 0
    options = {"tau": 0.0, "normalize": "none", "align_corners": True}
    assert CF.cam_counts(least, target, **options).fn[1] > 0


def launches(monkeypatch, call):
    """The names of the kernels that ``call`` launches."""
    names = []

    def recorded(kernel, *arguments, **options):
        names.append(kernel.fn.__name__)
        return _launch.launch(kernel, *arguments, **options)

    for module in MODULES:
        monkeypatch.setattr(module, "launch", recorded)
    call()
    return names


def test_number_of_launches(monkeypatch):
    """Each launch costs microseconds, which matters for small batches."""
    case = noise(3, 1, (2, 3), (8, 12))
    x = case.logits.requires_grad_()
    assert launches(monkeypatch, lambda: CF.cross_entropy(x, case.target, ignore_index=255).backward()) == [
        "_label_histogram",
        "_scale",
        "_forward",
        "_total",
        "_backward",
    ]
    assert launches(monkeypatch, lambda: CF.confusion_matrix(x, case.target, ignore_index=255)) == ["_confusion_matrix"]
    assert launches(monkeypatch, lambda: CF.cam_counts(x, case.target, ignore_index=255)) == [
        "_label_histogram",
        "_extremes",
        "_thresholds",
        "_counts",
    ]


@pytest.mark.parametrize("images", [1, 70_000])
def test_grids_of_many_images(monkeypatch, images):
    """The second and third dimension of a grid are limited to 65535, the first to 2^31 - 1."""
    grids = []
    for module in MODULES:
        monkeypatch.setattr(module, "launch", lambda kernel, grid, *others, **options: grids.append(grid))
    logits, target = torch.zeros(images, 2, 2, 2, device="meta"), torch.zeros(images, 8, 8, device="meta").byte()
    counts = torch.zeros(images, 2, device="meta").long()
    labels.label_histogram(target, counts, None, 2, 255)
    labels.confusion_matrix_labels(target, target, counts, counts, 2, 255)
    confusion_matrix.confusion_matrix(logits, target, counts, None, 255, False)
    cam_counts.cam_counts(logits, target, counts, 0.5, "gradcam", "present", 255, False)
    scale = cross_entropy.reduction_scale(counts, 64 * images, None, logits, "mean")
    loss, stats = cross_entropy.cross_entropy(logits, target, None, None, scale, 255, False, 0.0, 0.0, False, True)
    cross_entropy.cross_entropy_backward(loss, logits, target, None, None, scale, stats, 255, 0.0, 0.0, False)
    assert len(grids) == 12
    for first, *others in grids:
        assert 0 < first < 2**31
        assert all(side <= 65535 for side in others)


def test_kernels_run_on_the_tensors_device(monkeypatch):
    """Triton launches on the current device, which may differ from that of the tensors."""
    current, seen = [], []

    @contextlib.contextmanager
    def on_device_of(tensor):
        current.append(tensor)
        yield
        current.pop()

    def recorded(kernel, *arguments, **options):
        seen.append(bool(current))
        return _launch.launch(kernel, *arguments, **options)

    monkeypatch.setattr(backends, "on_device_of", on_device_of)
    monkeypatch.setattr(native, "available", lambda: False)
    for module in MODULES:
        monkeypatch.setattr(module, "launch", recorded)
    case = noise(3, 1, (2, 3), (4, 6))
    for logits in (case.logits, case.logits.double()):  # kernels check the labels for float64 too
        for reduction in ("mean", "sum"):
            x = logits.clone().requires_grad_()
            CF.cross_entropy(x, case.target, ignore_index=255, reduction=reduction).backward()
        CF.confusion_matrix(logits, case.target, ignore_index=255)
        CF.cam_counts(logits, case.target, ignore_index=255)
    CF.cam_counts(case.logits[:0], case.target[:0], ignore_index=255)
    CF.confusion_matrix(case.target.where(case.target < 3, 0), case.target, num_classes=3, ignore_index=255)
    assert len(seen) > 15
    assert all(seen)


def test_statistics_take_8_bytes_per_pixel():
    logits, target = torch.randn(2, 3, 16, 32), torch.randint(0, 3, (2, 64, 128))
    _, _, saved = torch.ops.cawa_fast.cross_entropy(logits, target, None, None, 255, "mean", 0.0, 0.0, False, True)
    assert saved.numel() * saved.element_size() <= 8 * target.numel() * 33 / 32
    _, _, saved = torch.ops.cawa_fast.cross_entropy(logits, target, None, None, 255, "mean", 0.0, 0.0, False, False)
    assert saved.numel() == 0
    for size in ((16, 32), (64, 128)):  # a focal loss has a third value per pixel
        logits = torch.randn(2, 3, *size)
        _, _, saved = torch.ops.cawa_fast.cross_entropy(logits, target, None, None, 255, "mean", 0.0, 2.0, False, True)
        assert saved.numel() == backends.statistics_size(logits, target, 2.0, False)
        assert 12 * target.numel() <= saved.numel() * saved.element_size() <= 12 * target.numel() * 33 / 32


def test_backward_without_statistics_computes_them():
    case = noise(3, 1, (4, 5), (9, 11))
    arguments = (case.logits, case.target, None)
    loss, scale, saved = torch.ops.cawa_fast.cross_entropy(*arguments, None, 255, "mean", 0.0, 0.0, False, True)
    backward = torch.ops.cawa_fast.cross_entropy_backward
    one = torch.ones_like(loss)
    with_them = backward(one, *arguments, None, scale, saved, 255, 0.0, 0.0, False)
    assert backward(one, *arguments, None, scale, saved[:0], 255, 0.0, 0.0, False).equal(with_them)


@pytest.mark.slow
def test_the_same_bits_twice():
    case = smooth(5, 2, (9, 13), (31, 50))
    results = []
    for _ in range(2):
        x = case.logits.clone().requires_grad_()
        loss = CF.cross_entropy(x, case.target, ignore_index=255)
        loss.backward()
        results.append((loss.detach(), x.grad))
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_other_devices_and_dtypes_are_left_to_the_specification(monkeypatch):
    monkeypatch.undo()
    assert not backends.is_triton(torch.empty(1, 2, 3, 3, device="cpu"))
    assert not backends.is_triton(torch.empty(1, 2, 3, 3, device="meta"))
    monkeypatch.setattr(backends, "runs_triton", lambda device: True)
    assert not backends.is_triton(torch.empty(1, 2, 3, 3, dtype=torch.float64))
