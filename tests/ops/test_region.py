"""Region sums and the losses made of them, against the same in plain PyTorch, and against other libraries."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import cawa_fast as cf
import cawa_fast.functional as CF
from bench import libraries
from tests.support.cases import CONTENTS, FLOATS, LABELS, LAYOUTS, RATIOS, noise, smooth
from tests.support.closeness import assert_no_worse

C = 5
WEIGHT = torch.tensor([0.2, 1.0, 3.0, 0.7, 1.4])
OFFSET = torch.tensor([-3.0, 0.5, 0.0, 2.25, -0.125])
every_backend = pytest.mark.usefixtures("backend")


def full_resolution(dtype, logits, target, corners=False):
    z = logits.to(dtype)
    if z.dim() == 4 and z.shape[2:] != target.shape[1:]:
        z = F.interpolate(z, target.shape[1:], mode="bilinear", align_corners=corners)
    return z


def sums_by_formula(dtype, logits, target, offset=None, squared=False, corners=False):
    """(N, C) each: intersection and prediction."""
    z = full_resolution(dtype, logits, target, corners)
    shape = (1, -1, *[1] * (z.dim() - 2))
    p = (z if offset is None else z + offset.to(dtype).view(shape)).softmax(1)
    valid = (target != 255).unsqueeze(1)
    truth = F.one_hot(target.long().where(target != 255, 0), z.shape[1]).movedim(-1, 1) * valid
    pixels = tuple(range(2, z.dim()))
    return (p * truth).sum(pixels), ((p * p if squared else p) * valid).sum(pixels), truth.sum(pixels)


def check_sums(logits, target, grads=None, **options):
    """Assert that the sums and their gradient are no worse than PyTorch's."""
    grads = torch.randn(2, len(logits), logits.shape[1]) / target.shape[1:].numel() if grads is None else grads
    results = []
    for dtype in (torch.float64, torch.float32):
        leaf = logits.detach().to(dtype, copy=True).requires_grad_()
        sums = sums_by_formula(dtype, leaf, target, **options)
        sum((s * g.to(dtype)).sum() for s, g in zip(sums[:2], grads, strict=True)).backward()
        results.append((*sums, leaf.grad))
    leaf = logits.detach().requires_grad_()
    names = {"corners": "align_corners"}
    options = {names.get(key, key): value for key, value in options.items()}
    actual = CF.region_sums(leaf, target, per_image=True, ignore_index=255, **options)
    sum((s * g).sum() for s, g in zip(actual[:2], grads, strict=True)).backward()
    exact, pytorch = results
    for mine, right, theirs in zip(actual[:2], exact, pytorch, strict=False):
        assert_no_worse(mine, right, theirs, floor=1e-7)
    assert actual.truth.equal(exact[2].to(actual.truth.dtype))
    assert leaf.grad.dtype == logits.dtype
    if logits.dtype in (torch.float32, torch.float64) and len(logits):
        # One unit in the last place of the derivatives at each pixel of a sample: their differences may be far smaller.
        pixels = max(target[0].numel() / logits[0, 0].numel(), 1)
        assert_no_worse(leaf.grad, exact[3], pytorch[3], floor=1.2e-7 * pixels * grads.abs().max().item())
    elif len(logits):
        limit = (exact[3].abs().max() * 2.0**-8).item()
        torch.testing.assert_close(leaf.grad.double(), exact[3], rtol=2.0**-8, atol=limit * 0.01)


@every_backend
@pytest.mark.sampled
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("ratio", RATIOS)
def test_sums(ratio, corners, squared):
    case = noise(C, 2, *RATIOS[ratio])
    check_sums(case.logits, case.target, corners=corners, squared=squared)


@every_backend
@pytest.mark.sampled
@pytest.mark.parametrize("classes", [1, 2, 19, 150])
@pytest.mark.parametrize("content", ["smooth", "one_class", "ties", "all_ignored", "empty"])
@pytest.mark.parametrize("ratio", ["same", "x4", "up-and-down"])
def test_contents(ratio, content, classes):
    case = CONTENTS[content](classes, 2, *RATIOS[ratio])
    if classes == 1:
        sums = torch.ops.cawa_fast.region_sums(*case, None, None, 255, "sum", 0.0, 0.0, False, False)[1]
        expected = ((case.target != 255).flatten(1).sum(1) if len(case.target) else torch.zeros(0)).float()
        assert sums.equal(expected.view(-1, 1, 1).expand(-1, 2, 1))
    else:
        check_sums(case.logits, case.target, offset=torch.linspace(-1, 1, classes))


@every_backend
@pytest.mark.sampled
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ratio", ["same", "x4"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes_and_layouts(dtype, ratio, layout, labels):
    case = noise(C, 2, *RATIOS[ratio])
    if labels == torch.uint8 or labels == torch.int64:
        check_sums(LAYOUTS[layout](case.logits.to(dtype)), case.target.to(labels), offset=OFFSET)


@every_backend
def test_steep_cells():
    """Logits that change by more than the exponentials of a patch can span."""
    case = noise(C, 2, (6, 9), (48, 72))
    check_sums(case.logits * 30, case.target)


@every_backend
def test_volumes():
    logits, target = torch.randn(2, C, 3, 4, 5), torch.randint(0, C, (2, 3, 4, 5))
    check_sums(logits, target)


def test_not_finite_pixels_show_in_the_sums():
    case = noise(C, 2, (6, 9), (24, 36))
    case.logits[1, 2, 3, 4] = torch.nan
    sums = CF.region_sums(*case, per_image=True, ignore_index=255)
    assert sums.prediction[0].isfinite().all()
    assert sums.prediction[1].isnan().all()
    case.target[1, 10:20, 10:26] = 255  # all pixels that the sample reaches
    assert CF.region_sums(*case, ignore_index=255).prediction.isfinite().all()


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("ratio", ["same", "x4", "down"])
def test_the_same_bits_with_any_number_of_threads(ratio, threads):
    low, high = (
        ((64, 96), (64, 96))
        if ratio == "same"
        else ((64, 48), tuple(s * (4 if ratio == "x4" else 0.5) for s in (64, 48)))
    )
    case = smooth(C, 2, low, tuple(map(int, high)))
    results = []
    before = torch.get_num_threads()
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            leaf = case.logits.clone().requires_grad_()
            loss = cf.CombinedLoss(cf.CrossEntropyLoss(ignore_index=255), cf.DiceLoss(ignore_index=255))(
                leaf, case.target
            )
            loss.backward()
            results.append((loss.detach(), leaf.grad))
    finally:
        torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


# ------------------------------------------------------------------------------------------------------- the losses


def pixel_and_region(pixel, region, leaf, target):
    loss = pixel(leaf, target) * 0.7 + region(leaf, target) * 1.9
    loss.backward()
    return loss.detach(), leaf.grad


@every_backend
@pytest.mark.sampled
@pytest.mark.parametrize(
    "pixel",
    [
        cf.CrossEntropyLoss(WEIGHT, ignore_index=255),
        cf.CrossEntropyLoss(WEIGHT, 255, "pixel_mean", label_smoothing=0.2),
        cf.CrossEntropyLoss(WEIGHT, 255, "class_mean"),
        cf.FocalLoss(2.0, WEIGHT, 255),
        cf.FocalLoss(0.5, None, 255, "sum"),
    ],
    ids=["mean", "smoothing", "class_mean", "focal", "focal, sum"],
)
@pytest.mark.parametrize("region", [cf.DiceLoss, cf.JaccardLoss, cf.TverskyLoss])
@pytest.mark.parametrize("ratio", ["same", "x4", "non-integer"])
def test_combined_is_the_sum(ratio, region, pixel):
    case, region = noise(C, 2, *RATIOS[ratio]), region(weight=WEIGHT, ignore_index=255)
    two = pixel_and_region(pixel, region, case.logits.clone().requires_grad_(), case.target)
    leaf = case.logits.clone().requires_grad_()
    one = cf.CombinedLoss(pixel, region, 0.7, 1.9)(leaf, case.target)
    one.backward()
    torch.testing.assert_close(one.detach(), two[0])
    torch.testing.assert_close(leaf.grad, two[1], rtol=1e-4, atol=1e-6 * two[1].abs().max().item())


def calls_of(monkeypatch, name):
    calls, function = [], getattr(torch.ops.cawa_fast_cpu, name)
    monkeypatch.setattr(torch.ops.cawa_fast_cpu, name, lambda *a: calls.append(name) or function(*a))
    return calls


def test_combined_takes_one_pass_only_if_the_probabilities_are_the_same(monkeypatch):
    case = noise(C, 1, (6, 9), (24, 36))
    offset = torch.zeros(C)
    ce, dice = cf.CrossEntropyLoss, cf.DiceLoss
    pairs = [
        (ce(ignore_index=255), dice(ignore_index=255), 0),
        (ce(ignore_index=255, offset=offset), dice(ignore_index=255), 1),
        (ce(ignore_index=255, align_corners=True), dice(ignore_index=255), 1),
        (ce(ignore_index=255), dice(ignore_index=0), 1),
        (cf.RecallLoss(ignore_index=255), dice(ignore_index=255), 1),
    ]
    for pixel, region, expected in pairs:
        with monkeypatch.context() as patch:
            calls = calls_of(patch, "cross_entropy")
            if region.ignore_index == 0:
                target = case.target.where(case.target != 255, 0)
                cf.CombinedLoss(ce(ignore_index=1), region)(case.logits, target)
            else:
                cf.CombinedLoss(pixel, region)(*case)
        assert len(calls) == expected, pixel


def test_offsets_of_adaptive_weights_enter_the_pixel_loss_only():
    adaptive, case = (
        cf.AdaptiveClassWeights(C, rule="balanced", source="argmax", ignore_index=255),
        noise(C, 1, (6, 9), (24, 36)),
    )
    adaptive.offset.copy_(OFFSET)
    loss = cf.CombinedLoss(cf.CrossEntropyLoss(adaptive, 255), cf.DiceLoss(adaptive, 255))(*case)
    pixel = CF.cross_entropy(*case, adaptive.weight, offset=OFFSET, ignore_index=255)
    torch.testing.assert_close(loss, pixel + cf.DiceLoss(adaptive.weight, 255)(*case))


@pytest.mark.parametrize("classes", ["present", "all", "present_of_all"])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("include", [None, [1, 3]])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_which_classes_count(weight, include, per_image, classes):
    case = noise(C, 3, (6, 9), (24, 36))
    case.target[0][case.target[0] == 3] = 1
    case.target[case.target == 4] = 255
    i, p, t = (x.double() for x in sums_by_formula(torch.float64, *case))
    if not per_image:
        i, p, t = i.sum(0, keepdim=True), p.sum(0, keepdim=True), t.sum(0, keepdim=True)
    losses, factors = [], []
    for image, c in itertools.product(range(len(i)), include or range(C)):
        present = t[image, c] > 0
        w = 1.0 if weight is None else WEIGHT[c].item()
        if present or classes == "all":
            losses.append(w * (1 - (2 * i[image, c] + 0.5) / (p[image, c] + t[image, c] + 0.5)).item())
        if present or classes != "present":
            factors.append(w)
    loss = cf.DiceLoss(weight, 255, smooth=0.5, classes=classes, include=include, per_image=per_image)(*case)
    assert loss.item() == pytest.approx(sum(losses) / sum(factors), rel=1e-5)


def test_special_values_of_tversky():
    case = noise(C, 2, (6, 9), (24, 36))
    tversky = lambda **options: cf.TverskyLoss(ignore_index=255, **options)(*case)  # noqa: E731
    torch.testing.assert_close(
        tversky(alpha=0.5, beta=0.5, smooth=0.5), cf.DiceLoss(ignore_index=255, smooth=1.0)(*case)
    )
    torch.testing.assert_close(tversky(alpha=1, beta=1), cf.JaccardLoss(ignore_index=255)(*case))


def test_live_weights():
    adaptive, case = cf.AdaptiveClassWeights(C), noise(C, 1, (6, 9), (24, 36))
    loss_fn = cf.DiceLoss(adaptive, 255)
    adaptive.weight.copy_(WEIGHT)
    assert loss_fn(*case).equal(cf.DiceLoss(WEIGHT, 255)(*case))


def test_all_ignored():
    leaf, target = torch.randn(1, C, 4, 4, requires_grad=True), torch.full((1, 8, 8), 255)
    loss = cf.DiceLoss(ignore_index=255)(leaf, target)
    loss.backward()
    assert loss == 0
    assert (leaf.grad == 0).all()


@pytest.mark.parametrize("loss", [cf.DiceLoss, cf.JaccardLoss, cf.TverskyLoss])
def test_bfloat16_autocast_and_compile(loss):
    case, loss_fn = noise(C, 2, (6, 9), (24, 36)), loss(ignore_index=255)
    combined = cf.CombinedLoss(cf.CrossEntropyLoss(ignore_index=255), loss_fn)
    results = []
    for function in (combined, torch.compile(combined, fullgraph=True, backend="aot_eager")):
        leaf = case.logits.bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = function(leaf * 1, case.target)
        value.backward()
        results.append((value.detach(), leaf.grad))
    assert results[0][0].dtype == torch.float32
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)
    exact = combined(case.logits.bfloat16().double(), case.target)
    assert results[0][0].item() == pytest.approx(exact.item(), rel=1e-5)


@every_backend
@pytest.mark.sampled
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("size", ["same", "resized"])
def test_opcheck(size, squared):
    case = noise(C, 2, (6, 9), (6, 9) if size == "same" else (13, 36))
    arguments = (WEIGHT, OFFSET, 255, "mean", 0.1, 0.0, squared, False)
    operators = torch.ops.cawa_fast
    torch.library.opcheck(operators.region_sums, (case.logits.requires_grad_(), case.target, *arguments))
    loss, sums, _, scale = operators.region_sums(case.logits.detach(), case.target, *arguments)
    backward = (torch.ones_like(loss), torch.ones_like(sums), case.logits.detach(), case.target, *arguments[:2], scale)
    rest = (255, 0.1, 0.0, squared, False)
    cheap = ("test_schema", "test_faketensor")
    torch.library.opcheck(operators.region_sums_backward, (*backward, *rest), test_utils=cheap)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("size", ["same", "resized"])
def test_gradcheck_of_the_specification(size, squared):
    case = noise(3, 1, (3, 4), (3, 4) if size == "same" else (7, 9))
    leaf = case.logits.double().requires_grad_()
    weights = WEIGHT[:3].double()

    def loss(z):
        arguments = (case.target, weights, None, 255, "mean", 0.1, 0.0, squared, False)
        value, sums, _, _ = torch.ops.cawa_fast.region_sums(z, *arguments)
        return value, sums

    torch.autograd.gradcheck(loss, (leaf,))


def test_transforms_of_torch_func():
    case = noise(C, 1, (5, 6), (11, 13))
    loss_fn = cf.DiceLoss(ignore_index=255)
    leaf = case.logits.clone().requires_grad_()
    loss_fn(leaf, case.target).backward()
    by_transform = torch.func.grad(lambda z: loss_fn(z, case.target))(case.logits)
    torch.testing.assert_close(by_transform, leaf.grad, rtol=1e-4, atol=1e-7)


def test_no_second_derivative():
    case = noise(C, 1, (5, 6), (11, 13))
    leaf = case.logits.requires_grad_()
    (grad,) = torch.autograd.grad(cf.DiceLoss(ignore_index=255)(leaf, case.target), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*F\.interpolate"):
        grad.square().sum().backward()


def test_several_backward_passes_over_one_graph():
    case = noise(C, 1, (5, 6), (20, 24))
    leaf = case.logits.requires_grad_()
    loss = cf.DiceLoss(ignore_index=255)(leaf, case.target)
    first, second = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for _ in range(2))
    assert first.equal(second)


# ------------------------------------------------------------------------------------------------- other libraries


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"eps": 1e-7}, {}),
        ({"smooth": 1.0, "eps": 1e-3}, {"smooth": 1.0, "eps": 1e-3}),
        ({"include": [0, 2]}, {"classes": [0, 2]}),
    ],
    ids=["default", "smooth", "classes"],
)
@pytest.mark.parametrize("name", ["Dice", "Jaccard", "Tversky"])
def test_segmentation_models_pytorch(name, ours, theirs):
    libraries.import_torchvision()
    smp = pytest.importorskip("segmentation_models_pytorch", reason="needs the extra 'models'")
    case = noise(C, 2, (6, 9), (24, 36))
    case.target[case.target == 4] = 1
    if name == "Jaccard":  # it has no ignore_index
        case = case._replace(target=case.target.where(case.target != 255, 0))
    else:
        theirs = {**theirs, "ignore_index": 255}
    if name == "Dice":  # as the Tversky index of 1/2 and 1/2
        ours = {**ours, "smooth": 2 * ours.get("smooth", 0.0), "eps": 2 * ours.get("eps", 1e-7)}
    if name == "Tversky":
        ours, theirs = {**ours, "alpha": 0.3, "beta": 0.7}, {**theirs, "alpha": 0.3, "beta": 0.7}
    results = []
    for library in (
        getattr(smp.losses, f"{name}Loss")(mode="multiclass", **theirs),
        getattr(cf, f"{name}Loss")(ignore_index=255, classes="present_of_all", **ours),
    ):
        leaf = case.logits.clone().requires_grad_()
        loss = library(full_resolution(torch.float32, leaf, case.target), case.target)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(*[r[0] for r in results], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*[r[1] for r in results], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("mode", ["binary", "multilabel"])
def test_sigmoids_of_segmentation_models_pytorch(mode):
    libraries.import_torchvision()
    smp = pytest.importorskip("segmentation_models_pytorch", reason="needs the extra 'models'")
    channels = 1 if mode == "binary" else 3
    logits, target = 3 * torch.randn(2, channels, 6, 9), torch.randint(0, 2, (2, channels, 24, 36))
    theirs = smp.losses.DiceLoss(mode=mode)(full_resolution(torch.float32, logits, target[:, 0]), target)
    ours = cf.DiceLoss(mode=mode, classes="present_of_all")(logits, target)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_monai(background, batch, squared):
    losses = pytest.importorskip("monai.losses", reason="needs the extra 'test'")
    case = noise(C, 2, (6, 9), (24, 36))
    target = case.target.where(case.target != 255, 0)
    z = full_resolution(torch.float32, case.logits, target)
    options = {"softmax": True, "to_onehot_y": True, "batch": batch, "include_background": background}
    ours = {
        "classes": "all",
        "per_image": not batch,
        "include": None if background else range(1, C),
    }
    dice = losses.DiceLoss(squared_pred=squared, **options)(z, target[:, None])
    torch.testing.assert_close(
        cf.DiceLoss(smooth=1e-5, eps=0, squared=squared, **ours)(case.logits, target), dice, rtol=1e-5, atol=1e-6
    )
    if not squared:
        jaccard = losses.DiceLoss(jaccard=True, **options)(z, target[:, None])
        tversky = losses.TverskyLoss(alpha=0.3, beta=0.7, **options)(z, target[:, None])
        ours_too = (
            cf.JaccardLoss(smooth=0.5e-5, eps=0, **ours)(case.logits, target),
            cf.TverskyLoss(0.3, 0.7, smooth=1e-5, eps=0, **ours)(case.logits, target),
        )
        torch.testing.assert_close(ours_too, (jaccard, tversky), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"mode": "sigmoid"},
            ValueError,
            "DiceLoss: mode must be one of multiclass, binary, multilabel; got 'sigmoid'",
        ),
        ({"classes": "absent"}, ValueError, "DiceLoss: classes must be one of present, all, present_of_all"),
        ({"smooth": -1.0}, ValueError, "DiceLoss: smooth must be finite and at least 0, got -1.0"),
        ({"smooth": (1.0, 2.0, 3.0)}, ValueError, "DiceLoss: smooth must be one number, or two"),
        ({"eps": float("nan")}, ValueError, "DiceLoss: eps must be finite.*nan"),
        ({"include": [1, 1]}, ValueError, r"DiceLoss: include must be different class indices.*\[1, 1\]"),
        ({"include": ["sky"]}, TypeError, "DiceLoss: include must be an integer.*'sky'"),
        ({"weight": torch.tensor([1.0, -1.0])}, ValueError, r"weight\[1\] is -1.0"),
        ({"squared": "yes"}, TypeError, "DiceLoss: squared must be True or False"),
    ],
    ids=str,
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        cf.DiceLoss(**options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, t: cf.DiceLoss(include=[7])(x, t), ValueError, "include has class 7, but there are 5 classes"),
        (lambda x, t: cf.DiceLoss(torch.ones(3))(x, t), ValueError, r"DiceLoss: weight must have.* 5 classes.*\(3,\)"),
        (
            lambda x, t: cf.DiceLoss()(x[:, :1], t),
            ValueError,
            'one class, whose softmax is always 1; use mode="binary"',
        ),
        (lambda x, t: cf.DiceLoss(mode="binary")(x, t), ValueError, r"input must be \(N, 1, h, w\).*multilabel"),
        (lambda x, t: cf.DiceLoss(mode="multilabel")(x, t), ValueError, r"target must be \(N, 5, H, W\) of 0 and 1"),
        (lambda x, t: cf.DiceLoss(mode="binary")(x[:, :1], t), ValueError, "target.*outside"),
        (lambda x, t: cf.DiceLoss()(x, t + 1), ValueError, r"target.*outside \[0, 5\)|target.*5"),
        (lambda x, t: cf.DiceLoss()(x, t.float()), TypeError, "target must hold class indices"),
        (lambda x, t: cf.DiceLoss()(x, t[:1]), ValueError, r"target must be \(N, H, W\) with N = 2"),
        (lambda x, t: cf.DiceLoss(offset=torch.zeros(2))(x, t), ValueError, "offset must have one value"),
        (lambda x, t: CF.region_sums(x, t, mode="binary", offset=torch.zeros(5)), ValueError, "offset needs mode"),
    ],
    ids=lambda value: None,
)
def test_wrong_calls(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(2, C, 4, 4), torch.arange(2 * 64).view(2, 8, 8) % C)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((cf.CrossEntropyLoss(), cf.CrossEntropyLoss()), TypeError, "region_loss must be DiceLoss.*CrossEntropyLoss"),
        ((None, cf.DiceLoss()), TypeError, "pixel_loss must be a loss module, got None"),
        ((cf.CrossEntropyLoss(reduction="none"), cf.DiceLoss()), ValueError, "pixel_loss has reduction='none'"),
        ((cf.CrossEntropyLoss(), cf.DiceLoss(), float("inf")), ValueError, "pixel_factor must be finite, got inf"),
    ],
    ids=["region", "pixel", "none", "factor"],
)
def test_wrong_pairs(arguments, error, message):
    with pytest.raises(error, match=message):
        cf.CombinedLoss(*arguments)
