"""A loop with accelerate: padding is not counted, and checkpoints hold the state."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import cawa_fast as cf
from tests.support.frameworks import needs
from tests.support.scenes import scenes

needs("accelerate", "accelerate")

from accelerate import Accelerator

from tests.support.accelerate_loop import fit, integration

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


def labelled(*numbers: int, of: int = 9) -> int:
    data = scenes(of)
    return sum(int((data[number][1] != 255).sum()) for number in numbers)


def test_padding_is_not_counted(tmp_path: Path) -> None:
    """Two processes count each image once, whatever way the loader shares batches out."""
    source = str(Path(cf.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": f"{source}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = str(Path(__file__).parents[1] / "support" / "accelerate_loop.py")
    done = subprocess.run([*launch, script, str(tmp_path)], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    same(one.pop("weights"), other.pop("weights"))
    message = "mask: the loader does not tell how many images of the last batch are real; its dataset, of type Stream"
    assert one.pop("error").startswith(message)
    assert other.pop("error").startswith(message)
    five = labelled(*range(5))
    stream = labelled(*range(5), of=5)
    expected = {"subset": labelled(0, 1, 2, 3, 4, 8), "small": labelled(0), "full": labelled(*range(8))}
    expected |= {"split": five, "uneven": five, "dispatched": five, "stream": stream}
    assert one == other == expected


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value.float().nan_to_num(-1), b[name].float().nan_to_num(-1)), name


def test_a_checkpoint_holds_the_state(tmp_path: Path) -> None:
    accelerators = [Accelerator(cpu=True, gradient_accumulation_steps=2) for _ in range(3)]
    whole = fit(accelerators[0], 3)
    fit(accelerators[1], 2, tmp_path / "state")
    resumed = fit(accelerators[2], 1, tmp_path / "state")
    assert len(resumed.weights.history) == 3
    same(whole.state_dict(), resumed.state_dict())


def test_errors_and_loaders_that_are_not_prepared() -> None:
    accelerator = Accelerator(cpu=True)
    assert integration.mask(accelerator, 3).tolist() == [True] * 3  # no loader runs
    with pytest.raises(TypeError, match="mask: accelerator must be an Accelerator, got None"):
        integration.mask(None, 3)
    with pytest.raises(ValueError, match=re.escape("mask: n must be at least 0, got -1; pass the number of images")):
        integration.mask(accelerator, -1)
    with pytest.raises(TypeError, match="mask: n must be an integer, got a tensor of "):
        integration.mask(accelerator, torch.zeros(3))


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(integration).failed == 0
