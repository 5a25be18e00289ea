"""Volumes ``(N, C, D, H, W)`` of the size of their labels: ``confusion_matrix``, ``cam_counts``, and what uses them."""

import pytest
import torch

import cawa_fast as cf
import cawa_fast.functional as CF
from cawa_fast.reference import CLASSES, NORMALIZATIONS

pytestmark = pytest.mark.usefixtures("backend")

C = 4
SIZE = (3, 10, 12)
LAYOUTS = {
    "contiguous": torch.Tensor.contiguous,
    "channels_last_3d": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "depth last": lambda x: x.movedim(2, -1).contiguous().movedim(-1, 2),
}


def case():
    target = torch.randint(0, C, (2, *SIZE), dtype=torch.uint8)
    target[torch.rand(target.shape) < 0.2] = 255
    target[0][target[0] == 1] = 0  # so that "present" and "all" differ
    return torch.rand(2, C, *SIZE), target


@pytest.mark.sampled
@pytest.mark.parametrize("layout", LAYOUTS)
def test_confusion_matrix(layout):
    logits, target = case()
    prediction = logits.argmax(1)
    expected = torch.zeros(C, C, dtype=torch.int64)
    for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
        if t != 255:
            expected[t, p] += 1
    assert CF.confusion_matrix(LAYOUTS[layout](logits), target, ignore_index=255).equal(expected)
    assert CF.confusion_matrix(prediction, target, num_classes=C, ignore_index=255).equal(expected)


@pytest.mark.sampled
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_cam_counts(normalize, classes):
    """The maximum and the minimum are those of the whole volume, and a class is present in a whole volume."""
    cam, target = case()
    scaled = cam - cam.amin((2, 3, 4), keepdim=True) if normalize in ("minmax", "gradcam") else cam
    mask = (scaled if normalize == "none" else scaled / scaled.amax((2, 3, 4), keepdim=True)) > 0.5
    expected = torch.zeros(3, C, dtype=torch.int64)
    for image, truth in zip(mask, target, strict=True):
        for c in range(C):
            if classes == "all" or (truth == c).any():
                hit, miss = truth == c, (truth != c) & (truth != 255)
                counted = [(image[c] & hit).sum(), (image[c] & miss).sum(), (~image[c] & hit).sum()]
                expected[:, c] += torch.stack(counted)
    for layout in LAYOUTS.values():
        counts = CF.cam_counts(layout(cam), target, normalize=normalize, classes=classes, ignore_index=255)
        assert torch.stack(counts).equal(expected)


@pytest.mark.parametrize("source", ["cam", "argmax"])
def test_loss_and_scores_of_volumes(source):
    """A network of volumes: its logits are passed, and one volume of two is masked."""
    logits, target = case()
    cawa = cf.CAWA(None, C, ignore_index=255, source=source, metrics=True)
    cawa.loss(target, logits=logits.requires_grad_()).backward()
    assert logits.grad.shape == logits.shape
    cawa.observe(target, logits=logits, mask=[True, False])
    assert cawa.weights.confusion.equal(CF.confusion_matrix(logits[:1], target[:1], ignore_index=255))
    if source == "cam":
        expected = torch.stack(CF.cam_counts(logits[:1].detach(), target[:1], ignore_index=255))
        assert cawa.weights.counts.equal(expected)
    assert cawa.step().mean() == pytest.approx(1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 20, 24), r"\(2, 3, 10, 12\), got \(2, 3, 20, 24\); only \(N, C, h, w\) is resized.*mode='trilinear'"),
        ((2, 1, 3, 10, 12), r"target must be \(2, 3, 10, 12\), got \(2, 1, 3, 10, 12\); use target.squeeze\(1\)"),
        ((2, 30, 12), r"\(2, 3, 10, 12\), got \(2, 30, 12\)"),
    ],
)
def test_sizes_that_differ_are_refused(shape, message):
    values, target = torch.rand(2, C, *SIZE), torch.zeros(shape, dtype=torch.uint8)
    with pytest.raises(ValueError, match=rf"confusion_matrix: .*{message}"):
        CF.confusion_matrix(values, target)
    with pytest.raises(ValueError, match=rf"cam_counts: .*{message}"):
        CF.cam_counts(values, target)
    with pytest.raises(ValueError, match=r"cam has 4 channels, but num_classes=5"):
        cf.AdaptiveClassWeights(5).observe(values, torch.zeros(2, *SIZE, dtype=torch.uint8))
