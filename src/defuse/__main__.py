"""`python -m defuse`, which `torchrun -m defuse` needs."""

from defuse.cli import main

main()
