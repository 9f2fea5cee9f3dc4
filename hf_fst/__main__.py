"""`python -m hf_fst` is `hf-fst`."""

import sys

from hf_fst.cli import main

if __name__ == "__main__":
    sys.exit(main())
