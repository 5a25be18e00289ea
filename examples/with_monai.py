"""MONAI with adaptive class weights, validated by sliding windows: only the lines marked (+) are new.

pip install "cawa_fast[monai,train]" && python examples/with_monai.py
"""

import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from torch.utils.data import DataLoader

import cawa_fast as cf
from cawa_fast.recipes.datasets.street.dataset import StreetDataset


def loader(split, length):
    scenes = StreetDataset(split, length=length, size=(64, 128))
    pairs = [map(torch.tensor, scenes.read(index)) for index in range(length)]
    return DataLoader([(image.permute(2, 0, 1) / 255, labels) for image, labels in pairs], batch_size=2)


torch.manual_seed(0)
model = UNet(spatial_dims=2, in_channels=3, out_channels=10, channels=(8, 16, 32), strides=(2, 2), num_res_units=1)
cawa = cf.CAWA(None, 10, ignore_index=255, metrics=True, source="argmax")  # (+) no layer to listen to: logits=
windows = SlidingWindowInferer(roi_size=(64, 64), overlap=0.5, mode="gaussian")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
train_loader, val_loader = loader("train", 8), loader("val", 4)

for epoch in range(2):
    model.train()
    for images, labels in train_loader:
        logits = model(images[..., :64])
        loss = cawa.loss(labels[..., :64], logits=logits)  # (+)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.eval()
    for images, labels in val_loader:
        with torch.no_grad():
            logits = windows(images, model)  # the stitched image
        cawa.observe(labels, logits=logits)  # (+)
    cawa.step()  # (+)
    print(f"epoch {epoch}: loss {loss.item():.3f}, mIoU {cawa.weights.metrics.miou:.3f}")
