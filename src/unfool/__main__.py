"""`python -m unfool`, which `torchrun -m unfool` needs."""

import os
import sys

# Python puts the current folder first, where a jinja2.py would take the place of the library.
if not sys.flags.safe_path and sys.path[:1] in ([""], [os.getcwd()]):
    del sys.path[0]

from unfool.cli.main import main

main()
