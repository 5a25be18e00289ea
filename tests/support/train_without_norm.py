"""``cawa-fast`` with another network in place of "compact".

It has an auxiliary head and no batch normalisation, so that its output for an image does not depend on the other images
of the batch. ``STOP_BEFORE=2`` in the environment interrupts a run before its second epoch. ``KILL_RANK=1`` kills that
process of the first start in the middle of the second epoch; with ``KILL_UNSEEN=1`` torchrun is stopped before.
"""

import os
import signal
import sys

import torch
from torch import nn

from cawa_fast.cli import main
from cawa_fast.recipes import models
from cawa_fast.recipes.training.trainer import Trainer


class Plain(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 5, stride=4, padding=2), nn.ReLU(), nn.Dropout(0.0))
        self.auxiliary = nn.Conv2d(12, num_classes, 3, stride=2)
        self.classifier = nn.Conv2d(12, num_classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stem(images)
        self.auxiliary_logits = self.auxiliary(features) if self.training else None
        return self.classifier(features)


if __name__ == "__main__":
    models.MODELS["compact"] = Plain
    if "STOP_BEFORE" in os.environ:
        original = Trainer._epoch

        def interrupted(self, epoch):
            if epoch == int(os.environ["STOP_BEFORE"]):
                raise KeyboardInterrupt
            return original(self, epoch)

        Trainer._epoch = interrupted
    if os.environ.get("KILL_RANK") == os.environ["RANK"] and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        validate = Trainer._validate

        def killed(self, epoch, *rest, **options):
            if epoch == 2:
                if "KILL_UNSEEN" in os.environ:
                    os.kill(os.getppid(), signal.SIGSTOP)
                os.kill(os.getpid(), signal.SIGKILL)
            return validate(self, epoch, *rest, **options)

        Trainer._validate = killed
    sys.exit(main())
