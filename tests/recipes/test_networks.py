"""DeepLabV3+, UPerNet, SegFormer and OCRNet: their logits, their activation maps, and training by CAWA."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cawa_fast as cf
from cawa_fast.cam import find_classifier
from cawa_fast.recipes import models
from cawa_fast.recipes.models import WITH_AUXILIARY, build_model
from cawa_fast.recipes.models.ocrnet import ObjectContext
from tests.support.networks import BEFORE_CLASSIFIER, PAPER, SMALL, STRIDES, images, small

pytestmark = pytest.mark.usefixtures("reference_libraries")

CLASSES = {"cityscapes": 19, "ade20k": 150, "cocostuff": 171}
IGNORE = 255

every_network = pytest.mark.parametrize("name", SMALL)


def labels(num_classes: int, count: int = 2, height: int = 64, width: int = 96) -> torch.Tensor:
    """Blocks of classes, with a border that is ignored, as uint8."""
    generator = torch.Generator().manual_seed(2)
    blocks = torch.randint(0, num_classes, (count, height // 8, width // 8), generator=generator)
    target = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2).to(torch.uint8)
    target[:, :4] = IGNORE
    return target


# ------------------------------------------------------------------------------------------- logits and classifier


@every_network
def test_the_output_is_that_of_the_classifier_at_low_resolution(name: str) -> None:
    model = small(name)
    classifier = find_classifier(model)
    assert classifier is model.classifier
    assert classifier is find_classifier(model, num_classes=19)
    assert (classifier.kernel_size, classifier.out_channels) == ((1, 1), 19)
    outputs = []
    with classifier.register_forward_hook(lambda module, inputs, output: outputs.append(output)):
        logits = model(images())
    assert len(outputs) == 1
    assert outputs[0] is logits
    stride = STRIDES.get(name, 4)
    assert logits.shape == (2, 19, 64 // stride, 96 // stride)


@pytest.mark.parametrize("name", ["deeplabv3plus", "ocrnet", "segformer", "upernet"])
@pytest.mark.parametrize("size", [(65, 97), (67, 45), (96, 33)])
def test_sides_that_no_power_of_two_divides(name: str, size: tuple[int, int]) -> None:
    model = small(name).eval()
    stride = STRIDES.get(name, 4)
    with torch.no_grad():
        assert model(images(1, *size)).shape == (1, 19, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize(("name", "output_stride"), [("deeplabv3plus", 16), ("deeplabv3plus", 8), ("upernet", None)])
def test_the_networks_of_smp_give_smps_logits(name: str, output_stride: int | None) -> None:
    """Compared at sizes that smp's DeepLabV3+ can take: it scales the pyramid by a fixed factor."""
    import segmentation_models_pytorch as smp

    options = {} if output_stride is None else {"output_stride": output_stride}
    theirs = {} if output_stride is None else {"encoder_output_stride": output_stride}
    model = small(name, auxiliary=0, **options).eval()
    torch.manual_seed(0)
    kind = smp.DeepLabV3Plus if name == "deeplabv3plus" else smp.UPerNet
    whole = kind("resnet18", encoder_weights=None, decoder_channels=32, classes=19, upsampling=1, **theirs).eval()
    whole.segmentation_head[0].load_state_dict(model.classifier.state_dict())
    with torch.no_grad():
        assert torch.equal(model(images()), whole(images()))


def test_segformer_is_the_papers() -> None:
    """Xie et al., table 1: 3.8, 13.7 and 27.5 million parameters with ADE20K's 150 classes."""
    for backbone, millions in {"mit_b0": 3.8, "mit_b1": 13.7, "mit_b2": 27.5}.items():
        count = sum(parameter.numel() for parameter in build_model("segformer", 150, backbone=backbone).parameters())
        assert count / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.slow
def test_the_table_of_the_documentation() -> None:
    assert models.__doc__ is not None
    rows = [line.split() for line in models.__doc__.splitlines() if line.split("  ")[0] in models.MODELS]
    assert {row[0] for row in rows} == set(models.MODELS)
    for name, backbone, *rest in [[row[0], row[1], *row[2:]] for row in rows]:
        model = build_model(name, 19, backbone=backbone) if name != "compact" else build_model(name, 19)
        text = " ".join(rest)
        count = sum(parameter.numel() for parameter in model.parameters())
        layer, channels = text.split("``")[1], int(text.split("(")[1].split(")")[0])
        assert f"{count:,}" in text, (name, backbone, count)
        assert model.classifier.in_channels == channels
        model.get_submodule(layer)


# ------------------------------------------------------------------------------------------------ activation maps


@pytest.mark.parametrize("name", [*SMALL, "compact"])
@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_closed_form_maps_equal_those_by_autograd(name: str, method: str) -> None:
    model = small(name).eval()
    with torch.no_grad(), cf.GradCAM(model, num_classes=19, method=method) as cam:
        model(images())
        closed = cam()
    with cf.GradCAM(model, BEFORE_CLASSIFIER[name], method=method) as cam:
        model(images())
        graph = cam()
    assert closed.shape == graph.shape
    if method == "gradcam":  # its gradient is a mean over positions, for which the closed form uses the weight itself
        graph = graph / graph.amax((2, 3), keepdim=True).clamp_min(1e-12)
        closed = closed / closed.amax((2, 3), keepdim=True).clamp_min(1e-12)
    assert (closed > 0).any()
    assert (closed - graph).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["deeplabv3plus", "segformer"])
def test_maps_equal_those_of_pytorch_grad_cam(name: str) -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget

    model, image, size = small(name, 5).eval(), images(1), (64, 96)
    with torch.no_grad(), cf.GradCAM(model) as cam:
        model(image)
        maps = cam()
    shares = maps - maps.amin((2, 3), keepdim=True)
    shares = shares / (shares.amax((2, 3), keepdim=True) + 1e-7)
    library = GradCAM(model, [model.get_submodule(BEFORE_CLASSIFIER[name])])
    for index in range(5):
        whole = SemanticSegmentationTarget(index, torch.ones(16, 24).numpy())
        expected = torch.from_numpy(library(image, [whole]))
        ours = F.interpolate(shares[:, index : index + 1], size=size, mode="bilinear", align_corners=False)[:, 0]
        ours = (ours - ours.amin()) / (ours.amax() - ours.amin()).clamp_min(1e-7)
        assert (ours - expected).abs().max() < 1e-3


# ------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("dataset", CLASSES)
@pytest.mark.parametrize("name", PAPER)
def test_two_steps_with_cawa(name: str, dataset: str) -> None:
    classes = CLASSES[dataset]
    model = small(name, classes)
    cawa = cf.CAWA(model, classes, ignore_index=IGNORE, ratio="none")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    before = copy.deepcopy(model.state_dict())
    target = labels(classes)
    for step in range(2):
        model.train()
        model(images())
        loss = cawa.loss(target)
        if name in WITH_AUXILIARY:
            loss = loss + model.auxiliary_factor * cawa.criterion(model.auxiliary_logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
        model.eval()
        with torch.no_grad():
            model(images())
            cawa.observe(target)
        weight = cawa.step()
        assert weight.shape == (classes,)
        assert weight.isfinite().all()
        assert weight.mean() == pytest.approx(1, abs=1e-5)
        assert (weight.max() > weight.min()) or step == 0
    for key, value in model.named_parameters():
        assert value.isfinite().all(), key
        # No gradient: a bias before a softmax over the same axis, and what batch normalisation cancels.
        assert value.grad is not None, key
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert len(changed) > 0.95 * len(before)


@every_network
def test_auxiliary_logits_are_those_of_the_last_pass_in_training(name: str) -> None:
    model = small(name, auxiliary=0.3) if SMALL[name][0] in WITH_AUXILIARY else small(name)
    assert model.auxiliary_logits is None
    model.train()(images())
    if SMALL[name][0] not in WITH_AUXILIARY:
        assert model.auxiliary_logits is None
        return
    assert model.auxiliary_factor == 0.3
    logits = model.auxiliary_logits
    assert logits.shape[:2] == (2, 19)
    heads = [part for part in model.auxiliary.parameters() if part.dim() == 4]
    first = next(model.encoder.parameters())
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(logits.square().sum(), [*heads, first]))
    assert model.classifier.weight.grad is None
    model.eval()(images())
    assert model.auxiliary_logits is None


@pytest.mark.parametrize("name", ["deeplabv3plus", "upernet"])
def test_without_an_auxiliary_head(name: str) -> None:
    model = small(name, auxiliary=0)
    model.train()(images())
    assert model.auxiliary_logits is None
    assert not any(key.startswith("auxiliary") for key in model.state_dict())


def test_ocrnet_keeps_its_regions_without_their_loss() -> None:
    model = small("ocrnet", auxiliary=0)
    assert any(key.startswith("auxiliary") for key in model.state_dict())


def test_object_context_is_the_papers_equations() -> None:
    """Compared with loops over pixels and regions."""
    torch.manual_seed(0)
    context = ObjectContext(6, 4, dropout=0.0).eval()
    pixels, regions = torch.randn(2, 6, 3, 5), torch.randn(2, 4, 3, 5)

    def transformed(part: nn.Module, vector: torch.Tensor) -> torch.Tensor:
        return part(vector.reshape(1, -1, 1, 1)).flatten()

    with torch.no_grad():
        result = context(pixels, regions)
        for n in range(2):
            x = pixels[n].flatten(1).T
            shares = regions[n].flatten(1).exp()
            f = [sum(shares[k, i] / shares[k].sum() * x[i] for i in range(15)) for k in range(4)]
            for i in range(15):
                kappa = [transformed(context.phi, x[i]) @ transformed(context.psi, f_k) / 4**0.5 for f_k in f]
                relation = torch.stack(kappa).exp()
                relation = relation / relation.sum()
                mixed = sum(w * transformed(context.delta, f_k) for w, f_k in zip(relation, f, strict=True))
                z = transformed(context.g, torch.cat([x[i], transformed(context.rho, mixed)]))
                torch.testing.assert_close(result[n].flatten(1)[:, i], z, rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------- copies, files, layouts, compilers


@every_network
def test_a_state_dict_and_a_copy_give_the_same_logits(name: str) -> None:
    model = small(name)
    model.train()(images())  # now has auxiliary logits with a graph
    twin = copy.deepcopy(model)
    if SMALL[name][0] in WITH_AUXILIARY:
        assert model.auxiliary_logits is not None
    assert twin.auxiliary_logits is None
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = build_model(SMALL[name][0], 19, **SMALL[name][1])
    fresh.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        expected = model.eval()(images())
        assert torch.equal(twin.eval()(images()), expected)
        assert torch.equal(fresh.eval()(images()), expected)
        twin.classifier.bias += 1
        assert torch.equal(model(images()), expected)


@every_network
def test_channels_last_gives_the_same_logits(name: str) -> None:
    model = small(name).eval()
    with torch.no_grad():
        expected = model(images())
        model = model.to(memory_format=torch.channels_last)
        result = model(images().contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@every_network
def test_bfloat16_autocast_trains_and_scores(name: str) -> None:
    model = small(name)
    cawa = cf.CAWA(model, 19, ignore_index=IGNORE)
    target = labels(19)
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(images())
    assert cawa.logits.dtype == torch.bfloat16
    loss = cawa.loss(target)
    if model.auxiliary_logits is not None:
        loss = loss + cawa.criterion(model.auxiliary_logits, target)
    loss.backward()
    assert loss.isfinite()
    assert all(part.grad is None or part.grad.isfinite().all() for part in model.parameters())
    model.eval()
    with torch.no_grad():
        full = model(images())
        cawa.reset()  # the pass before is not scored
        with torch.autocast("cpu", torch.bfloat16):
            half = model(images())
        cawa.observe(target)
    assert (half - full).abs().max() < 0.05 * full.abs().max()
    assert cawa.step().isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deeplabv3plus", "ocrnet"])
def test_compiled_it_gives_the_same_loss_and_gradients(name: str) -> None:
    torch._dynamo.reset()
    model = small(name, dropout=0.0)
    model.auxiliary[3].p = 0.0
    target = labels(19).long()

    def gradients(network: nn.Module) -> list[torch.Tensor]:
        model.zero_grad()
        loss = F.cross_entropy(F.interpolate(network(images()), target.shape[1:]), target, ignore_index=IGNORE)
        auxiliary = F.interpolate(model.auxiliary_logits, target.shape[1:])
        (loss + 0.4 * F.cross_entropy(auxiliary, target, ignore_index=IGNORE)).backward()
        return [loss, *(part.grad.clone() for part in model.parameters())]

    expected = gradients(model)
    result = gradients(torch.compile(model, backend="aot_eager", fullgraph=True))
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
