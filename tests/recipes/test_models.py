"""The networks: shapes, size, the last layer, and that they learn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cawa_fast.recipes.models import MODELS, build_model


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small are no faster with a second thread, and slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def compact():
    torch.manual_seed(0)
    return build_model("compact", 7)


@pytest.mark.parametrize("size", [(96, 192), (97, 190), (33, 31), (180, 240), (5, 3), (1, 1)])
def test_logits_at_stride_four_for_any_size(compact, size):
    with torch.no_grad():
        logits = compact(torch.randn(2, 3, *size))
    assert logits.shape == (2, 7, -(-size[0] // 4), -(-size[1] // 4))
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_size_of_the_network(compact):
    assert 300_000 < sum(parameter.numel() for parameter in compact.parameters()) < 1_000_000


def test_classifier_is_a_one_by_one_convolution_and_the_last_layer(compact):
    assert list(compact.modules())[-1] is compact.classifier
    assert isinstance(compact.classifier, nn.Conv2d)
    assert compact.classifier.kernel_size == (1, 1)
    assert compact.classifier.out_channels == 7
    assert compact.classifier.bias is not None
    outputs = []
    handle = compact.classifier.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        logits = compact(torch.randn(1, 3, 32, 32))
    handle.remove()
    assert len(outputs) == 1
    assert outputs[0] is logits


def test_channels_last_gives_the_same_logits():
    torch.manual_seed(0)
    model = build_model("compact", 5).eval()
    images = torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        expected = model(images)
        model = model.to(memory_format=torch.channels_last)
        result = model(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(result, expected)


def test_every_parameter_gets_a_gradient_after_one_step():
    """The last norm of each residual block starts at zero, so that layers before it learn from the second step on."""
    torch.manual_seed(0)
    model = build_model("compact", 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    images, labels = torch.randn(2, 3, 48, 64), torch.randint(0, 4, (2, 12, 16))
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_it_learns_one_batch():
    """The network learns three classes: a dark left half, a bright right half and a thin line between them."""
    torch.manual_seed(0)
    labels = torch.zeros(4, 8, 16, dtype=torch.long)
    labels[:, :, 8:] = 1
    labels[:, :, 8] = 2
    images = labels.float().repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand(4, 3, 32, 64)
    images = images + 0.1 * torch.randn(4, 3, 32, 64)
    model = build_model("compact", 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1.1, abs=0.1)  # ln 3: no class is preferred at the start
    assert losses[-1] < 0.1
    assert (model(images).argmax(1) == labels).float().mean() > 0.97


def test_global_context_reaches_every_position(compact):
    """A change in one corner affects the opposite one, far outside the receptive field of the convolutions."""
    images = torch.zeros(1, 3, 512, 512, requires_grad=True)
    model = compact.eval()
    model(images)[0, 0, -1, -1].backward()
    compact.train()
    assert images.grad is not None
    assert images.grad[0, :, :4, :4].abs().max() > 0


def test_build_model_refuses():
    with pytest.raises(ValueError, match=f"model 'resnet' is unknown; choose one of {', '.join(MODELS)}"):
        build_model("resnet", 3)
    with pytest.raises(ValueError, match="num_classes=0"):
        build_model("compact", 0)
    with pytest.raises(ValueError, match=r"widths=\(16, 0, 64, 96\)"):
        build_model("compact", 2, widths=(16, 0, 64, 96))
