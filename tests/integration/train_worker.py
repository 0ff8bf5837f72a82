"""Runs `mmprm train` for each configuration file named, in one process per rank: starting ranks costs most of a run."""

from __future__ import annotations

import sys

from mmprm.cli.main import main

if __name__ == "__main__":
    for file in sys.argv[1:]:
        code = main(["train", "--config", file])
        if code:
            sys.exit(code)
