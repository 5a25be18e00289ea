"""The tolerance of the tests: a result may be no worse than PyTorch's own."""

from __future__ import annotations

import torch
from torch import Tensor

SLACK = 1e-6  # about eight units in the last place of a float32


def assert_no_worse(actual: Tensor, exact: Tensor, pytorch: Tensor, floor: float = 0.0) -> None:
    """Asserts ``max |actual - exact| <= max |pytorch - exact| + max(1e-6 max |exact|, floor)``.

    Args:
        actual: what is tested, any shape and floating dtype.
        exact: the same computed in float64.
        pytorch: the same by PyTorch's own operators, in the dtype that users of those operators would use.
        floor: an absolute rounding error that no implementation can avoid, for results that may be far smaller than the
            values they are computed from.

    NaN and infinities must be in the same places as in ``exact``.
    """
    assert actual.shape == exact.shape, f"shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    actual, exact, pytorch = actual.detach().double(), exact.detach().double(), pytorch.detach().double()
    finite = exact.isfinite()
    torch.testing.assert_close(actual[~finite], exact[~finite], rtol=0, atol=0, equal_nan=True)
    assert actual[finite].isfinite().all(), "NaN or infinity where the exact result is finite"
    if not finite.any():
        return
    actual, exact, pytorch = actual[finite], exact[finite], pytorch[finite]
    error, native_error = (actual - exact).abs().max().item(), (pytorch - exact).abs().max().item()
    allowed = native_error + max(SLACK * exact.abs().max().item(), floor)
    assert error <= allowed, f"largest error {error:.3g}; PyTorch's own is {native_error:.3g}, allowed {allowed:.3g}"
