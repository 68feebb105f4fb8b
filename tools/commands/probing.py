"""A linear probe on frozen latents: `omnitok eval --probe DIR`, one subfolder for each class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tools.commands.errors import InputError, bug, sentence
from tools.commands.eval_data import media_of, read_item
from tools.commands.protocol import Protocol
from tools.commands.stopping import check

if TYPE_CHECKING:
    from torch import Tensor

    from omnitok import Tokenizer

TEST_SHARE = 0.25


def labelled(folder: str) -> list[tuple[str, str]]:
    """Path and class of every video and image in the subfolders.

    Raises:
        InputError: There are fewer than two classes of two files, or no such folder.
    """
    if not os.path.isdir(folder):
        raise InputError(f"--probe {folder} is no folder; name one with a subfolder for each class")
    seen = (entry for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    labels = sorted(entry.name for entry in seen)
    found = [(path, label) for label in labels for path in media_of(os.path.join(folder, label))]
    if sum(count > 1 for count in Counter(label for _, label in found).values()) < 2:
        raise InputError(
            f"{folder} does not hold two subfolders, one for each class, of two or more videos or "
            "images; sort the files into such folders"
        )
    return found


def probe(
    tok: Tokenizer,
    files: list[tuple[str, str]],
    protocol: Protocol,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Accuracy of a linear layer on the latents of files that it was not trained on.

    Args:
        tok: Its latents are used as the decoder gets them.
        files: Path and class of each (see `labelled`).
        protocol: What is cut out of the files.
        note: Called with a sentence about every file that cannot be read.

    Raises:
        InputError: Too few files can be read.
    """
    import torch

    from omnitok.metrics.probe import accuracy, split

    features, labels, classes = list[torch.Tensor](), list[int](), sorted({c for _, c in files})
    for path, label in files:
        check()
        try:
            item = read_item(path, path, protocol)
            if item is not None:
                features.append(_features(tok, item.frames))
                labels.append(classes.index(label))
        except Exception as error:
            note(f"left out of the probe: {sentence(error) or f'{path}: {bug(error)}'}")
    train, test = split(labels, TEST_SHARE, protocol.seed)
    if len({labels[n] for n in test}) < 2:
        raise InputError(
            f"of the {len(files)} labelled files {len(labels)} could be read and are long enough, "
            "too few to test two classes"
        )
    x, y = torch.stack(features), torch.tensor(labels)
    largest = Counter(labels[n] for n in test).most_common(1)[0][1]
    return {
        "accuracy": accuracy(x[train], y[train], x[test], y[test]),
        "chance": largest / len(test),
        "trained": len(train),
        "tested": len(test),
        "classes": len(set(labels)),
    }


def _features(tok: Tokenizer, frames: Tensor) -> Tensor:
    import torch

    from omnitok.metrics.probe import pool_latents
    from omnitok.pixels import to_float

    z = tok.encode(to_float(frames.transpose(0, 1)[None], torch.float32))
    if tok.codebook_size is not None:
        z = tok.dequantize(tok.quantize(z))
    return pool_latents(z[0]).cpu()
