"""A backbone of timm and a head of your own, with adaptive class weights: only the lines marked (+) are new.

pip install "cawa_fast[models,train]" && python examples/with_timm.py
"""

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader

import cawa_fast as cf
from cawa_fast.recipes.datasets.street.dataset import StreetDataset


class Network(nn.Module):
    """Returns logits at an eighth of the image's size; nothing resizes them."""

    def __init__(self, classes):
        super().__init__()
        self.backbone = timm.create_model("mobilenetv3_small_050", features_only=True, out_indices=(2,))
        (channels,) = self.backbone.feature_info.channels()
        self.head = nn.Sequential(nn.Conv2d(channels, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, classes, 1))

    def forward(self, images):
        return self.head(self.backbone(images)[0])


def loader(split, length):
    scenes = StreetDataset(split, length=length, size=(64, 128))
    pairs = [map(torch.tensor, scenes.read(index)) for index in range(length)]
    return DataLoader([(image.permute(2, 0, 1) / 255, labels) for image, labels in pairs], batch_size=2)


torch.manual_seed(0)
model = Network(10)
cawa = cf.CAWA(model, 10, ignore_index=255, metrics=True)  # (+)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
train_loader, val_loader = loader("train", 8), loader("val", 4)

for epoch in range(2):
    model.train()
    for images, labels in train_loader:
        model(images)
        loss = cawa.loss(labels)  # (+) in place of F.cross_entropy(F.interpolate(logits, ...), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.eval()
    for images, labels in val_loader:
        with torch.no_grad():
            model(images)
        cawa.observe(labels)  # (+)
    cawa.step()  # (+)
    print(f"epoch {epoch}: loss {loss.item():.3f}, mIoU {cawa.weights.metrics.miou:.3f}")
