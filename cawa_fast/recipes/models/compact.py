"""``compact``: the built-in network, small enough to train on two CPU cores within minutes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .network import check_num_classes, explained


def _conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class _Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut. If the block has a stride, the shortcut averages."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv_norm(inputs, outputs, stride=stride), nn.ReLU(inplace=True), *_conv_norm(outputs, outputs)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()
            self.shortcut = nn.Sequential(pool, *_conv_norm(inputs, outputs, kernel=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class CompactNet(nn.Module):
    """A residual encoder to stride 16, the mean over the image as context, and a decoder up to stride 4.

    It uses plain 3x3 convolutions with few channels. With inverted residuals (depthwise, expansion 4) instead, it would
    have 0.2 million parameters and take a fifth longer on a CPU. In the layout ``channels_last`` it is a quarter faster
    than contiguous. Parameters and time of forward and backward pass by part (8 images of 96x192, one thread):

    ========================  ==========  =====
    part                      parameters  time
    ========================  ==========  =====
    stem, stride 2                   464    4 %
    stage4, 1 block               14,528   24 %
    stage8, 2 blocks             131,712   31 %
    stage16, 2 blocks            311,232   19 %
    context and laterals          14,160    4 %
    fuse and classifier           21,322   18 %
    ========================  ==========  =====

    Args:
        num_classes: C >= 1.
        widths: channels at strides 2, 4, 8 and 16, each >= 1.
        decoder: channels in front of the classifier, >= 1.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self, num_classes: int, *, widths: tuple[int, int, int, int] = (16, 32, 64, 96), decoder: int = 48
    ) -> None:
        super().__init__()
        check_num_classes(num_classes)
        if min(*widths, decoder) < 1:
            raise ValueError(f"widths={widths} and decoder={decoder} are numbers of channels; each must be at least 1")
        half, quarter, eighth, sixteenth = widths
        self.stem = nn.Sequential(*_conv_norm(3, half, stride=2), nn.ReLU(inplace=True))
        self.stage4 = _Residual(half, quarter, stride=2)
        self.stage8 = nn.Sequential(_Residual(quarter, eighth, stride=2), _Residual(eighth, eighth))
        self.stage16 = nn.Sequential(_Residual(eighth, sixteenth, stride=2), _Residual(sixteenth, sixteenth))
        self.context = nn.Conv2d(sixteenth, decoder, 1)
        self.lateral16 = nn.Sequential(*_conv_norm(sixteenth, decoder, kernel=1))
        self.lateral8 = nn.Sequential(*_conv_norm(eighth, decoder, kernel=1))
        self.lateral4 = nn.Sequential(*_conv_norm(quarter, decoder, kernel=1))
        self.fuse = nn.Sequential(*_conv_norm(decoder, decoder), nn.ReLU(inplace=True))
        self.classifier = nn.Conv2d(decoder, num_classes, 1)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, _Residual):
                # at first each block is only its shortcut
                norm = module.body[-1]
                assert isinstance(norm, nn.BatchNorm2d)
                nn.init.zeros_(norm.weight)
        nn.init.normal_(self.classifier.weight, std=0.01)

    @explained
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, C, ceil(H/4), ceil(W/4)) of normalised floating-point images (N, 3, H, W) with any H, W >= 1."""
        x4 = self.stage4(self.stem(x))
        x8 = self.stage8(x4)
        x16 = self.stage16(x8)
        y = self.lateral16(x16) + self.context(x16.mean(dim=(2, 3), keepdim=True))
        y = self.lateral8(x8) + F.interpolate(y, size=x8.shape[2:], mode="bilinear", align_corners=False)
        y = self.lateral4(x4) + F.interpolate(y, size=x4.shape[2:], mode="bilinear", align_corners=False)
        return self.classifier(self.fuse(F.relu(y)))
