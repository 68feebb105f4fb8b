"""What a run leaves behind for people: one CSV line a step, and TensorBoard.

The columns of the CSV never change; terms that come and go with the stage are JSON in the last one.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from omnitok.checkpoint import write_atomically

COLUMNS = ("step", "seconds", "waited", "stage", "kind", "rate", "loss", "norm")


class Log:
    """The log of a run.

    Args:
        folder: Gets `log.csv` and `tensorboard/`.
        step: Where the run goes on: later lines of an earlier attempt are dropped, since those
            steps come again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "log.csv"
        self._cut(step)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def _cut(self, step: int) -> None:
        if not self.path.exists():
            return
        lines = [x for x in self.path.read_bytes().splitlines(keepends=True) if x.endswith(b"\n")]
        kept = [x for x in lines[1:] if int(x.split(b",", 1)[0]) < step]
        write_atomically(self.path, b"".join(lines[:1] + kept))

    def write(self, values: Mapping[str, Any]) -> None:
        """Add one line."""
        more = {k: v for k, v in values.items() if k not in COLUMNS}
        with open(self.path, "a", newline="") as file:
            writer = csv.writer(file)
            if not file.tell():  # a run that was killed may leave an empty file
                writer.writerow([*COLUMNS, "more"])
            writer.writerow([*(values.get(k, "") for k in COLUMNS), json.dumps(more)])
        for name, value in values.items():
            if isinstance(value, float):
                self._board.add_scalar(name, value, values["step"])

    def close(self) -> None:
        """Write what is left."""
        self._board.close()


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a `log.csv`, terms beside the columns."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= json.loads(row.pop("more"))
    return rows
