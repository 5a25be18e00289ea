"""The CUDA kernels that read label maps, emulated on the CPU: pixels of each class, reductions, bad labels."""

import pytest
import torch

from cawa_fast import reference
from cawa_fast._ops import backends
from tests.support import emulation
from tests.support.cases import LABELS

pytestmark = pytest.mark.skipif(emulation.why_not() is not None, reason=str(emulation.why_not()))

INT64 = torch.iinfo(torch.int64)


@pytest.fixture(scope="module")
def operators():
    emulation.load()
    return torch.ops.cawa_fast_cuda_emulation


def maps(classes, shape, dtype, runs):
    """Labels in runs of up to ``runs`` equal ones; a tenth of the pixels are 255."""
    number = shape.numel()
    labels = torch.randint(0, classes, (number,)).repeat_interleave(torch.randint(1, runs + 1, (number,)))[:number]
    labels[torch.rand(number) < 0.1] = 255
    return labels.view(shape).to(dtype)


def fresh_report():
    return torch.tensor([0, INT64.max, INT64.min])


@pytest.mark.parametrize("runs", [1, 40])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (64, 96), (130, 127), (300, 400)])
@pytest.mark.parametrize("dtype", LABELS)
def test_pixels_of_each_class(operators, dtype, size, runs):
    labels = maps(100, torch.Size((2, *size)), dtype, runs)
    counts = operators.label_counts(labels, 100, 255, None)
    expected = [torch.bincount(image.flatten().long(), minlength=256)[:100] for image in labels]
    assert counts.equal(torch.stack(expected))


@pytest.mark.parametrize("classes", [1, 19, 600, 8192])
def test_many_classes(operators, classes):
    labels = torch.randint(0, classes, (3, 40, 50), dtype=torch.int32)
    expected = torch.stack([torch.bincount(image.flatten(), minlength=classes) for image in labels])
    assert operators.label_counts(labels, classes, -100, None).equal(expected)


@pytest.mark.parametrize("labels", [torch.zeros(0, 4, 4, dtype=torch.uint8), torch.zeros(2, 0, 4, dtype=torch.uint8)])
def test_no_pixels(operators, labels):
    assert operators.label_counts(labels, 3, 255, None).equal(torch.zeros(len(labels), 3, dtype=torch.int64))
    assert operators.label_scale(labels, 3, 255, None, backends.REDUCTIONS.index("mean"), None).isnan().all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("content", ["mixed", "one class", "weight 0", "ignored"])
@pytest.mark.parametrize("reduction", backends.REDUCTIONS)
def test_reductions(operators, reduction, content, weighted):
    labels = maps(19, torch.Size((2, 70, 90)), torch.uint8, 20)
    if content != "mixed":
        labels.fill_(255 if content == "ignored" else 4)
    weight = torch.rand(19) if weighted else None
    if weight is not None and content == "weight 0":
        weight[4] = 0
    counts = torch.bincount(labels.flatten().long(), minlength=256)[:19]
    ones = torch.ones(19) if weight is None else weight
    expected = reference.reduction_scale(counts, labels.numel(), ones.double(), reduction)
    scale = operators.label_scale(labels, 19, 255, weight, backends.REDUCTIONS.index(reduction), None)
    torch.testing.assert_close(scale, expected.float(), rtol=2e-7, atol=0, equal_nan=True)


@pytest.mark.parametrize("reduction", backends.REDUCTIONS)
@pytest.mark.parametrize("unaligned", [False, True])
def test_bad_labels_are_reported_and_do_not_count(operators, unaligned, reduction):
    labels = torch.randint(0, 19, (2, 64, 97 if unaligned else 96), dtype=torch.int16)
    labels[0, 3, 4], labels[1, 0, 0], labels[1, 5, 6] = -7, 19, 300
    labels[0, 9, 9] = 255
    report = fresh_report()
    scale = operators.label_scale(labels, 19, 255, None, backends.REDUCTIONS.index(reduction), report)
    assert report.tolist() == [3, -7, 300]
    good = labels.masked_fill((labels < 0) | (labels > 18), 255)
    assert scale.equal(operators.label_scale(good, 19, 255, None, backends.REDUCTIONS.index(reduction), None))
    operators.label_counts(labels, 19, 255, report)  # adds to the report
    assert report.tolist() == [6, -7, 300]


def test_a_reduction_over_many_rows_counts_once(operators):
    """The (N,) labels of (N, C) logits are counted as one map. As N maps they would need N times C counters."""
    labels = torch.randint(0, 19, (3000,), dtype=torch.uint8)
    emulation.launches()
    scale = operators.label_scale(labels, 19, 255, None, backends.REDUCTIONS.index("class_mean"), None)
    torch.testing.assert_close(scale, 1 / torch.bincount(labels.int(), minlength=19).float())
    assert emulation.launches() == ["label_counts"]


def test_an_ignored_class_is_not_counted(operators):
    labels = torch.randint(0, 5, (1, 30, 40), dtype=torch.uint8)
    assert operators.label_counts(labels, 5, 2, None)[0, 2] == 0
