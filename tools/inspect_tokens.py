"""`omnitok inspect` as a script: `python tools/inspect_tokens.py --help`."""

import sys

from tools.cli import main

if __name__ == "__main__":
    sys.exit(main(["inspect", *sys.argv[1:]]))
