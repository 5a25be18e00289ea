"""The closed loop in your own training loop: only the lines marked (+) are new.

python examples/five_lines.py
"""

import torch
from torch import nn

import cawa_fast as cf

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 16, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1))
images = torch.rand(8, 3, 64, 64)
labels = (images[:, 0] > 0.98).to(torch.uint8)  # class 1 is rare, class 2 rarer still
labels[:, :2, :2] = 2

optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
cawa = cf.CAWA(model, num_classes=3)  # (+)

for epoch in range(5):
    for _ in range(4):
        model(images)
        loss = cawa.loss(labels)  # (+) resizes the logits from stride 4 inside the loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with torch.no_grad():  # the validation pass that you run anyway
        model(images)
        cawa.observe(labels)  # (+)
    weight = cawa.step()  # (+)
    print(f"epoch {epoch}: loss {loss.item():.3f}, class weights {[round(w, 3) for w in weight.tolist()]}")
