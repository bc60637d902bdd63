"""`python -m skipway` is the command `skipway`."""

import os
import sys

if sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]  # as for the command: a timm.py or rich.py that lies in this folder is not ours to run

from skipway.cli import main

main()
