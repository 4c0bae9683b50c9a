"""Entry point of `python -m unfool`, which `torchrun -m unfool` needs."""

import os
import sys

# Python searches the current folder first, so that a jinja2.py there would shadow the library.
if not sys.flags.safe_path and sys.path[:1] in ([""], [os.getcwd()]):
    del sys.path[0]

from unfool.cli.main import main

main()
