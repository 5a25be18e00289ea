"""``CAWA``: the closed loop around an unmodified network."""

import copy
import gc
import io
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cawa_fast as cf
from tests.conftest import DEVICE

pytestmark = pytest.mark.usefixtures("backend")

C = 4


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, C, 1),
        nn.Upsample(scale_factor=4, mode="bilinear"),
    )


def batch(n=2):
    target = torch.randint(0, C, (n, 32, 40), dtype=torch.uint8)
    target[:, :3] = 255
    return torch.randn(n, 3, 32, 40), target


@pytest.mark.slow_in_interpreter
def test_the_closed_loop():
    """For three epochs, the loss is cross-entropy with the current weights, and every step changes the weights."""
    model = network()
    cawa = cf.CAWA(model, C, ignore_index=255)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images, target = batch()
    assert cawa.weight.equal(torch.ones(C))
    for _ in range(3):
        logits = model.train()(images)
        loss = cawa.loss(target)
        expected = F.cross_entropy(logits, target.long(), cawa.weight, ignore_index=255)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        parameters = list(model.parameters())
        wanted = torch.autograd.grad(expected, parameters, retain_graph=True)
        optimizer.zero_grad()
        loss.backward()
        for p, g in zip(parameters, wanted, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-6)
        optimizer.step()
        before = cawa.weight.clone()
        with torch.no_grad():
            model.eval()(images)
            cawa.observe(target)
        after = cawa.step()
        assert after is cawa.weight
        assert not after.equal(before)
        assert after.mean().item() == pytest.approx(1)
    assert len(cawa.weights.history) == 3


@pytest.mark.parametrize("source", ["cam", "argmax"])
def test_the_separate_parts_compute_the_same(source):
    model = network().eval()
    options = {"tau": 0.4, "delta": 0.7, "ratio": "paper", "normalize": "minmax", "source": source}
    cawa = cf.CAWA(model, C, ignore_index=255, align_corners=True, **options)
    weights = cf.AdaptiveClassWeights(C, ignore_index=255, align_corners=True, **options)
    for _ in range(2):
        images, target = batch()
        with torch.no_grad(), cf.GradCAM(model) as cam:
            model(images)
            assert cawa.maps().equal(cam())
            weights.observe(cam() if source == "cam" else cawa.logits, target)
            cawa.observe(target)
        assert cawa.step().equal(weights.step())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "valid_mean", "pixel_mean", "class_mean"])
def test_options_of_the_loss(reduction):
    model = network()
    cawa = cf.CAWA(model, C, reduction=reduction, label_smoothing=0.1, ignore_index=255, align_corners=True)
    images, target = batch()
    model(images)
    loss_fn = cf.CrossEntropyLoss(None, 255, reduction, 0.1, True)
    torch.testing.assert_close(cawa.loss(target), loss_fn(cawa.logits, target))


def test_the_network_is_not_modified():
    model = network()
    keys = list(model.state_dict())
    cawa = cf.CAWA(model, C)
    assert list(model.state_dict()) == keys
    assert not list(cawa.parameters())
    images, _ = batch()
    plain = copy.deepcopy(network().eval())
    plain.load_state_dict(model.state_dict())
    assert model.eval()(images).equal(plain(images))


def test_state_dict_round_trip():
    model = network().eval()
    cawa, resumed = cf.CAWA(model, C, ignore_index=255), cf.CAWA(network(), C, ignore_index=255)
    images, target = batch()
    model(images)
    cawa.observe(target)
    cawa.step()
    file = io.BytesIO()
    torch.save(cawa.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.weight.equal(cawa.weight)
    assert resumed.criterion.adaptive.weight is resumed.weight
    assert resumed.weights.history == cawa.weights.history


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_network_changes_dtype(dtype):
    model = network().eval()
    cawa = cf.CAWA(model, C, ignore_index=255)
    images, target = batch()
    model.to(dtype)
    logits = model(images.to(dtype))
    torch.testing.assert_close(
        cawa.loss(target).double(), F.cross_entropy(logits.double(), target.long(), ignore_index=255), rtol=1e-2, atol=0
    )
    cawa.loss(target).backward()
    assert model[3].weight.grad.dtype == dtype
    cawa.observe(target)
    assert cawa.step().dtype == torch.float32


def test_before_the_first_forward_pass():
    cawa = cf.CAWA(network(), C)
    _, target = batch()
    for call in (lambda: cawa.loss(target), lambda: cawa.observe(target), cawa.maps, lambda: cawa.logits):
        with pytest.raises(RuntimeError, match=r"classifier has not run.*model\(images\)"):
            call()
    with pytest.raises(RuntimeError, match="observe"):
        cawa.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 7}, "num_classes=7"),
        ({"classifier": "0"}, "classifier must be a 1x1"),
        ({"classifier": "head"}, "classifier.*'head'"),
        ({"tau": 2.0}, "tau.*2.0"),
        ({"reduction": "average"}, "reduction.*'average'"),
    ],
)
def test_errors_name_the_argument_and_the_value(options, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        cf.CAWA(model, **{"num_classes": C} | options)
    assert not any(m._forward_hooks for m in model.modules())  # no hook is left


def test_an_unknown_option_is_named():
    with pytest.raises(TypeError, match="temperature"):
        cf.CAWA(network(), C, temperature=3)


@pytest.mark.slow_in_interpreter
@pytest.mark.parametrize("backend_name", ["eager", "aot_eager"])
def test_compiled_network(backend_name):
    torch._dynamo.reset()
    model = network().eval()
    cawa = cf.CAWA(model, C, ignore_index=255)
    compiled = torch.compile(model, backend=backend_name)
    for _ in range(2):
        images, target = batch()
        logits = compiled(images)
        torch.testing.assert_close(
            cawa.loss(target),
            F.cross_entropy(logits, target.long(), cawa.weight, ignore_index=255),
            rtol=1e-5,
            atol=1e-6,
        )
        cawa.loss(target).backward()
        with torch.no_grad():
            compiled(images)
            cawa.observe(target)
        assert cawa.step().isfinite().all()


def test_made_from_a_compiled_network():
    torch._dynamo.reset()
    compiled = torch.compile(network().eval(), backend="eager")
    cawa = cf.CAWA(compiled, C, ignore_index=255)
    images, target = batch()
    compiled(images)
    assert cawa.loss(target).isfinite()


def test_autocast():
    model = network().eval()
    cawa = cf.CAWA(model, C, ignore_index=255)
    images, target = batch()
    with torch.autocast(DEVICE, torch.bfloat16):
        model(images)
        loss = cawa.loss(target)
        cawa.observe(target)
    assert cawa.logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    loss.backward()
    cawa.step()


def test_close():
    model = network()
    cawa = cf.CAWA(model, C)
    model(batch()[0])
    cawa.close()
    assert not model[3]._forward_hooks
    with pytest.raises(RuntimeError, match="has not run"):
        cawa.maps()


def test_a_copy_of_the_network_for_an_average_of_weights():
    """``torch.optim.swa_utils.AveragedModel`` copies the network during training. The copy must not report to CAWA."""
    model = network()
    cawa = cf.CAWA(model, C, ignore_index=255)
    images, target = batch()
    model(images)
    average = torch.optim.swa_utils.AveragedModel(model)
    logits = cawa.logits
    average(images)
    assert cawa.logits is logits
    cawa.loss(target).backward()


def test_hooks_that_came_with_a_copy_are_removed():
    model = network()
    cawa = cf.CAWA(model, C)
    twin = copy.deepcopy(model)
    del cawa
    for each in (twin, model):
        other = cf.CAWA(each, C)
        assert [len(module._forward_hooks) for module in (each, each[3])] == [1, 1]
        assert len(each._forward_pre_hooks) == 1
        other.close()
        assert not any(module._forward_hooks or module._forward_hooks_with_kwargs for module in each.modules())
        assert not any(module._forward_pre_hooks or module._forward_pre_hooks_with_kwargs for module in each.modules())


def test_saving_the_whole_network():
    model = network()
    cawa = cf.CAWA(model, C)
    model(batch()[0])
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    images, _ = batch()
    assert loaded.eval()(images).equal(model.eval()(images))
    assert cawa.logits.shape == (2, C, 8, 10)


def test_the_last_graph_is_freed_with_its_owners():
    """Without a reference cycle, the memory of the last forward pass is freed at once and not by garbage collection."""
    gc.collect()
    gc.disable()
    try:
        model = network()
        cawa = cf.CAWA(model, C)
        model(batch()[0])
        logits = weakref.ref(cawa.logits)
        del model, cawa
        assert logits() is None
    finally:
        gc.enable()
