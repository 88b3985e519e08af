"""`python -m supermask`, which torchrun needs: `torchrun --nproc-per-node 2 -m supermask search`."""

from supermask.cli import main

main()
