"""torchvision's networks with low-resolution logits as output, like the networks of the recipes."""

from __future__ import annotations

from torch import Tensor, nn

from ..libraries import import_torchvision

TORCHVISION = ("deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "fcn_resnet50")
"""Functions of ``torchvision.models.segmentation`` whose head ends in a 1x1 convolution."""


class TorchvisionNetwork(nn.Module):
    """Backbone and head of a network with random weights. (torchvision's own ``forward`` upsamples the logits.)

    Args:
        name: of :data:`TORCHVISION`.
        classes: C.
    """

    def __init__(self, name: str, classes: int) -> None:
        super().__init__()
        import_torchvision()
        from torchvision.models import segmentation

        make = getattr(segmentation, name)
        whole = make(weights=None, weights_backbone=None, num_classes=classes, aux_loss=False)
        self.backbone, self.head = whole.backbone, whole.classifier

    def forward(self, images: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to about ``(N, C, H / 8, W / 8)``."""
        logits: Tensor = self.head(self.backbone(images)["out"])
        return logits
