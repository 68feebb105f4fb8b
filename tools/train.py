"""Train a tokenizer: the same as `omnitok train`; also under `torchrun -m tools.train`."""

import sys

from tools.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
