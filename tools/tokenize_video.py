"""`omnitok tokenize` as a script: `python tools/tokenize_video.py --help`."""

import sys

from tools.cli import main

if __name__ == "__main__":
    sys.exit(main(["tokenize", *sys.argv[1:]]))
