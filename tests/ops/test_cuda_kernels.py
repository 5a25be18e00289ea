"""The CUDA kernels of ``csrc/cuda/``, emulated on the CPU: every code path, and threads in any order.

``test_cross_entropy.py`` also runs on them, with the backend "cuda emulation".
"""

import pytest
import torch
import torch.nn.functional as F

from tests.support import emulation
from tests.support.cases import LABELS, LAYOUTS, noise
from tests.support.closeness import assert_no_worse

if emulation.why_not():
    pytest.skip(emulation.why_not(), allow_module_level=True)

PLANAR, INTERLEAVED, STRIDED, MANY, SUM = (
    f"cross_entropy, {name}" for name in ("planar", "interleaved", "strided", "many classes", "sum")
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module", autouse=True)
def _library():
    emulation.load()


def forward(
    input,
    target,
    weight,
    scale,
    ignore_index=255,
    per_pixel=False,
    smoothing=0.0,
    with_grad=True,
    *,
    offset=None,
    gamma=0.0,
):
    return torch.ops.cawa_fast_cuda_emulation.cross_entropy(
        input, target, weight, offset, scale, ignore_index, per_pixel, smoothing, gamma, with_grad
    )


def backward(grad, input, target, weight, scale, ignore_index=255, smoothing=0.0, *, offset=None, gamma=0.0):
    return torch.ops.cawa_fast_cuda_emulation.cross_entropy_backward(
        grad, input, target, weight, offset, scale, ignore_index, smoothing, gamma
    )


def by_formula(dtype, input, target, weight, scale, ignore_index, smoothing, *, grad=None, offset=None, gamma=0.0):
    """The losses of the pixels, their sum weighted by ``scale`` and ``grad``, and the gradient of that sum."""
    leaf = input.detach().to(dtype).requires_grad_()
    logits = leaf if offset is None else leaf + offset.to(dtype).view(-1, *[1] * (leaf.dim() - 2))
    weight, options = None if weight is None else weight.to(dtype), {"ignore_index": ignore_index, "reduction": "none"}
    loss = F.cross_entropy(logits, target.long(), weight, label_smoothing=smoothing, **options)
    if gamma > 0:
        loss = loss * (1 - torch.exp(-F.cross_entropy(logits, target.long(), **options))) ** gamma
    valid = target.long() != ignore_index
    factor = scale.to(dtype)[target.long().where(valid, 0)].where(valid, 0)
    if grad is not None:
        factor = factor * grad.to(dtype)
    loss.backward(factor)
    return loss.detach(), (loss.detach() * factor).sum(), leaf.grad


def check(input, target, weight=None, *, offset=None, smoothing=0.0, gamma=0.0, ignore_index=255, kernel=None):
    """Compare every code path of the operators with PyTorch; ``kernel`` names the kernel that must have run."""
    scale = torch.rand(input.shape[1]) / target.numel()
    pixel_grad, one_grad = torch.randn(target.shape), torch.tensor(0.7)
    options = {"ignore_index": ignore_index, "smoothing": smoothing, "offset": offset, "gamma": gamma}
    emulation.launches()
    loss, grad = forward(input, target, weight, scale, **options)
    if kernel is not None:
        assert emulation.launches() == [kernel, SUM]
    without, no_grad = forward(input, target, weight, scale, with_grad=False, **options)
    pixels, _ = forward(input, target, weight, scale, per_pixel=True, with_grad=False, **options)
    assert loss.equal(without)
    assert no_grad.numel() == 0
    assert grad.dtype == input.dtype
    assert grad.stride() == torch.empty_like(input).stride()
    floor = 1.2e-7 * (1.0 if weight is None else weight.max().item())
    per_pixel = floor * scale.max().item()
    for factor, actual in (
        (None, grad),
        (one_grad, backward(one_grad, input, target, weight, scale, **options)),
        (pixel_grad, backward(pixel_grad, input, target, weight, scale, **options)),
    ):
        exact, pytorch = (
            by_formula(dtype, input, target, weight, scale, **options, grad=factor)
            for dtype in (torch.float64, torch.float32)
        )
        # PyTorch's gradient is rounded to the logits' dtype, as ours must be
        largest = 1.0 if factor is None else factor.abs().max().item()
        assert_no_worse(actual, exact[2], pytorch[2].to(input.dtype), floor=per_pixel * largest)
        if factor is None:
            assert_no_worse(pixels, exact[0], pytorch[0], floor=floor)
            assert_no_worse(loss, exact[1], pytorch[1], floor=floor * scale.max().item())
    return loss, grad


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [1, 2, 8, 19, 33, 150])
def test_classes_and_layouts(classes, layout, smoothing):
    for dtype, size in zip(DTYPES, [(8, 24), (5, 13), (8, 16)], strict=True):
        case = noise(classes, 1, size, size)
        logits, target = LAYOUTS[layout](case.logits.to(dtype)), case.target.to(torch.int16)
        check(logits, target, torch.rand(classes) + 0.1, smoothing=smoothing)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernel_suits_the_layout(dtype):
    size = (2, 24)
    for classes in (1, 2, 19, 150, 600):
        case = noise(classes, 1, size, size)
        logits, target = case.logits.to(dtype), case.target.where(case.target < classes, 0)
        check(logits, target, kernel=PLANAR)
        check(logits[..., :5], target[..., :5], kernel=STRIDED)
        if classes > 1:
            by_pixel = logits.contiguous(memory_format=torch.channels_last)
            check(by_pixel, target, kernel=INTERLEAVED if classes <= 256 else MANY)
    logits, target = torch.randn(1, 20, *size).to(dtype), torch.randint(0, 19, (1, *size))
    check(logits.contiguous(memory_format=torch.channels_last)[:, :19], target, kernel=STRIDED)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_classes(dtype, smoothing):
    for classes, layout in ((3100, "contiguous"), (3101, "channels_last"), (32767, "contiguous")):
        target = torch.randint(0, classes, (1, 2, 3))
        logits = LAYOUTS[layout](3 * torch.randn(1, classes, 2, 3)).to(dtype)
        check(logits, target, torch.rand(classes), smoothing=smoothing, kernel=MANY)


@pytest.mark.parametrize("options", [{"smoothing": 0.1}, {"gamma": 2.0}, {"gamma": 0.7}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_offsets_and_focal_loss(dtype, options):
    for classes, layout, kernel in (
        (19, "contiguous", PLANAR),
        (19, "channels_last", INTERLEAVED),
        (19, "sliced", STRIDED),
        (300, "channels_last", MANY),
        (3100, "contiguous", MANY),
    ):
        target = torch.randint(0, classes, (2, 4, 8)).masked_fill(torch.rand(2, 4, 8) < 0.2, -100)
        logits = LAYOUTS[layout](3 * torch.randn(2, classes, 4, 8).to(dtype))
        weight, offset = torch.rand(classes), 5 * torch.randn(classes)
        check(logits, target, weight, offset=offset, ignore_index=-100, kernel=kernel, **options)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("ignore_index", [-100, 255, 3, 2**40])
def test_labels_that_are_ignored(labels, ignore_index):
    """A label outside the classes or equal to ignore_index has loss and gradient 0, whatever the logits are."""
    classes, size = 19, (8, 16)
    info = torch.iinfo(labels)
    for layout in ("contiguous", "channels_last", "sliced"):
        target = torch.randint(0, classes, (2, *size)).to(labels)
        bad = [info.max, classes, *([-1, info.min] if info.min < 0 else [200])]
        if info.min <= ignore_index <= info.max:
            bad.append(ignore_index)
        for i, value in enumerate(bad):
            target[0, i] = value
        valid = (target.long() >= 0) & (target.long() < classes) & (target.long() != ignore_index)
        logits = torch.randn(2, classes, *size)
        logits[(~valid).unsqueeze(1).expand_as(logits)] = torch.nan
        logits = LAYOUTS[layout](logits)
        scale = torch.rand(classes)
        pixels, _ = forward(logits, target, None, scale, ignore_index, per_pixel=True, with_grad=False)
        loss, grad = forward(logits, target, None, scale, ignore_index, smoothing=0.1)
        assert loss.isfinite()
        assert not pixels[~valid].any()
        assert not grad.movedim(1, -1)[~valid].any()
        known = F.cross_entropy(logits, target.long().where(valid, -100), reduction="none")
        torch.testing.assert_close(pixels[valid], known[valid])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("classes", [19, 300])
def test_not_finite_logits_and_scales(layout, classes):
    target = torch.randint(0, classes, (2, 8, 16))
    logits = torch.randn(2, classes, 8, 16)
    logits[0, 1, 0], logits[0, 2, 1], logits[0, :, 2] = torch.nan, torch.inf, -torch.inf
    logits[0, :, 3] = -torch.inf
    logits[0, 5, 3] = 1.0
    logits[1, :8] = -torch.inf  # a whole group of classes
    target[0, 3], target[1] = 5, 9
    logits = LAYOUTS[layout](logits)
    scale = torch.full((classes,), 0.5)
    for smoothing, offset in ((0.0, None), (0.1, None), (0.0, torch.randn(classes)), (0.1, torch.randn(classes))):
        options = {"smoothing": smoothing, "offset": offset}
        pixels, _ = forward(logits, target, None, scale, per_pixel=True, with_grad=False, **options)
        exact, _, exact_grad = by_formula(torch.float64, logits, target, None, scale, 255, **options)
        torch.testing.assert_close(pixels.double(), exact, rtol=1e-5, atol=1e-6, equal_nan=True)
        _, grad = forward(logits, target, None, scale, **options)
        torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-5, atol=1e-6, equal_nan=True)
    nothing, grad = forward(logits, torch.full_like(target, 255), None, torch.full((classes,), torch.nan))
    assert nothing.isnan()
    assert not grad.any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_logits(layout):
    for classes in (19, 300):
        case = noise(classes, 1, (8, 16), (8, 16))
        target = case.target.where(case.target < classes, 0)
        check(LAYOUTS[layout](1e4 * case.logits - 3e4), target, torch.rand(classes), smoothing=0.0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_the_same_bits_in_any_order_of_threads(layout):
    """If a barrier were missing, some orders of threads would read values before they are written."""
    library = emulation.load()
    for classes in (19, 60, 300):
        case = noise(classes, 2, (2, 24), (2, 24))
        logits, weight, scale = LAYOUTS[layout](case.logits), torch.rand(classes), torch.rand(classes)
        for options in ({"smoothing": 0.1}, {"gamma": 2.0}):
            results = []
            for seed in range(3):
                library.cawa_fast_emulated_seed(seed)
                results.append(forward(logits, case.target, weight, scale, offset=weight, **options))
            assert all(loss.equal(results[0][0]) and grad.equal(results[0][1]) for loss, grad in results)


@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 8), (2, 5, 3, 4, 2), (1, 5, 2, 3, 2, 2), (2, 5, 2, 3, 2, 2, 2)])
def test_dimensions(shape):
    target = torch.randint(0, 5, (*shape[:1], *shape[2:]))
    check(torch.randn(shape), target, torch.rand(5))
    transposed = torch.randn(*shape[:1], *shape[:1:-1], shape[1]).permute(0, -1, *range(len(shape) - 2, 0, -1))
    check(transposed, target, torch.rand(5))
    check(torch.randn(shape[1]).view(1, -1, *[1] * (len(shape) - 2)).expand(shape), target, torch.rand(5))


@pytest.mark.parametrize("shape", [(0, 5, 4, 4), (2, 5, 0, 4), (0, 5)])
def test_no_pixels(shape):
    input, target = torch.randn(shape), torch.zeros(shape[:1] + shape[2:], dtype=torch.uint8)
    loss, grad = forward(input, target, None, torch.ones(5))
    assert loss == 0
    assert grad.shape == shape
    assert forward(input, target, None, torch.full((5,), torch.nan))[0].isnan()
    assert forward(input, target, None, torch.ones(5), per_pixel=True, with_grad=False)[0].shape == target.shape
    assert backward(torch.ones(()), input, target, None, torch.ones(5)).shape == shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.zeros(1, 4, 5).long()}, "same sizes"),
        ({"target": torch.zeros(4, 4).long()}, "input must be"),
        ({"target": torch.zeros(1, 4, 4)}, "target must be uint8"),
        ({"input": torch.zeros(1, 3, 4, 4).double()}, "input must be float32, bfloat16 or float16"),
        ({"input": torch.zeros(1, 0, 4, 4)}, "number of classes"),
        ({"scale": torch.ones(2)}, "scale must be contiguous float32 of 3"),
        ({"weight": torch.ones(3).double()}, "weight must be contiguous float32 of 3"),
        ({"offset": torch.ones(2)}, "offset must be contiguous float32 of 3"),
    ],
)
def test_errors(change, message):
    arguments = {"input": torch.zeros(1, 3, 4, 4), "target": torch.zeros(1, 4, 4).long(), "weight": None}
    with pytest.raises(RuntimeError, match=message):
        forward(**({"scale": torch.ones(3)} | arguments | change))


@pytest.mark.parametrize("upstream", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_formed_gradient_is_recomputed_unless_upstream_is_one(dtype, layout, upstream):
    case = noise(19, 2, (9, 13), (9, 13))
    input, target = LAYOUTS[layout](case.logits.to(dtype)), case.target.to(torch.uint8)
    weight, offset, scale, grad = torch.rand(19), torch.randn(19), torch.rand(19), torch.tensor(upstream)
    mark = 7.0
    for smoothing, gamma in ((0.1, 0.0), (0.0, 2.0)):
        formed = torch.full_like(input, mark)
        torch.ops.cawa_fast_cuda_emulation.cross_entropy_rescale_(
            formed, grad, input, target, weight, offset, scale, 255, smoothing, gamma
        )
        if upstream == 1:
            assert (formed == mark).all()
        else:
            options = {"smoothing": smoothing, "gamma": gamma, "offset": offset}
            assert formed.equal(backward(grad, input, target, weight, scale, **options))
