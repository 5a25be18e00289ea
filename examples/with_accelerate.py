"""A loop with accelerate and adaptive class weights: only the lines marked (+) are new.

pip install "cawa_fast[accelerate,train]" && accelerate launch examples/with_accelerate.py
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

import cawa_fast as cf
from cawa_fast.integrations.accelerate import mask  # (+)
from cawa_fast.recipes.datasets.street.dataset import StreetDataset


def loader(split, length):
    scenes = StreetDataset(split, length=length, size=(64, 128))
    pairs = [map(torch.tensor, scenes.read(index)) for index in range(length)]
    return DataLoader([(image.permute(2, 0, 1) / 255, labels) for image, labels in pairs], batch_size=2)


torch.manual_seed(0)
accelerator = Accelerator(cpu=True)
net = nn.Sequential(nn.Conv2d(3, 16, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(16, 10, 1))
cawa = cf.CAWA(net, 10, ignore_index=255, metrics=True)  # (+)
accelerator.register_for_checkpointing(cawa)  # (+) save_state and load_state take it along
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
model, optimizer, train_loader, val_loader = accelerator.prepare(net, optimizer, loader("train", 16), loader("val", 5))

for epoch in range(3):
    model.train()
    for images, labels in train_loader:
        model(images)
        loss = cawa.loss(labels)  # (+)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    net.eval()
    for images, labels in val_loader:
        with torch.no_grad():
            net(images)
        cawa.observe(labels, mask=mask(accelerator, len(labels)))  # (+) not what fills up the last batch
    cawa.step()  # (+)
    accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}, mIoU {cawa.weights.metrics.miou:.3f}")
accelerator.end_training()
