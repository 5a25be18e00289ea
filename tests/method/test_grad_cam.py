"""``GradCAM`` against autograd, pytorch-grad-cam and torch-cam."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cawa_fast as cf

METHODS = ("gradcam", "gradcam++", "hirescam", "layercam")
C = 5


class Net(nn.Module):
    """A small segmentation network: stride 2, a 1x1 classifier, bilinear upsampling."""

    def __init__(self, inplace=False, bias=True, scale=2, output=lambda z: z):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=inplace)
        self.body = nn.Conv2d(6, 8, 3, padding=1)
        self.body_relu = nn.ReLU(inplace=inplace)
        self.classifier = nn.Conv2d(8, C, 1, bias=bias)
        self.aux_head = nn.Sequential(nn.Conv2d(6, 4, 1), nn.Conv2d(4, C, 1))
        self.scale = scale
        self.output = output

    def forward(self, x):
        early = self.relu(self.norm(self.stem(x)))
        z = self.classifier(self.body_relu(self.body(early)))
        return self.output(F.interpolate(z, scale_factor=self.scale, mode="bilinear"))


@pytest.fixture
def net():
    return Net().eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 24, 32)


def maps_of(model, images, *arguments, **options):
    with cf.GradCAM(model, *arguments, **options) as cam:
        model(images)
        return cam()


def same_up_to_scale(a, b, rtol=1e-4):
    """Equal after division of each image's and class's map by its maximum."""

    def scaled(x):
        return x / x.amax((-2, -1), keepdim=True).clamp_min(1e-30)

    assert a.shape == b.shape
    torch.testing.assert_close(scaled(a), scaled(b), rtol=0, atol=rtol)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_closed_form_is_autograd_at_the_classifiers_input(method, bias, images):
    model = Net(bias=bias).eval()
    closed = maps_of(model, images, method=method)
    graph = maps_of(model, images, "body_relu", classifier="classifier", method=method)
    assert closed.shape == graph.shape == (2, C, 12, 16)
    assert (closed >= 0).all()
    assert closed.amax((0, 2, 3)).gt(0).any()
    same_up_to_scale(closed, graph)
    # Grad-CAM++'s weights are not linear in the gradient, so that the factor of the resize changes them.
    if method != "gradcam++":
        same_up_to_scale(closed, maps_of(model, images, "body_relu", method=method))


@pytest.mark.parametrize("layer", ["stem", "norm", "relu", "body", "body_relu"])
@pytest.mark.parametrize("method", METHODS)
def test_definition_at_any_layer(method, layer, net, images):
    """The papers' formulas for one image and one class at a time, with separate hooks."""
    net, images = net.double(), images.double()  # Grad-CAM++ divides by values that may be almost 0
    maps = maps_of(net, images, layer, method=method)
    module = net.get_submodule(layer)
    for n, c in [(0, 0), (0, 3), (1, 4)]:
        kept = []
        handle = module.register_forward_hook(lambda m, i, o, kept=kept: kept.append(o))
        score = net(images[n : n + 1])[0, c].sum()
        handle.remove()
        (g,) = torch.autograd.grad(score, kept[0])
        a = kept[0].detach()
        if method == "gradcam":
            weighted = g.mean((2, 3), keepdim=True) * a
        elif method == "hirescam":
            weighted = g * a
        elif method == "layercam":
            weighted = g.relu() * a
        else:
            alpha = g**2 / (2 * g**2 + a.sum((2, 3), keepdim=True) * g**3 + 1e-6)
            weighted = (alpha.where(g != 0, 0) * g.relu()).sum((2, 3), keepdim=True) * a
        torch.testing.assert_close(maps[n, c], weighted.sum(1)[0].relu())


@pytest.mark.parametrize("layer", ["relu", "body_relu"])
@pytest.mark.parametrize("method", METHODS)
def test_pytorch_grad_cam(method, layer, images, reference_libraries):
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget

    name = {"gradcam": "GradCAM", "gradcam++": "GradCAMPlusPlus", "hirescam": "HiResCAM", "layercam": "LayerCAM"}[
        method
    ]
    net = Net(scale=1).eval()
    target_layers = [net.get_submodule(layer)]
    maps = [maps_of(net, images, layer, method=method)]
    if layer == "body_relu":
        maps.append(maps_of(net, images, method=method))  # in closed form
    everywhere = np.ones((12, 16), dtype=np.float32)
    with getattr(pytorch_grad_cam, name)(model=net, target_layers=target_layers) as library:
        for c in range(C):
            expected = library(input_tensor=images, targets=2 * [SemanticSegmentationTarget(c, everywhere)])
            for ours in maps:
                scaled = scale_cam_image(np.maximum(scale_cam_image(ours[:, c].numpy(), (32, 24)), 0))
                np.testing.assert_allclose(scaled, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("layer", ["relu", "body_relu"])
@pytest.mark.parametrize(("method", "name"), [("gradcam", "GradCAM"), ("layercam", "LayerCAM")])
def test_torchcam(method, name, layer, net, images, reference_libraries):
    import torchcam.methods

    maps = maps_of(net, images, layer, method=method)
    with getattr(torchcam.methods, name)(net, layer) as library:
        for c in range(C):
            scores = net(images).sum((2, 3))
            (expected,) = library(class_idx=c, scores=scores)
            if method == "layercam":  # torch-cam normalises it differently, so that maps are equal up to a factor
                same_up_to_scale(maps[:, c : c + 1], expected[:, None].detach(), rtol=1e-3)
                continue
            low, high = maps[:, c].amin((1, 2), keepdim=True), maps[:, c].amax((1, 2), keepdim=True)
            torch.testing.assert_close((maps[:, c] - low) / (high - low), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("arguments", [(), ("relu",), ("body_relu",)])
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_holds_each_images_own_maps(method, arguments, net, images):
    together = maps_of(net, images, *arguments, method=method)
    for n in range(2):
        alone = maps_of(net, images[n : n + 1], *arguments, method=method)
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", ["norm", "body"])
@pytest.mark.parametrize("method", METHODS)
def test_a_layer_whose_output_is_overwritten(method, layer, net, images):
    """ReLU(inplace=True) after the target layer must change neither the maps nor the network's output."""
    overwriting = Net(inplace=True).eval()
    overwriting.load_state_dict(net.state_dict())
    torch.testing.assert_close(
        maps_of(overwriting, images, layer, method=method), maps_of(net, images, layer, method=method)
    )
    with cf.GradCAM(overwriting, layer):
        inside = overwriting(images)
    torch.testing.assert_close(inside, net(images))


@pytest.mark.parametrize("arguments", [(), ("relu",)])
@pytest.mark.parametrize("method", METHODS)
def test_frozen_network(method, arguments, net, images):
    expected = maps_of(net, images, *arguments, method=method)
    net.requires_grad_(False)
    torch.testing.assert_close(maps_of(net, images, *arguments, method=method), expected)


@pytest.mark.parametrize("arguments", [(), ("relu",)])
def test_under_no_grad(arguments, net, images):
    expected = maps_of(net, images, *arguments)
    with torch.no_grad():
        maps = maps_of(net, images, *arguments)
        assert not torch.is_grad_enabled()  # unchanged
    torch.testing.assert_close(maps, expected)
    assert not maps.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_closed_form_in_inference_mode_and_autocast(method, net, images):
    expected = maps_of(net, images, method=method)
    with torch.inference_mode():
        torch.testing.assert_close(maps_of(net, images, method=method), expected)
    with torch.autocast("cpu", torch.bfloat16):
        same_up_to_scale(maps_of(net, images, method=method).float(), expected, rtol=0.05)


def test_parameters_keep_no_gradient(net, images):
    maps_of(net, images, "relu")
    assert all(p.grad is None for p in net.parameters())


def test_the_last_forward_pass_counts(net, images):
    with cf.GradCAM(net) as cam:
        net(images)
        net(images[1:])
        maps = cam()
    torch.testing.assert_close(maps, maps_of(net, images[1:]))


@pytest.mark.parametrize("bias", [True, False])
def test_maps_are_not_the_networks_own_tensors(bias, images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, C, 1, bias=bias))
    with torch.no_grad(), cf.GradCAM(model) as cam:
        logits = model(images)
        copy = logits.clone()
        cam().fill_(7)
    assert logits.equal(copy)


def test_hooks_are_removed(net, images):
    for arguments in [(), ("relu",)]:
        with cf.GradCAM(net, *arguments):
            net(images)
        assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())
        with pytest.raises(ZeroDivisionError), cf.GradCAM(net, *arguments):
            raise ZeroDivisionError
        assert not any(m._forward_hooks for m in net.modules())
        assert torch.is_grad_enabled()


# ---------------------------------------------------------------------------------------- finding the classifier


def test_auxiliary_heads_are_skipped(net, images):
    assert cf.GradCAM(net).classifier is net.classifier
    expected = (F.conv2d(net.body_relu(net.body(net.relu(net.norm(net.stem(images))))), net.classifier.weight)).relu()
    torch.testing.assert_close(maps_of(net, images), expected, rtol=1e-4, atol=1e-5)


def test_torchvision_fcn(images, reference_libraries):
    """In this network ``aux_classifier`` comes after ``classifier``, and the output is a dict of both."""
    from torchvision.models.segmentation import fcn_resnet50

    model = fcn_resnet50(weights=None, weights_backbone=None, num_classes=C, aux_loss=True).eval()
    assert cf.GradCAM(model).classifier is model.classifier[4]
    with torch.no_grad():
        maps = maps_of(model, images)
        graph = maps_of(model, images, "classifier.3")
    assert maps.shape == (2, C, 3, 4)
    same_up_to_scale(maps, graph, rtol=1e-3)


def test_classifier_by_name_module_and_number_of_classes(net, images):
    expected = maps_of(net, images)
    for options in [{"classifier": "classifier"}, {"classifier": net.classifier}, {"num_classes": C}]:
        assert maps_of(net, images, **options).equal(expected)
    with_more = nn.Sequential(net, nn.Conv2d(C, 7, 1))
    assert cf.GradCAM(with_more).classifier is with_more[1]
    assert cf.GradCAM(with_more, num_classes=C).classifier is net.classifier


@pytest.mark.parametrize(
    "output",
    [
        lambda z: {"out": z, "aux": 0 * z},
        lambda z: {"loss": None, "logits": z},
        lambda z: SimpleNamespace(loss=None, logits=z),
        lambda z: (z, 0 * z),
    ],
    ids=["out", "logits", "attribute", "tuple"],
)
@pytest.mark.parametrize("arguments", [(), ("relu",)])
def test_outputs_that_hold_the_logits(arguments, output, net, images):
    wrapped = Net(output=output).eval()
    wrapped.load_state_dict(net.state_dict())
    torch.testing.assert_close(maps_of(wrapped, images, *arguments), maps_of(net, images, *arguments))


def test_layers_whose_gradients_have_no_batching_rule(images):
    """With pooling, padding and resizing between layer and logits, there is no warning, and the maps are correct."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.MaxPool2d(2),
        nn.ReflectionPad2d(1),
        nn.Hardswish(),
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d((3, 5)),
        nn.Upsample(scale_factor=3, mode="bicubic"),
        nn.PReLU(),
        nn.Dropout(),
        nn.Conv2d(6, C, 1),
    ).eval()
    maps = maps_of(model, images, "0")
    activations = model[0](images).detach().requires_grad_()
    for c in range(C):
        (g,) = torch.autograd.grad(model[1:](activations)[:, c].sum(), activations)
        expected = (g.mean((2, 3), keepdim=True) * activations).sum(1).relu()
        torch.testing.assert_close(maps[:, c], expected, rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {"method": "scorecam"}, "method must be one of gradcam, .*'scorecam'"),
        (("decoder",), {}, "target_layer: Net has no submodule 'decoder'"),
        ((), {"classifier": "head"}, "classifier: Net has no submodule 'head'"),
        ((), {"classifier": "stem"}, r"classifier must be a 1x1.*Conv2d\(3, 6"),
        ((), {"num_classes": 19}, "no 1x1 nn.Conv2d with num_classes=19"),
        ((), {"classifier": "classifier", "num_classes": 19}, "classifier has 5 outputs.*num_classes=19"),
    ],
)
def test_errors_name_the_argument_and_the_value(arguments, options, message, net):
    with pytest.raises(ValueError, match=message):
        cf.GradCAM(net, *arguments, **options)


def test_no_classifier():
    with pytest.raises(ValueError, match=r"no 1x1 nn\.Conv2d in Sequential.*classifier=.*target_layer"):
        cf.GradCAM(nn.Sequential(nn.Conv2d(3, 5, 3)))


def test_no_forward_pass(net):
    for arguments in [(), ("relu",)]:
        with cf.GradCAM(net, *arguments) as cam, pytest.raises(RuntimeError, match=r"no forward pass.*model"):
            cam()


def test_inference_mode_with_a_target_layer(net):
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inference_mode.*no_grad.*closed form"):
        cf.GradCAM(net, "relu").__enter__()


def test_no_grad_inside_with_a_target_layer(net, images):
    with cf.GradCAM(net, "relu"), torch.no_grad(), pytest.raises(RuntimeError, match="no_grad"):
        net(images)


def test_a_target_layer_without_maps():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Unflatten(1, (4, 4, 4)), nn.Conv2d(4, 2, 1))
    with cf.GradCAM(model, "1"), pytest.raises(ValueError, match=r"target_layer.*\(1, 64\)"):
        model(torch.randn(1, 3, 4, 4))


def test_an_output_without_logits(net, images):
    wrapped = Net(output=lambda z: {"scores": z}).eval()
    with cf.GradCAM(wrapped, "relu"), pytest.raises(ValueError, match=r"no logits.*dict.*classifier="):
        wrapped(images)
    assert maps_of(wrapped, images, "relu", classifier="classifier").shape == (2, C, 12, 16)


class ChannelsLast(nn.Module):
    """A block as in Swin and ConvNeXt, whose output is ``(N, h, w, K)``."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class ChannelsFirst(nn.Module):
    def forward(self, x):
        return x.permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(24, 32), (32, 32), (25, 47)])
def test_channels_that_are_last(size):
    stem, head = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Conv2d(6, C, 1)
    images = torch.randn(2, 3, *size)
    model = nn.Sequential(stem, ChannelsLast(), ChannelsFirst(), head)
    with cf.GradCAM(model, "1"), pytest.raises(ValueError, match=r"output of target_layer is \(2, 1.*channels last"):
        model(images)
    for layer in ("0", "2"):
        maps_of(model, images, layer)
    output_last = nn.Sequential(stem, head, ChannelsLast())
    with cf.GradCAM(output_last, "0"), pytest.raises(ValueError, match=r"output of the network is .*channels last"):
        output_last(images)


def test_scores_of_another_number_of_classes(net, images):
    with (
        cf.GradCAM(net, "relu", num_classes=7),
        pytest.raises(ValueError, match=r"\(2, 5, 24, 32\), but num_classes=7"),
    ):
        net(images)


def test_a_layer_that_runs_several_times(images):
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 6, 3), relu, nn.Conv2d(6, 6, 3), relu, nn.Conv2d(6, C, 1))
    with cf.GradCAM(model, "1"), pytest.raises(RuntimeError, match=r"ran 2 times.*the block around it"):
        model(images)
    assert maps_of(model, images, "2").shape == (2, C, 20, 28)
    with cf.GradCAM(model, "2") as cam:
        for _ in range(2):
            model(images)
        assert cam().shape == (2, C, 20, 28)


@pytest.mark.parametrize("layer", [False, True])
def test_a_context_is_entered_once_at_a_time(layer):
    """A second entry would lose the hooks of the first."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    cam = cf.GradCAM(net, net[0]) if layer else cf.GradCAM(net)
    with cam, pytest.raises(RuntimeError, match="GradCAM: this context is entered already; make another GradCAM"):
        cam.__enter__()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    with cam:
        net(torch.ones(1, 3, 4, 4))
        assert cam().shape == (1, 2, 4, 4)
