"""The three operators, on logits at stride 4 and labels at full resolution.

python examples/operators.py
"""

import torch

import cawa_fast.functional as CF

torch.manual_seed(0)
labels = torch.randint(0, 19, (2, 128, 256), dtype=torch.uint8)
labels[:, :8] = 255  # void
logits = torch.randn(2, 19, 32, 64, requires_grad=True)

loss = CF.cross_entropy(logits, labels, ignore_index=255)  # F.interpolate and F.cross_entropy in one operator
loss.backward()

matrix = CF.confusion_matrix(logits, labels, ignore_index=255)  # exact int64 counts
hit = matrix.diagonal()
iou = hit / (matrix.sum(0) + matrix.sum(1) - hit)

counts = CF.cam_counts(logits.detach().relu(), labels, tau=0.5, ignore_index=255)  # CAWASeg, Eq. 1 and 3
recall = counts.tp / (counts.tp + counts.fn)

print(f"loss {loss.item():.4f}, mIoU {iou.mean():.4f}, mean recall of the pseudo masks {recall.mean():.4f}")
