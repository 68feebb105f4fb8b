"""`omnitok decode` as a script: `python tools/decode_video.py --help`."""

import sys

from tools.cli import main

if __name__ == "__main__":
    sys.exit(main(["decode", *sys.argv[1:]]))
