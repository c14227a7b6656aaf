"""Small checkpoint files of a run, and ways to damage them."""

import os

import torch


def save(folder, *steps):
    """Write checkpoints ``iter_N.pth``, each newer than those of smaller steps."""
    for step in steps:
        torch.save(dict(state_dict=dict(x=torch.full((2000,), float(step)))), folder / f'iter_{step}.pth')
        os.utime(folder / f'iter_{step}.pth', (step, step))


def truncate(file):
    file.write_bytes(file.read_bytes()[:-500])


def flip(file):
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
