"""torchvision with adaptive class weights: only the lines marked (+) are new.

pip install "cawa_fast[train]" torchvision && python examples/with_torchvision.py
"""

import torch
from torch.utils.data import DataLoader
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

import cawa_fast as cf
from cawa_fast.recipes.datasets.street.dataset import StreetDataset


def loader(split, length):
    scenes = StreetDataset(split, length=length, size=(64, 128))
    pairs = [map(torch.tensor, scenes.read(index)) for index in range(length)]
    return DataLoader([(image.permute(2, 0, 1) / 255, labels) for image, labels in pairs], batch_size=2)


torch.manual_seed(0)
options = {"weights": None, "weights_backbone": None, "num_classes": 10, "aux_loss": True}
model = deeplabv3_mobilenet_v3_large(**options)
cawa = cf.CAWA(model, 10, ignore_index=255, metrics=True)  # (+)
auxiliary = cf.CrossEntropyLoss(cawa.weights, ignore_index=255)  # (+) uses the live weights too
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
train_loader, val_loader = loader("train", 8), loader("val", 4)

for epoch in range(2):
    model.train()
    for images, labels in train_loader:
        output = model(images)
        loss = cawa.loss(labels)  # (+) in place of F.cross_entropy(output["out"], labels)
        loss = loss + 0.5 * auxiliary(output["aux"], labels)  # (+)
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
print(cawa.explain())
