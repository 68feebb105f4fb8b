"""Run by torchrun in tests: train a small corpus; SIGKILL at a step if one is given."""

import gc
import os
import signal
import sys
from pathlib import Path

import torch
from small_runs import two_process_config, with_a_broken_one
from torch.nn.parallel import DistributedDataParallel

from omnitok.train.loop import Hooks, Trainer
from omnitok.train.parallel import join, leave

torch.set_num_threads(1)
corpus, out, kind, network, kill_at = sys.argv[1:]


def die(values):
    """As the out-of-memory killer does it."""
    if values["step"] == int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)


def train():
    """In a function, so that nothing of the run outlives it."""
    items = {"small": with_a_broken_one(Path(corpus))}
    world = join("cpu")
    validate = (lambda model, step: {"psnr": float(step)}) if world.is_first else None
    config = two_process_config(kind, network)
    trainer = Trainer(config, Path(out), items, world, Hooks(on_step=die, validate=validate))
    trainer.run()
    if world.is_first:
        print(sorted(trainer.broken))


train()
leave()
# what is left of them would keep the group's threads until the interpreter aborts
assert not any(isinstance(thing, DistributedDataParallel) for thing in gc.get_objects())
