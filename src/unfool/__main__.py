"""`python -m unfool`, which `torchrun -m unfool` needs."""

from unfool.cli.main import main

main()
