"""The bilinear resize of the reference against ``F.interpolate``, and its adjoint."""

import pytest
import torch
import torch.nn.functional as F

from cawa_fast import reference
from tests.support.cases import LAYOUTS, RATIOS


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [*RATIOS, "large"])
def test_resize_is_interpolate(ratio, dtype, corners):
    low, high = RATIOS.get(ratio, ((37, 129), (515, 1030)))
    x = torch.randn(1, 2, *low, dtype=dtype)
    expected = F.interpolate(x, high, mode="bilinear", align_corners=corners)
    few_ulps = 8 * torch.finfo(dtype).eps * (1 if dtype == torch.float32 else max(low))  # ulps of the position
    torch.testing.assert_close(reference.resize(x, high, corners), expected, rtol=few_ulps, atol=few_ulps * 4)


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_resize_has_the_same_bits_for_any_layout(ratio, layout, corners):
    low, high = RATIOS[ratio]
    x = torch.randn(2, 3, *low)
    assert reference.resize(LAYOUTS[layout](x), high, corners).equal(reference.resize(x, high, corners))


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("ratio", RATIOS)
def test_resize_adjoint_is_the_gradient_of_resize(ratio, corners):
    low, high = RATIOS[ratio]
    x = torch.randn(2, 3, *low, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 3, *high, dtype=torch.float64)
    reference.resize(x, high, corners).backward(grad)
    torch.testing.assert_close(reference.resize_adjoint(grad, low, corners), x.grad)
