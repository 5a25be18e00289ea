"""The compiled CPU kernels beyond correct results: the same bits for any number of threads, bounded memory, ..."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import cawa_fast as cf
import cawa_fast.functional as CF
from cawa_fast._ops import native
from tests.support.cases import LAYOUTS, noise, smooth
from tests.support.closeness import assert_no_worse

pytestmark = [
    pytest.mark.skipif(not native.available(), reason=str(native.why_not())),
]
needs_each_set = pytest.mark.usefixtures("each_set")


@pytest.fixture(params=native.instruction_sets())
def each_set(request):
    native.use_instruction_set(request.param)
    yield request.param
    native.use_instruction_set(native.instruction_sets()[-1])


@pytest.fixture
def threads():
    """``torch.set_num_threads``, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def everything(logits, target, **options):
    """All results of all operators for one input."""
    leaf = logits.detach().requires_grad_()
    results = []
    for reduction in ("mean", "none"):
        loss = CF.cross_entropy(leaf, target, ignore_index=255, reduction=reduction, label_smoothing=0.1, **options)
        (grad,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss))
        results += [loss.detach(), grad]
    results.append(CF.confusion_matrix(logits, target, ignore_index=255, **options))
    for normalize in ("max", "minmax", "gradcam", "none"):
        results += CF.cam_counts(logits.relu(), target, normalize=normalize, ignore_index=255, **options)
    return results


def assert_same_bits(actual, expected):
    assert len(actual) == len(expected)
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype == b.dtype
        assert a.stride() == b.stride()
        assert torch.equal(a, b), f"result {i} differs"


SIZES = {
    "same": ((61, 83), (61, 83)),
    "x4": ((23, 37), (92, 148)),
    "3.7": ((33, 41), (122, 152)),
    "down": ((90, 120), (31, 47)),
}


@needs_each_set
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("size", SIZES)
def test_the_same_bits_for_any_number_of_threads(size, layout, threads):
    logits, target = smooth(19, 2, *SIZES[size])
    logits, target = LAYOUTS[layout](logits), target.to(torch.uint8)
    threads(1)
    expected = everything(logits, target)
    for count in (1, 2, 3, 7, 16):
        threads(count)
        assert_same_bits(everything(logits, target), expected)


def test_several_python_threads_at_once():
    problems = [noise(5 + i, 2, (17, 23), (40 + i, 61)) for i in range(8)]
    expected = [everything(*problem) for problem in problems]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for actual, right in zip(pool.map(lambda p: everything(*p), problems), expected, strict=True):
                assert_same_bits(actual, right)


@pytest.mark.parametrize("operator", ["cross_entropy", "confusion_matrix", "cam_counts"])
def test_other_python_threads_run_during_a_kernel(operator, threads):
    """A kernel releases the GIL, so that other Python threads run meanwhile."""
    threads(1)
    logits = torch.randn(1, 64, 512, 512)
    target = torch.randint(0, 64, (1, 1024, 1024), dtype=torch.uint8)
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    getattr(CF, operator)(logits, target)
    end = time.perf_counter()
    stop.set()
    thread.join()
    inside = sum(start < at < end for at in ticks)
    assert end - start > 0.02, "the call is too short for this test"
    assert inside >= 5


# ------------------------------------------------------------------------------------------------------- the gradient


def big(requires_grad=True):
    """Logits and labels whose gradient has more than 4 MiB, so that its memory is kept for the next step."""
    logits = torch.randn(1, 19, 300, 400)
    target = torch.randint(0, 19, (1, 300, 400))
    return logits.requires_grad_(requires_grad), target


def by_pytorch(logits, target, dtype=torch.float32):
    """Loss and gradient."""
    leaf = logits.detach().to(dtype, copy=True).requires_grad_()
    z = leaf if leaf.shape[2:] == target.shape[1:] else F.interpolate(leaf, target.shape[1:], mode="bilinear")
    loss = F.cross_entropy(z, target, ignore_index=255)
    loss.backward()
    return loss.detach(), leaf.grad


def test_gradients_that_are_kept_are_not_overwritten():
    """The next step does not overwrite a gradient that is still referenced."""
    kept = []
    for _ in range(4):
        logits, target = big()
        (grad,) = torch.autograd.grad(CF.cross_entropy(logits, target), logits)
        kept.append((grad, by_pytorch(logits, target)[1]))
        (forgotten,) = torch.autograd.grad(CF.cross_entropy(logits, target), logits)
        del forgotten
    for grad, expected in kept:
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-9)


def test_accumulation():
    logits, target = big()
    expected = by_pytorch(logits, target)[1]
    for step in range(1, 4):
        CF.cross_entropy(logits, target).backward()
        torch.testing.assert_close(logits.grad, step * expected, rtol=1e-5, atol=1e-9)


def test_backward_twice_with_changes_in_between():
    logits, target = big()
    loss = CF.cross_entropy(logits, target)
    expected = by_pytorch(logits, target)[1]
    for factor in (1.0, 2.0, 0.5):
        (grad,) = torch.autograd.grad(factor * loss, logits, retain_graph=True)
        torch.testing.assert_close(grad, factor * expected, rtol=1e-5, atol=1e-9)
        grad.fill_(torch.nan)


def test_two_losses_of_one_input():
    logits, target = big()
    other = (target + 1) % 19
    (CF.cross_entropy(logits, target) + 0.4 * CF.cross_entropy(logits, other)).backward()
    expected = by_pytorch(logits, target)[1] + 0.4 * by_pytorch(logits, other)[1]
    torch.testing.assert_close(logits.grad, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("size", ["same", "x4"])
def test_float16_gradients_survive_with_a_scaled_loss(size):
    """Without loss scaling they would underflow: the mean over 100,000 pixels is below float16's smallest number."""
    logits, target = noise(3, 8, *SIZES[size])
    target[target == 255] = 0
    logits = logits.half().requires_grad_()
    scale = 2.0**16
    (scale * CF.cross_entropy(logits, target)).backward()
    exact = scale * by_pytorch(logits, target, torch.float64)[1]
    error = (logits.grad - exact).abs().max() / exact.abs().max()
    assert error < 1e-3  # half a unit in the last place of float16 is 2^-11
    assert (logits.grad == 0).float().mean() < 0.001


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("factor", [1.0, 0.5, 0.4, 1.37])
def test_bfloat16_gradients_are_rounded_once(factor, compiled):
    logits, target = noise(19, 2, *SIZES["same"])
    logits = logits.bfloat16().requires_grad_()
    exact = factor * by_pytorch(logits, target, torch.float64)[1]

    def loss(x, y):
        return factor * CF.cross_entropy(x, y, ignore_index=255)

    function = torch.compile(loss, backend="aot_eager", fullgraph=True) if compiled else loss
    (grad,) = torch.autograd.grad(function(logits, target), logits)
    half_ulp = 2.0**-8 * exact.abs()
    assert ((grad - exact).abs() <= 1.01 * half_ulp + 1e-12).all()


@needs_each_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [5, 16, 19, 150])
@pytest.mark.parametrize("size", SIZES)
def test_the_gradient_keeps_the_memory_format(size, classes, dtype):
    logits, target = noise(classes, 2, *SIZES[size])
    logits = logits.to(dtype)
    leaf = logits.contiguous(memory_format=torch.channels_last).requires_grad_()
    CF.cross_entropy(leaf, target, ignore_index=255).backward()
    assert leaf.grad.is_contiguous(memory_format=torch.channels_last)
    plain = logits.detach().requires_grad_()
    CF.cross_entropy(plain, target, ignore_index=255).backward()
    assert torch.equal(leaf.grad, plain.grad)


@needs_each_set
@pytest.mark.parametrize("size", SIZES)
def test_a_thousand_classes(size):
    logits, target = noise(1000, 1, *SIZES[size])
    leaf = logits.requires_grad_()
    loss = CF.cross_entropy(leaf, target, ignore_index=255)
    loss.backward()
    exact, pytorch = by_pytorch(logits, target, torch.float64), by_pytorch(logits, target)
    assert_no_worse(loss, exact[0], pytorch[0])
    assert_no_worse(leaf.grad, exact[1], pytorch[1])
    counts = CF.confusion_matrix(logits, target, ignore_index=255)
    assert counts.sum() == (target != 255).sum()


def test_what_the_kernels_do_not_take_is_served_by_the_reference():
    """The kernels support neither 100,000 classes nor nine dimensions."""
    logits, target = torch.randn(3, 100_000), torch.tensor([5, 99_999, 70_000])
    torch.testing.assert_close(CF.cross_entropy(logits, target), F.cross_entropy(logits, target))
    logits = torch.randn(2, 3, *(2,) * 7).transpose(2, 5).requires_grad_()
    target = torch.randint(0, 3, (2, *(2,) * 7))
    loss = CF.cross_entropy(logits, target)
    torch.testing.assert_close(loss, F.cross_entropy(logits, target))
    loss.backward()
    assert logits.grad.stride() == torch.empty_like(logits).stride()


def test_dimensions_that_do_not_merge():
    logits = torch.randn(3, 7, 5, 4, 6, 3).permute(2, 1, 4, 0, 5, 3).requires_grad_()  # (5, 7, 6, 3, 3, 4)
    target = torch.randint(0, 7, (5, 6, 3, 3, 4))
    expected = by_pytorch(logits.reshape(5, 7, -1), target.reshape(5, -1), torch.float64)
    loss = CF.cross_entropy(logits, target)
    loss.backward()
    torch.testing.assert_close(loss.double(), expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.grad.double().reshape(expected[1].shape), expected[1], rtol=1e-5, atol=1e-8)


# ------------------------------------------------------------------------------------------------------- large


def test_more_than_two_to_the_31_elements():
    """Offsets have 64 bits: the last image of a large batch has the same results as alone.

    To save memory, the logits are one image, expanded.
    """
    classes, size, images = 151, (150, 200), 500
    one = torch.randn(1, classes, *size).bfloat16()
    logits = one.expand(images, -1, -1, -1)
    assert logits.numel() > 2**31
    target = torch.randint(0, classes, (images, *size), dtype=torch.uint8)
    loss = CF.cross_entropy(logits, target, reduction="none")
    assert torch.equal(loss[-1:], CF.cross_entropy(one, target[-1:], reduction="none"))
    target[:-1] = 255
    whole = CF.confusion_matrix(logits, target, ignore_index=255)
    assert torch.equal(whole, CF.confusion_matrix(one, target[-1:], ignore_index=255))
    counts = CF.cam_counts(logits, target, ignore_index=255)
    for actual, expected in zip(counts, CF.cam_counts(one, target[-1:], ignore_index=255), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.slow
def test_a_gradient_of_more_than_two_to_the_31_elements():
    """The gradient has an element per logit and takes 4.3 GB."""
    classes, size, images = 151, (150, 200), 475
    one = torch.randn(1, classes, *size).bfloat16()
    target = torch.full((images, *size), 255, dtype=torch.uint8)
    target[-1] = torch.randint(0, classes, size)
    logits = one.expand(images, -1, -1, -1).requires_grad_()
    assert logits.numel() > 2**31
    (grad,) = torch.autograd.grad(CF.cross_entropy(logits, target, ignore_index=255), logits)
    leaf = one.requires_grad_()
    (expected,) = torch.autograd.grad(CF.cross_entropy(leaf, target[-1:], ignore_index=255), leaf)
    assert torch.equal(grad[-1:], expected)
    assert not grad[0].any()
    del grad
    native.release_gradient_memory()


MEMORY = """
import json, sys, torch
import cawa_fast.functional as CF
from pathlib import Path

def kilobytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))

def step(logits, target):
    CF.cross_entropy(logits, target, ignore_index=255).backward()

torch.set_num_threads(2)
dtype = getattr(torch, sys.argv[1])
warm = torch.randn(1, 3, 8, 8, dtype=dtype, requires_grad=True)
step(warm, torch.zeros(1, 16, 16, dtype=torch.uint8))
format = getattr(torch, sys.argv[2])
logits = torch.randn(2, 150, 128, 128).to(dtype).contiguous(memory_format=format).requires_grad_()
target = torch.randint(0, 150, (2, 512, 512), dtype=torch.uint8)
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
step(logits, target)
print(json.dumps(1024 * (kilobytes("VmHWM") - before)))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system has no resettable memory peak")
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        ("float32", "contiguous_format"),
        ("float32", "channels_last"),
        ("bfloat16", "contiguous_format"),
        ("float16", "channels_last"),
    ],
)
def test_peak_memory_of_resize_and_cross_entropy(dtype, layout):
    """At most the low-resolution gradient, 8 bytes per label pixel and scratch per thread, so no copy of the logits."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-c", MEMORY, dtype, layout]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout)
    gradient = 2 * 150 * 128 * 128 * getattr(torch, dtype).itemsize
    # per thread: two rows of logits and two of gradient sums, of 2 * 150 * 128 floats each, and the kept exponentials
    scratch = 2 * (150 * 128 * 4 * 8 + 256 * 1024)
    noise = 1 << 20  # the system counts memory in batches of pages
    assert gradient / 2 < peak <= gradient + 8 * 2 * 512 * 512 + scratch + noise
    assert peak < 2 * 150 * 512 * 512 * 4 / 10, "the peak must be far below the size of the logits at label resolution"


# ---------------------------------------------------------------------------------------- the choice of instruction set


@pytest.mark.parametrize("name", native.instruction_sets())
def test_instruction_set_from_the_environment(name):
    code = "from cawa_fast._ops import native; print(native.build_info()['cpu'])"
    environment = os.environ | {"CAWA_FAST_CPU": name}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).split() == [name]


def test_unknown_instruction_set():
    done = subprocess.run(
        [sys.executable, "-c", "import cawa_fast"],
        env=os.environ | {"CAWA_FAST_CPU": "sse9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "ValueError: CAWA_FAST_CPU=sse9: this processor and this build have " in done.stderr


def test_the_best_instruction_set_is_the_default():
    assert native.build_info()["cpu"] == native.instruction_sets()[-1]
    assert set(native.instruction_sets()) <= set(native.build_info()["instruction_sets"])


def test_no_second_openmp():
    """The extension uses torch's threads and links no OpenMP runtime of its own."""
    assert b"gomp" not in Path(native._extension.__file__).read_bytes()


def test_bad_labels_are_reported_with_any_reduction():
    logits, target = noise(4, 1, (5, 6), (20, 24))
    target[0, 3, 4] = 17
    for reduction in ("mean", "sum", "none", "pixel_mean", "class_mean"):
        with pytest.raises(ValueError, match="1 pixel has the value 17"):
            CF.cross_entropy(logits, target, ignore_index=255, reduction=reduction)
    previous = cf.set_label_check("off")
    try:
        loss = CF.cross_entropy(logits, target, ignore_index=255)
    finally:
        cf.set_label_check(previous)
    target[0, 3, 4] = 255
    assert torch.equal(loss, CF.cross_entropy(logits, target, ignore_index=255))
