"""Several processes each observe a share; all have the same bits, which are those of a single process."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import cawa_fast as cf
import cawa_fast.functional as CF
from cawa_fast import _collective
from tests.support.processes import start
from tests.support.tiny_runs import assert_same_run, without_times

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
hooked = sys.argv[5] == "hooked"
cawa = cf.CAWA(model if hooked else None, 5, ignore_index=255, budget=int(sys.argv[4]))
loader = DataLoader(TensorDataset(images, labels), 2, sampler=cawa.sampler(presence))
with torch.no_grad():
    for _ in range(3):
        for image, label in loader:
            logits = model(image)
            cawa.observe(label, **({} if hooked else {"logits": logits}))
        cawa.step()
torch.save(cawa.weights.state_dict(), f"{folder}/{processes}-{rank}.pt")
if processes > 1:
    dist.destroy_process_group()
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
if processes > 1:
    dist.destroy_process_group()
"""


METRICS = """
import sys, torch, torch.distributed as dist
import cawa_fast as cf
rank, processes, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
images, labels, presence, model = torch.load(f"{folder}/data.pt", weights_only=False)
metrics = cf.SegmentationMetrics(5, ignore_index=255)
shares = (images[:4], labels[:4]), (images[4:9], labels[4:9]), (images[:0], labels[:0])
with torch.inference_mode():
    if len(shares[rank][0]):
        metrics.update(model(shares[rank][0]), shares[rank][1])
    alone = metrics.compute(sync=False).confusion
    first = metrics.compute().confusion
    if rank == 1:
        metrics.update(model(images[9:]), labels[9:])
    metrics.sync()
    metrics.sync()  # adds nothing
    if rank == 0:
        metrics.compute()  # waits for nobody
    torch.save([alone, first, metrics.compute().confusion], f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


WRAPPED = """
import sys, torch, torch.distributed as dist
import cawa_fast as cf
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
rank, processes, folder, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
images, labels, presence, model = torch.load(f"{folder}/data.pt", weights_only=False)
if how == "FSDP":
    mesh = init_device_mesh("cpu", (processes,))
    for module in (model[0], model[2], model):
        fully_shard(module, mesh=mesh)
    trained = validated = model
else:
    trained, validated = DistributedDataParallel(model), model
cawa = cf.CAWA(trained, 5, ignore_index=255)
optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
own = slice(rank, 10, processes)
for _ in range(2):
    trained(images[own])
    optimizer.zero_grad()
    cawa.loss(labels[own]).backward()
    optimizer.step()
    with torch.no_grad():
        validated(images[own])
        cawa.observe(labels[own])
    cawa.step()
torch.save(cawa.weights.state_dict(), f"{folder}/{how}-{processes}-{rank}.pt")
dist.destroy_process_group()
"""


GRADIENTS = """
import copy, sys, torch, torch.distributed as dist
import torch.nn.functional as F
import cawa_fast as cf
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
rank, processes, folder, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
images, labels, presence, model = torch.load(f"{folder}/data.pt", weights_only=False)
labels = labels.long() % 5
plain, mesh = copy.deepcopy(model), init_device_mesh("cpu", (processes,))
trained = model
if how == "static graph":
    trained = DistributedDataParallel(model, static_graph=True)
else:
    for part in {"whole": (), "body": (model[0],), "head": (model[2],)}[how]:
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
cawa = cf.CAWA(model, 5)  # made from the bare network, which does not tell how it is wrapped
passes_output = how in ("static graph", "whole")
optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (trained, plain)]
parts = [slice(other, 10, processes) for other in range(processes)]
for _ in range(3):
    output = trained(images[parts[rank]])
    ours = cawa.loss(labels[parts[rank]], **({"output": output} if passes_output else {}))
    logits = [F.interpolate(plain(images[part]), labels.shape[1:], mode="bilinear") for part in parts]
    theirs = sum(F.cross_entropy(z, labels[part]) for z, part in zip(logits, parts))
    for optimizer, loss in zip(optimizers, (ours, theirs / processes)):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
for a, b in zip(model.parameters(), plain.parameters()):
    torch.testing.assert_close(a.full_tensor() if hasattr(a, "full_tensor") else a, b, rtol=1e-5, atol=1e-6)
if passes_output:
    trained(images[:2])
    try:
        cawa.loss(labels[:2])
    except RuntimeError as error:
        assert "synchronises the gradients only if they pass through what the wrapped network returned" in str(error)
    else:
        raise AssertionError("nothing was said")
dist.destroy_process_group()
"""


def run(script, folder, processes, *arguments):
    """Run the script in several processes. All must succeed within a minute."""
    (folder / "rendezvous").unlink(missing_ok=True)
    workers = [start(script, str(rank), str(processes), str(folder), *arguments) for rank in range(processes)]
    try:
        for worker in workers:
            worker.join(timeout=60)
        assert [worker.exitcode for worker in workers] == [0] * processes
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


def test_a_sum_returns_when_nothing_refers_to_the_tensor(monkeypatch):
    """If a thread of the group still refers to it when the interpreter ends, the process aborts."""
    held, seen = [], []

    def late(values, group=None):
        held.append(values)
        threading.Timer(0.2, held.clear).start()

    monkeypatch.setattr(_collective.dist, "all_reduce", late)
    _collective.all_reduce(torch.ones(3))
    assert not held
    monkeypatch.setattr(_collective, "_PATIENCE", 0.1)
    monkeypatch.setattr(_collective.dist, "all_reduce", lambda values, group=None: seen.append(values))
    begin = time.monotonic()
    _collective.all_reduce(torch.ones(3))  # waiting ends even if a reference stays
    assert seen
    assert 0.1 <= time.monotonic() - begin < 5


@pytest.mark.slow
def test_two_processes_have_the_bits_of_one(tmp_path):
    """Shards are uneven; one is empty in the second step, and one has only ignored labels in the third."""
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


@pytest.mark.slow
@pytest.mark.parametrize(("size", "how"), [(2, "hooked"), (9, "hooked"), (11, "hooked"), (9, "logits")])
def test_a_sample_is_shared_out(data, size, how):
    """Three processes share samples unevenly; of two images, one process gets none."""
    run(LOOP, data, 1, str(size), how)
    run(LOOP, data, 3, str(size), how)
    for rank in range(3):
        same(state(data / "1-0.pt"), state(data / f"3-{rank}.pt"))


@pytest.mark.slow
def test_what_pads_the_last_batch_is_not_counted_twice(data):
    run(PADDED, data, 1)
    run(PADDED, data, 3)
    one = state(data / "1-0.pt")
    assert one["last_confusion"].sum() == 11 * 11 * 12
    for rank in range(3):
        same(one, state(data / f"3-{rank}.pt"))


@pytest.mark.slow
def test_metrics_are_those_of_all_processes(data):
    """One of three processes has no image; another counts more after the sum."""
    run(METRICS, data, 3)
    images, labels, _, model = torch.load(data / "data.pt", weights_only=False)
    matrices = [
        CF.confusion_matrix(model(images[n:m]), labels[n:m], ignore_index=255)
        for n, m in ((0, 4), (4, 9), (0, 0), (9, 11))
    ]
    for rank in range(3):
        alone, first, last = torch.load(data / f"{rank}.pt")
        assert alone.equal(matrices[rank])
        assert first.equal(matrices[0] + matrices[1])
        assert last.equal(sum(matrices))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["DDP", "FSDP"])
def test_wrapped_networks(data, how):
    """FSDP distributes the classifier's bias, which the maps need, over the processes."""
    run(WRAPPED, data, 2, how)
    run(WRAPPED, data, 1, "DDP")
    one, other = (state(data / f"{how}-2-{rank}.pt") for rank in range(2))
    same(one, other)
    alone = state(data / "DDP-1-0.pt")
    assert (one["weight"] - 1).abs().max() > 0.05
    # gradients are means of the means of each process, which differ slightly from the mean over all
    torch.testing.assert_close(one["weight"], alone["weight"], rtol=0.05, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["static graph", "whole", "body", "head"])
def test_gradients_are_synchronised_or_an_error_says_how(data, how):
    """After three steps, the parameters are those of one process that trains plain PyTorch on all images."""
    run(GRADIENTS, data, 2, how)


# -------------------------------------------------------------------------------------------------- cawa-fast train


def train(folder, processes, *options, launcher=(), **environment):
    """``cawa-fast train`` on 12 drawn images and 5 for validation; returns its exit status and what it printed."""
    script = str(SOURCE / "tests" / "support" / "train_without_norm.py")
    settings = "--epochs 2 --train-images 12 --val-images 5 --batch-size 4 --resize 48x96 --threads 1 --workers 0"
    settings += " --ratio smoothed"  # a step then needs the one before
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [*launcher, script]
    command += ["train", "--device", "cpu", "--no-tables", "--run-dir", str(folder), *settings.split(), *options]
    env = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_torchrun_on_1_2_and_4_processes(tmp_path):
    """Weights equal those of one process: to the bit for a fixed network, closely for one that trains."""
    for lr, processes in (("0", 1), ("0", 2), ("0", 4), ("0.05", 1), ("0.05", 4)):
        status, output = train(tmp_path / f"{lr}-{processes}", processes, "--lr", lr)
        assert status == 0, output
        assert output.count("Done:") == 1  # only one process prints
    fixed = [without_times(tmp_path / f"0-{processes}") for processes in (1, 2, 4)]
    for records in fixed:
        assert len(set(records[0]["weight"])) > 4
        for name in ("weight", "csps", "iou", "miou", "accuracy"):
            assert [record[name] for record in records] == [record[name] for record in fixed[0]]
    learning = [without_times(tmp_path / f"0.05-{processes}") for processes in (1, 4)]
    for records in learning:
        assert records[0]["train_loss"] == pytest.approx(learning[0][0]["train_loss"], rel=1e-5)
        assert records[1]["train_loss"] == pytest.approx(learning[0][1]["train_loss"], rel=1e-3)
        assert records[1]["train_loss"] < fixed[0][1]["train_loss"]
        for record, one in zip(records, learning[0], strict=True):
            assert record["weight"] == pytest.approx(one["weight"], rel=0.02)


@pytest.mark.slow
def test_an_interrupted_run_of_two_processes_ends_with_the_same_bits(tmp_path):
    options = ("--lr", "0.05", "--budget", "4", "--weight-momentum", "0.5")
    status, output = train(tmp_path / "whole", 2, *options)
    assert status == 0, output
    status, _ = train(tmp_path / "parts", 2, *options, STOP_BEFORE="2")
    assert status != 0
    assert len(without_times(tmp_path / "parts")) == 1
    status, output = train(tmp_path / "parts", 2, *options, "--resume")
    assert status == 0, output
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_processes_that_cannot_share_a_batch(tmp_path):
    status, output = train(tmp_path / "run", 3)
    assert status != 0
    assert "batch_size=4 is shared by 3 processes; choose a multiple of 3" in output


THREE_EPOCHS = ("--lr", "0.05", "--epochs", "3", "--resume")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run of two processes."""
    folder = tmp_path_factory.mktemp("whole")
    status, output = train(folder, 2, *THREE_EPOCHS)
    assert status == 0, output
    return folder


@pytest.mark.slow
def test_when_one_process_is_killed_all_end_with_a_message(tmp_path, whole):
    started = time.monotonic()
    status, output = train(tmp_path, 2, *THREE_EPOCHS, KILL_RANK="1")
    assert status != 0
    assert time.monotonic() - started < 60
    assert "Signal 9 (SIGKILL)" in output
    assert "_validate" not in output  # no traceback of ours
    assert len(without_times(tmp_path)) == 1
    status, output = train(tmp_path, 2, *THREE_EPOCHS)
    assert status == 0, output
    assert_same_run(whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_torchrun_starts_a_run_again_that_ends_with_the_same_bits(tmp_path, whole, rank):
    """Rank 0 holds the lock of the folder when it is killed."""
    status, output = train(tmp_path, 2, *THREE_EPOCHS, launcher=["--max-restarts=1"], KILL_RANK=rank)
    assert status == 0, output
    assert "Continuing after epoch 1 of 3" in output
    assert_same_run(whole, tmp_path)


@pytest.mark.slow
def test_a_lost_connection_is_a_message(tmp_path):
    """Where torchrun does not end the other processes, as on another machine: it is stopped before one is killed."""
    script = str(SOURCE / "tests" / "support" / "train_without_norm.py")
    words = "--epochs 3 --train-images 12 --val-images 5 --batch-size 4 --resize 48x96 --threads 1 --workers 0"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, "train"]
    command += ["--device", "cpu", "--no-tables", "--run-dir", str(tmp_path / "run"), *words.split()]
    env = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "KILL_RANK": "1", "KILL_UNSEEN": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while "Error:" not in (text := (tmp_path / "log").read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    text = " ".join((tmp_path / "log").read_text().split())
    assert "Error: another process of this run has ended or cannot be reached (" in text
    assert "All finished epochs are saved: start the processes again with --resume" in text
    assert "Traceback" not in text
