"""The schemas of ``torch.ops.cawa_fast``. The operators exist without a native build."""

from __future__ import annotations

import torch

LIBRARY: torch.library.Library = torch.library.Library("cawa_fast", "DEF")
# ``saved``: what the forward pass leaves for the backward pass, see :func:`backends.saves`.
LIBRARY.define(
    "cross_entropy(Tensor input, Tensor target, Tensor? weight, Tensor? offset, int ignore_index, str reduction, "
    "float label_smoothing, float gamma, bool align_corners, bool with_grad) "
    "-> (Tensor loss, Tensor scale, Tensor saved)"
)
LIBRARY.define(
    "cross_entropy_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, Tensor? offset, Tensor scale, "
    "Tensor saved, int ignore_index, float label_smoothing, float gamma, bool align_corners) -> Tensor"
)
LIBRARY.define(
    "region_sums(Tensor input, Tensor target, Tensor? weight, Tensor? offset, int ignore_index, str reduction, "
    "float label_smoothing, float gamma, bool squared, bool align_corners) "
    "-> (Tensor loss, Tensor sums, Tensor truth, Tensor scale)"
)
LIBRARY.define(
    "region_sums_backward(Tensor grad, Tensor grad_sums, Tensor input, Tensor target, Tensor? weight, Tensor? offset, "
    "Tensor scale, int ignore_index, float label_smoothing, float gamma, bool squared, bool align_corners) -> Tensor"
)
LIBRARY.define(
    "confusion_matrix(Tensor input, Tensor target, int num_classes, int ignore_index, bool align_corners) -> Tensor"
)
LIBRARY.define(
    "cam_counts(Tensor cam, Tensor target, float tau, str normalize, str classes, int ignore_index, "
    "bool align_corners) -> (Tensor tp, Tensor fp, Tensor fn)"
)
