"""The tiny runs as a config file: --config=tiny_config.py:STAGE,RUNS."""

import pathlib

from tiny import make_config


def get_config(arg):
    stage, runs = arg.split(",")
    return make_config(stage, pathlib.Path(runs))
