"""Which layer computes the logits: where none agrees, or several do, an error or the log says so."""

from __future__ import annotations

import copy
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cawa_fast as cf
from cawa_fast.cam import METHODS
from tests.support.heads import C, Net, batch, check, head, listen, up


class StandardisedConv2d(nn.Conv2d):
    """Of timm, for example: its weight is not the one that it convolves with."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


MISMATCHES: dict[str, tuple[Any, dict[str, nn.Module], str]] = {
    "sum of heads": (lambda net, x: up(net.low(x) + net.high(x)), {"low": head(), "high": head()}, r"% off"),
    "scale": (lambda net, x: up(net.head(x) * 3), {"head": head()}, r"head: \(2, 5, 8, 10\), .*% off"),
    "temperature that is learned": (
        lambda net, x: up(net.scale(net.head(x))),
        {"head": head(), "scale": nn.BatchNorm2d(C)},
        "% off",
    ),
    "nearest": (lambda net, x: up(net.head(x), mode="nearest"), {"head": head()}, "mode='nearest'"),
    "bicubic": (lambda net, x: up(net.head(x), mode="bicubic"), {"head": head()}, "mode='bicubic'"),
    "resized twice": (
        lambda net, x: up(F.interpolate(net.head(x), scale_factor=2, mode="bilinear")),
        {"head": head()},
        "% off",
    ),
    "cropped": (
        lambda net, x: F.interpolate(net.head(x), scale_factor=5, mode="bilinear")[..., 4:-4, 5:-5],
        {"head": head()},
        "% off",
    ),
    "dropout": (lambda net, x: up(F.dropout(net.head(x), 0.5)), {"head": head()}, "% off"),
    "3x3 with reflected borders after it": (
        lambda net, x: up(net.last(net.head(x))),
        {"head": head(), "last": nn.Conv2d(C, C, 3, padding=1, padding_mode="reflect")},
        "% off",
    ),
    "channels permuted": (lambda net, x: up(net.head(x))[:, [1, 0, 2, 3, 4]], {"head": head()}, "% off"),
    "did not run": (
        lambda net, x: up(net.last(x)) + net.tiny(x).sum() * 0,
        {"unused": head(), "tiny": head(), "last": nn.Conv2d(8, C, 3, stride=2)},
        r"unused: did not run\n  tiny",
    ),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_no_layer_agrees(name: str) -> None:
    forward, heads, message = MISMATCHES[name]
    model = Net(forward, **copy.deepcopy(heads))
    with pytest.raises(ValueError, match=r"should be the bilinearly resized output of its classifier") as error:
        listen(model)
    assert error.match(message)
    assert error.match(r"classifier=.*CAWA\(None, 5\), cawa.loss\(labels, logits=z\).*verify=False")
    for part in heads:
        assert part in str(error.value) or not isinstance(heads[part], nn.Conv2d) or heads[part].kernel_size != (1, 1)
    images, _ = batch()
    with cf.GradCAM(model, num_classes=C), pytest.raises(ValueError, match="target_layer, which works with any"):
        model(images)


LEARNED = {
    "scale of 1": lambda net, x: net.head(x) * net.factor,
    "adapter of 0": lambda net, x: net.head(x) + net.right(net.left(x)),
    "residual": lambda net, x: net.head(x) * (1 + net.right.weight.sum()),
}


@pytest.mark.parametrize("name", LEARNED)
def test_what_changes_nothing_before_training_is_seen(name: str) -> None:
    model = Net(
        lambda net, x: up(LEARNED[name](net, x)),
        head=head(),
        left=nn.Conv2d(8, 2, 1),
        right=nn.Conv2d(2, C, 1, bias=False),
    )
    model.factor = nn.Parameter(torch.ones(()))
    nn.init.zeros_(model.right.weight)
    with pytest.raises(ValueError, match=r"head.*agrees now, but other trained layers are between it and the output"):
        listen(model, classifier="head")


def test_dropout_after_the_classifier_agrees_in_evaluation_only() -> None:
    model = Net(lambda net, x: up(net.drop(net.head(x))), head=head(), drop=nn.Dropout(0.5))
    images, labels = batch()
    cawa = cf.CAWA(model, C)
    with torch.no_grad():
        model.eval()(images)
        cawa.observe(labels)
    model.train()(images)
    with pytest.raises(ValueError, match="% off"):
        cawa.loss(labels)


def test_dropout_before_the_classifier() -> None:
    cawa, _, loss = listen(Net(lambda net, x: up(net.head(net.drop(x))), head=head(), drop=nn.Dropout2d(0.5)))
    assert "'head'" in cawa.explain()
    assert loss.isfinite()


@pytest.mark.parametrize("keys", [("segmentation", "depth"), ("a", "b")])
def test_two_tasks_with_as_many_channels(keys: tuple[str, str]) -> None:
    model = Net(lambda net, x: {keys[0]: up(net.one(x)), keys[1]: up(net.two(x))}, one=head(), two=head())
    with pytest.raises(ValueError, match=r"several outputs.*have 5 channels") as error:
        listen(model)
    assert error.match(rf"one: output\['{keys[0]}'\]\n  two: output\['{keys[1]}'\]\nPass the layer.*classifier=")
    for name, key in zip(("one", "two"), keys, strict=True):
        check(model, lambda output, key=key: output[key], classifier=name)


def test_a_sum_and_its_part_under_unknown_keys() -> None:
    model = Net(lambda net, x: {"low": net.low(x), "sum": net.low(x) + net.high(x)}, low=head(), high=head())
    with pytest.raises(ValueError, match=r"no layer: output\['sum'\]"):
        listen(model)


def test_two_losses_of_a_pass_that_tells_nothing() -> None:
    """Mixed labels: both are those of the output, and no other layer is trained by the second."""
    model = Net(lambda net, x: (net.other(x), up(net.head(x)))[1], head=head(), other=head())
    for layer in (model.head, model.other):
        nn.init.zeros_(layer.weight)
    model.other.bias.data.copy_(model.head.bias.data.zero_())
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    model(images)
    (cawa.loss(labels) + cawa.loss(labels.flip(0))).backward()
    assert model.other.weight.grad is None
    assert model.head.weight.grad is not None


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_a_pass_that_tells_nothing(method: str) -> None:
    """Of a classifier that is 0 at first: no map has a value, by any method."""
    model = Net(lambda net, x: up(net.head(x)), head=head()).eval()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    cawa = cf.CAWA(model, C, method=method)
    images, labels = batch()
    with torch.no_grad():
        model(images)
        assert not cawa.maps().any()
        cawa.observe(labels)
    assert cawa.step().isfinite().all()


def test_the_first_of_several_maps_is_taken_and_said(caplog: pytest.LogCaptureFixture) -> None:
    model = Net(lambda net, x: (up(net.head(x)), up(net.dsn(x))), head=head(), dsn=head())
    check(model, lambda output: output[0])
    (record,) = caplog.records  # once
    assert re.search(r"output\[0\], of 'head', is taken.*'dsn' \(output\[1\]\).*classifier='head'", record.getMessage())
    caplog.clear()
    check(model, lambda output: output[0], classifier="head")
    check(model, lambda output: output[1], classifier="dsn")
    auxiliary = Net(lambda net, x: (up(net.head(x)), net.aux(x)), head=head(), aux=head())
    check(auxiliary, lambda output: output[0])
    named = Net(lambda net, x: SimpleNamespace(side=up(net.dsn(x)), logits=up(net.head(x))), head=head(), dsn=head())
    check(named, lambda output: output.logits)
    assert not caplog.records


def test_the_wrong_layer_by_name() -> None:
    model = Net(lambda net, x: {"out": up(net.head(x)), "n": net.side(x).mean()}, head=head(), side=head())
    with pytest.raises(ValueError, match=r"but the layer passed as classifier= does not do that:\n  side: .*% off"):
        listen(model, classifier="side")
    cawa, _, _ = listen(model, classifier="side", verify=False)
    assert cawa.explain() == "CAWA listens to 'side', and does not compare it with the output (verify=False)."


def test_another_number_of_channels_than_the_network_has() -> None:
    model = Net(lambda net, x: up(net.last(net.inner(x))), inner=head(), last=nn.Conv2d(C, 7, 1))
    with pytest.raises(ValueError, match=r"'inner'.*has 5 outputs, but the network has 7 \(output is \(2, 7, 32, 40\)"):
        listen(model)


def test_align_corners_that_the_user_passes_stays(caplog: pytest.LogCaptureFixture) -> None:
    model = Net(lambda net, x: up(net.head(x)), head=head())
    cawa, _, _ = listen(model, align_corners=True)
    assert cawa.weights.align_corners is True
    assert "align_corners=True was passed, but the network resizes its logits with align_corners=False" in caplog.text
    assert "whereas align_corners=True was passed" in cawa.explain()


def test_parts_of_the_network_called_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    model = Net(None, head=head(), other=head())
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    for _ in range(2):
        model.head(model.stem(images))
        cawa.loss(labels)
    (record,) = caplog.records  # once
    assert (
        "could not be compared with what the network returned: were parts of the network called" in record.getMessage()
    )
    quiet = cf.CAWA(model, C, classifier="head")
    model.head(model.stem(images))
    quiet.loss(labels)
    assert len(caplog.records) == 1


def test_a_network_that_returns_losses(caplog: pytest.LogCaptureFixture) -> None:
    """As those of MMSegmentation do in training. The first pass that returns a map is compared."""

    def forward(net: Net, x: Tensor) -> Any:
        z = net.head(x) + net.high(x)
        return {"loss": z.mean()} if net.training else up(z)

    model = Net(forward, head=head(), high=head())
    cawa, _, _ = listen(model)
    assert "output holds no map with 5 channels" in caplog.text
    images, labels = batch()
    with torch.no_grad():
        model.eval()(images)
    with pytest.raises(ValueError, match="% off"):
        cawa.observe(labels)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (nn.Conv2d(8, C, 3), "no 1x1 nn.Conv2d with num_classes=5 outputs"),
        (nn.Conv2d(8, C, 2, padding=1), r"nor another convolution with stride 1 whose zero padding keeps the size"),
        (nn.Conv2d(8, C, (1, 5), padding=(0, 1)), r"pass the logits yourself: cawa = CAWA\(None, 5\)"),
        (nn.Conv2d(8, C, 3, padding=1, stride=2), r"with source='argmax' unless you mean Grad-CAM at the logits"),
        (nn.Conv2d(8, C, 3, padding=1, padding_mode="circular"), r"zero padding"),
        (nn.ConvTranspose2d(8, C, 2, stride=2), r"pass the logits yourself: cawa = CAWA\(None, 5\)"),
        (nn.Conv2d(8, C * 2, 1, groups=2), r"cawa.observe\(labels, logits=z\)"),
        (StandardisedConv2d(8, C, 3, padding=1), r"cawa.loss\(labels, logits=z\)"),
    ],
)
def test_heads_of_other_kinds_are_refused_with_the_way_out(last: nn.Module, message: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), last)
    with pytest.raises(ValueError, match=message):
        cf.CAWA(model, C)
    with pytest.raises(ValueError, match=r"classifier must be a 1x1|classifier has 10 outputs"):
        cf.CAWA(model, C, classifier="1")


def test_a_linear_layer_over_tokens() -> None:
    """``(N, L, C)`` does not say which map it is."""
    model = Net(lambda net, x: up(net.head(x.flatten(2).mT).mT.unflatten(2, x.shape[-2:])), head=nn.Linear(8, C))
    with pytest.raises(
        ValueError, match=r"CAWA: 'head' is an nn.Linear whose output is no map \(N, h, w, C\).*logits="
    ):
        listen(model)
    images, labels = batch()
    with cf.GradCAM(model), pytest.raises(ValueError, match=r"GradCAM: 'head' is an nn.Linear.*target_layer"):
        model(images)
    assert cf.CAWA(None, C).loss(labels, logits=model(images)).isfinite()


def test_compiled() -> None:
    torch._dynamo.reset()
    model = Net(lambda net, x: {"out": up(net.low(x) + net.high(x))}, low=head(), high=head())
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    torch.compile(model, backend="eager", fullgraph=True)(images)
    with pytest.raises(ValueError, match="% off"):
        cawa.loss(labels)
    right = Net(lambda net, x: (up(net.head(x), align_corners=True), net.other(x).mean()), head=head(), other=head())
    cawa = cf.CAWA(right, C)
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(right, backend=counter, fullgraph=True)
    for _ in range(3):
        output = compiled(images)
        torch.testing.assert_close(cawa.loss(labels), F.cross_entropy(output[0], labels))
    assert counter.frame_count == 1
    assert cawa.weights.align_corners is True
