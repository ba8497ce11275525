"""`python -m minitrain` is the command `minitrain`."""

from minitrain.cli import main

main()
