"""The closed form of Grad-CAM at heads other than a 1x1 convolution: against autograd in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import cawa_fast as cf
from cawa_fast.cam import METHODS
from tests.support.heads import SIZE, C, Net, batch, check, up

# torch, of padding="same" with an even kernel
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")

HEADS: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "23x23, larger than the map": {"kernel_size": 23, "padding": 11},
    "1x3": {"kernel_size": (1, 3), "padding": (0, 1)},
    "even, same": {"kernel_size": (4, 2), "padding": "same"},
    "dilated": {"kernel_size": 3, "padding": (2, 3), "dilation": (2, 3)},
    "dilated, even, same": {"kernel_size": (2, 3), "padding": "same", "dilation": (3, 2)},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "grouped 1x1": {"kernel_size": 1, "groups": 3},
    "without bias": {"kernel_size": 3, "padding": 1, "bias": False},
}
RESIZES = {
    "as it is": lambda z: z,
    "x3": lambda z: F.interpolate(z, scale_factor=3, mode="bilinear"),
    "aligned corners": lambda z: F.interpolate(z, scale_factor=4, mode="bilinear", align_corners=True),
    "non-integer": lambda z: F.interpolate(z, (37, 29), mode="bilinear"),
    "down": lambda z: F.interpolate(z, (5, 7), mode="bilinear", align_corners=True),
}


class Body(nn.Module):
    """Features of ``(11, 13)`` or another size, a head, and a resize."""

    def __init__(self, head: nn.Module, resize: Any) -> None:
        super().__init__()
        self.features, self.head, self.resize = nn.Conv2d(3, 12, 3, padding=1), head, resize

    def forward(self, x: Tensor) -> Tensor:
        return self.resize(self.head(self.features(x)))


def maps_of(model: nn.Module, images: Tensor, *arguments: Any, **options: Any) -> Tensor:
    with cf.GradCAM(model, *arguments, **options) as cam:
        model(images)
        return cam()


def scaled(maps: Tensor) -> Tensor:
    return maps / maps.amax((-2, -1), keepdim=True).clamp_min(1e-30)


@pytest.mark.parametrize("name", HEADS)
def test_gradcam_is_that_of_autograd_whatever_follows(name: str) -> None:
    """The score is the sum of what the network returns, as in pytorch-grad-cam."""
    head = nn.Conv2d(12, 6, **HEADS[name])
    for (kind, resize), size in itertools.product(RESIZES.items(), [(11, 13), (1, 4), (6, 6)]):
        model = Body(head, resize).double().eval()
        images = torch.randn(2, 3, *size, dtype=torch.float64)
        closed = maps_of(model, images, num_classes=6)
        expected = maps_of(model, images, "features")
        assert closed.shape == (2, 6, *size)
        torch.testing.assert_close(scaled(closed), scaled(expected), rtol=0, atol=1e-12, msg=f"{kind}, {size}")
        if kind == "as it is":  # not only up to a factor
            torch.testing.assert_close(closed, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", HEADS)
def test_all_methods_are_those_of_autograd_at_the_head(name: str, method: str) -> None:
    model = Body(nn.Conv2d(12, 6, **HEADS[name]), RESIZES["as it is"]).double().eval()
    images = torch.randn(2, 3, 11, 13, dtype=torch.float64)
    closed = maps_of(model, images, num_classes=6, method=method)
    expected = maps_of(model, images, "features", classifier="head", method=method)
    torch.testing.assert_close(closed, expected, rtol=1e-10, atol=1e-12)
    model.resize = up  # the score of the other methods is still the sum of what the head returns
    if method != "gradcam":
        torch.testing.assert_close(maps_of(model, images, num_classes=6, method=method), closed)


def test_alpha_by_hand() -> None:
    """A map of 1 x 3, and the taps 1, 10, 100: at the left end the first leaves the map, at the right end the last."""
    head = nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=False)
    head.weight.data[0, 0, 0] = torch.tensor([1.0, 10.0, 100.0])
    with torch.no_grad():
        maps = cf.cam.closed_form(head, torch.tensor([[[[3.0, -3.0, 6.0]]]]), torch.zeros(1, 1, 1, 3))
    alpha = (1 * 2 + 10 * 3 + 100 * 2) / 3
    torch.testing.assert_close(maps, torch.tensor([[[[3 * alpha, 0, 6 * alpha]]]]))


class Linear(nn.Module):
    """A linear layer over features with their channels last, as in networks of windows."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 6, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_heads(method: str, bias: bool) -> None:
    model = Body(Linear(bias=bias), lambda z: F.interpolate(z, scale_factor=2, mode="bilinear")).double().eval()
    images = torch.randn(2, 3, 11, 13, dtype=torch.float64)
    closed = maps_of(model, images, num_classes=6, method=method)
    if method != "gradcam++":  # which depends on the scale of the score
        torch.testing.assert_close(
            scaled(closed), scaled(maps_of(model, images, "features", method=method)), rtol=0, atol=1e-10
        )
    at_the_head = maps_of(model, images, "features", classifier="head.linear", method=method)
    torch.testing.assert_close(closed, at_the_head, rtol=1e-10, atol=1e-12)
    convolution = nn.Conv2d(12, 6, 1, bias=bias).double()
    for name, parameter in convolution.named_parameters():
        parameter.data.copy_(getattr(model.head.linear, name).view_as(parameter))
    same = Body(convolution, model.resize).double().eval()
    same.features.load_state_dict(model.features.state_dict())
    torch.testing.assert_close(closed, maps_of(same, images, method=method), rtol=1e-10, atol=1e-12)


KINDS = {
    "3x3": lambda: (nn.Conv2d(8, C, 3, padding=1), lambda head, x: head(x)),
    "even, same": lambda: (nn.Conv2d(8, C, 2, padding="same"), lambda head, x: head(x)),
    "linear": lambda: (nn.Linear(8, C), lambda head, x: head(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("align_corners", [False, True])
def test_loss_gradients_and_counts(kind: str, align_corners: bool) -> None:
    head, apply = KINDS[kind]()
    model = Net(lambda net, x: up(apply(net.head, x), align_corners=align_corners), head=head)
    cawa = check(model, lambda output: output)
    assert f"'head': its output, resized bilinearly from 8x10 to 32x40 with align_corners={align_corners}" in (
        cawa.explain()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_scores_in_any_context(kind: str, context: Any) -> None:
    """Maps at the resolution of the features, of sizes that come back after others."""
    head, apply = KINDS[kind]()
    model = Net(None, head=head).eval()
    model.forward = (
        lambda x: F.interpolate(  # type: ignore[method-assign]
            apply(model.head, model.norm(model.stem(x)).relu()), x.shape[-2:], mode="bilinear", align_corners=True
        )
    )
    cawa = cf.CAWA(model, C)
    for size in (SIZE, (24, 20), SIZE):
        images, labels = torch.randn(2, 3, *size), torch.randint(0, C, (2, *size))
        before = cawa.weights.counts.clone()
        with context():
            model(images)
            cawa.observe(labels)
            maps = cawa.maps()
        assert maps.shape[-2:] == (size[0] // 4, size[1] // 4)
        counted = torch.stack(cf.functional.cam_counts(maps, labels, align_corners=True))
        assert (cawa.weights.counts - before).equal(counted)
    assert cawa.step().isfinite().all()


def test_the_resize_of_each_size_of_images() -> None:
    """The first pass of a size finds how its logits are resized; a later pass of that size uses it again."""
    head = nn.Conv2d(8, C, 3, padding=1)
    features: list[Tensor] = []

    def forward(net: Net, x: Tensor) -> Tensor:
        features.append(x)
        return F.interpolate(net.head(x), scale_factor=3 + x.shape[-1], mode="bilinear", align_corners=True)

    model = Net(forward, head=head).double().eval()
    cawa = cf.CAWA(model, C)
    for width in (40, 24, 40, 24):
        images = torch.randn(1, 3, 16, width, dtype=torch.float64)
        with torch.no_grad():
            output = model(images)
            cawa.observe(torch.randint(0, C, (1, *output.shape[-2:])))
            maps = cawa.maps()
        a = features[-1].clone().requires_grad_()
        scores = F.interpolate(
            F.conv2d(a, head.weight, head.bias, padding=1), output.shape[-2:], mode="bilinear", align_corners=True
        ).sum((0, 2, 3))
        for c in range(C):
            (grad,) = torch.autograd.grad(scores[c], a, retain_graph=True)
            expected = (grad.mean((2, 3), keepdim=True) * a).sum(1).relu()
            torch.testing.assert_close(scaled(maps[:, c]), scaled(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled(kind: str) -> None:
    torch._dynamo.reset()
    head, apply = KINDS[kind]()
    model = Net(lambda net, x: up(apply(net.head, x), align_corners=True), head=head)
    cawa = cf.CAWA(model, C)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    images, labels = batch()
    for _ in range(2):
        output = compiled(images)
        torch.testing.assert_close(cawa.loss(labels), F.cross_entropy(output, labels))
    assert counter.frame_count == 1
    with torch.no_grad():
        model.eval()(images)
        expected = cawa.maps()
        compiled(images)
        torch.testing.assert_close(cawa.maps(), expected)


@pytest.mark.parametrize("changed", ["input", "output"])
def test_what_was_changed_in_place_after_the_layer(changed: str) -> None:
    """The maps of a 3x3 head come from its input, those of a 1x1 head from its output."""

    def forward(net: Net, x: Tensor) -> Tensor:
        z = net.head(x)
        (x if changed == "input" else z).mul_(2)
        return up(z)

    images, labels = batch()
    for kernel, source in ((3, "input"), (1, "output")):
        model = Net(forward, head=nn.Conv2d(8, C, kernel, padding="same")).eval()
        cawa = cf.CAWA(model, C)
        with torch.no_grad():
            model(images)
            if changed == source:
                with pytest.raises(ValueError, match=f"the {changed} of 'head' was changed in place.*source='argmax'"):
                    cawa.observe(labels)
            else:
                cawa.observe(labels)


def test_an_adapter_around_a_3x3_head() -> None:
    class Adapter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer, self.lora = nn.Conv2d(8, C, 3, padding=1), nn.Conv2d(8, C, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.base_layer(x) + self.lora(x)

    model = Net(lambda net, x: up(net.head(x)), head=Adapter())
    cawa = check(model, lambda output: output)  # of source="argmax"
    with pytest.raises(ValueError, match=r"needs the weight of 'head', an adapter around Conv2d.*use source='argmax'"):
        cawa.maps()


def test_a_1x1_convolution_is_the_guess() -> None:
    """Where nothing is compared, it is the layer that was taken before other heads were."""
    model = nn.Sequential(nn.Conv2d(3, C, 1), nn.Conv2d(C, C, 3, padding=1), nn.Linear(C, C))
    assert cf.cam.find_classifier(model, C) is model[0]
    assert cf.cam.find_classifier(model[1:]) is model[2]
    aux = nn.ModuleDict({"aux": model[0], "head": model[1]})
    assert cf.cam.find_classifier(aux, C) is model[1]
