"""Several processes: each observes its share, all hold the same bits, and those of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import cawa_fast as cf

SOURCE = Path(cf.__file__).parents[1]

WEIGHTS = """
import sys, torch, torch.distributed as dist
import cawa_fast as cf
rank, processes, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
weights = cf.AdaptiveClassWeights(4, ratio="paper", momentum=0.5)
for shards in torch.load(f"{folder}/batches.pt"):
    for cam, target in shards[rank]:
        weights.observe(cam, target)
    weights.step()
torch.save(weights.state_dict(), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""

LOOP = """
import sys, torch, torch.distributed as dist
import cawa_fast as cf
from torch.utils.data import DataLoader, TensorDataset
rank, processes, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
if processes > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
images, labels, presence, model = torch.load(f"{folder}/data.pt", weights_only=False)
cawa = cf.CAWA(model, 5, ignore_index=255, budget=int(sys.argv[4]))
loader = DataLoader(TensorDataset(images, labels), 2, sampler=cawa.sampler(presence))
with torch.no_grad():
    for _ in range(3):
        for image, label in loader:
            model(image)
            cawa.observe(label)
        cawa.step()
torch.save(cawa.weights.state_dict(), f"{folder}/{processes}-{rank}.pt")
"""

PADDED = """
import sys, torch, torch.distributed as dist
import cawa_fast as cf
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
rank, processes, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
if processes > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
images, labels, presence, model = torch.load(f"{folder}/data.pt", weights_only=False)
cawa = cf.CAWA(model, 5, ignore_index=255, metrics=True)
data = TensorDataset(images, labels)
sampler = DistributedSampler(data, processes, rank, shuffle=True)
real = cf.unpadded(sampler).split(2)
with torch.no_grad():
    for (image, label), mask in zip(DataLoader(data, 2, sampler=sampler), real, strict=True):
        model(image)
        cawa.observe(label, mask=mask)
    cawa.step()
torch.save(cawa.weights.state_dict(), f"{folder}/{processes}-{rank}.pt")
"""


def run(script, folder, processes, *arguments):
    """The script in so many processes; all have to end well, within a minute."""
    (folder / "rendezvous").unlink(missing_ok=True)
    env = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    workers = [
        subprocess.Popen([*command, str(rank), str(processes), str(folder), *arguments], env=env)
        for rank in range(processes)
    ]
    try:
        assert [worker.wait(timeout=60) for worker in workers] == [0] * processes
    finally:
        for worker in workers:
            worker.kill()


def state(file):
    return torch.load(file, weights_only=True)


def same(state, other):
    assert state.keys() == other.keys()
    for key, value in state.items():
        assert torch.equal(value, other[key]) or (value.isnan() == other[key].isnan()).all(), key
        torch.testing.assert_close(value, other[key], rtol=0, atol=0, equal_nan=True)


def test_two_processes_have_the_bits_of_one(tmp_path):
    """Uneven shards, and in the second step an empty one; in the third one that has ignored labels alone."""
    batches = [(torch.rand(n, 4, 5, 6), torch.randint(0, 4, (n, 20, 25))) for n in (2, 1, 3, 1, 2)]
    nothing = (torch.rand(2, 4, 5, 6), torch.full((2, 20, 25), -100))
    steps = [[batches[:3], batches[3:]], [batches[1:3], []], [[nothing], batches[:4]]]
    torch.save(steps, tmp_path / "batches.pt")
    alone = cf.AdaptiveClassWeights(4, ratio="paper", momentum=0.5)
    for shards in steps:
        for cam, target in shards[0] + shards[1]:
            alone.observe(cam, target)
        alone.step()
    run(WEIGHTS, tmp_path, 2)
    for rank in range(2):
        same(alone.state_dict(), state(tmp_path / f"{rank}.pt"))


@pytest.fixture
def data(tmp_path):
    """11 images of 5 classes, the rarest in one of them, and a network."""
    images = torch.randn(11, 3, 12, 12)
    labels = (torch.rand(11, 12, 12) ** 2 * 4).long().to(torch.uint8)
    labels[7, 3:5, 3:6] = 4
    labels[:, :1] = 255
    presence = torch.stack([(labels == c).flatten(1).any(1) for c in range(5)], 1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))
    torch.save((images, labels, presence, model), tmp_path / "data.pt")
    return tmp_path


@pytest.mark.parametrize("size", [2, 9, 11])
def test_a_sample_is_shared_out(data, size):
    """Three processes, and samples that they cannot share evenly; of two images one process gets none."""
    run(LOOP, data, 1, str(size))
    run(LOOP, data, 3, str(size))
    for rank in range(3):
        same(state(data / "1-0.pt"), state(data / f"3-{rank}.pt"))


def test_what_pads_the_last_batch_is_not_counted_twice(data):
    run(PADDED, data, 1)
    run(PADDED, data, 3)
    one = state(data / "1-0.pt")
    assert one["last_confusion"].sum() == 11 * 11 * 12
    for rank in range(3):
        same(one, state(data / f"3-{rank}.pt"))
