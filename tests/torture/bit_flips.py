"""Damaged checkpoints: flipped bits, and files cut short. None may load, and the message names the file."""

from __future__ import annotations

import io
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from cawa_fast.recipes.runs.folder import RunFolder
from tests.support.tiny_runs import TINY
from tests.support.tiny_runs import run as train
from tests.torture.outcome import Outcome

OFFER = ". previous.pt beside it is intact, of epoch 1; to continue from there: mv "


def run(seed: int, n: int, *, checksum: bool = True) -> Outcome:
    """Damage the checkpoint of a run ``n`` times, by one flipped bit or, every tenth time, by cutting it short.

    Args:
        seed: of the places.
        n: how often.
        checksum: keep the checksum of the file. Otherwise it is saved by ``torch.save`` alone, as older versions did:
            then what loads must be the same network.
    """
    numbers = random.Random(seed)
    lost = []
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder(Path(name))
        train(folder.path, replace(TINY, epochs=2))
        content = torch.load(folder.latest, weights_only=True)
        if not checksum:
            torch.save(content, folder.latest)
        same = None if checksum else _saved(content)
        whole = folder.latest.read_bytes()
        for case in range(n):
            damaged = bytearray(whole)
            if case % 10 == 9:
                place = numbers.randrange(len(whole))
                del damaged[place:]
            else:
                place = numbers.randrange(8 * len(whole))
                damaged[place // 8] ^= 1 << place % 8
            folder.latest.write_bytes(damaged)
            if problem := _problem(folder, same):
                lost.append(f"case {case}, {'byte' if case % 10 == 9 else 'bit'} {place}: {problem}")
    return Outcome(n, n - len(lost), lost)


def _problem(folder: RunFolder, same: bytes | None) -> str | None:
    try:
        loaded = folder.load()
    except ValueError as error:
        text = str(error)
        named = text.startswith(f"{folder.latest} is damaged (") and OFFER in text
        return None if named else f"the message is {text}"
    except BaseException as error:
        return repr(error)
    return None if same is not None and _saved(loaded) == same else "it was loaded"


def _saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()
