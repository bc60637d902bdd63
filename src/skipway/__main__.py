"""`python -m skipway` is the command `skipway`."""

from skipway.cli import main

main()
