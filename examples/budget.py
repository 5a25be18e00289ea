"""Class weights from a sample of the validation set, for sets that are too large to run after every epoch.

python examples/budget.py
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import cawa_fast as cf

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 16, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1))
images = torch.rand(400, 3, 32, 32)
labels = (images[:, 0] > 0.98).to(torch.uint8)
labels[::20, :2, :2] = 2  # only every twentieth image contains class 2
data = TensorDataset(images, labels)
index = torch.stack([(labels == c).flatten(1).any(1) for c in range(3)], 1)  # (images, classes) bool

optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
# At most a tenth of the training time. Real trainings need less: 0.02 is plenty. budget=32 observes 32 images per step.
cawa = cf.CAWA(model, num_classes=3, budget=0.1, momentum=0.7)
train_loader = DataLoader(data, batch_size=8, shuffle=True)
val_loader = DataLoader(data, batch_size=8, sampler=cawa.sampler(index))

for epoch in range(5):
    model.train()
    for batch, target in train_loader:
        model(batch)
        optimizer.zero_grad()
        loss = cawa.loss(target)
        loss.backward()
        optimizer.step()

    model.eval()
    drawn = len(val_loader.sampler)
    with torch.no_grad():
        for batch, target in val_loader:
            model(batch)
            cawa.observe(target)
    weight = cawa.step()
    weight, error = ([round(value, 3) for value in values.tolist()] for values in (weight, cawa.weights.standard_error))
    print(f"epoch {epoch}: loss {loss.item():.3f}, {drawn} images, class weights {weight}, CSPS standard error {error}")
