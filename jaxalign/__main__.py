import sys

from jaxalign.cli import command

sys.exit(command())
