"""The same run as `hf-fst train`, for launchers: `accelerate launch examples/run_fst.py RECIPE [--key value ...]`."""

import sys

from hf_fst.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
