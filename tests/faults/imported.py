"""What the server of tries imports: all that a verb imports, and nothing that starts a thread or a device."""

import importlib

import jax

from jaxalign.stages import NAMES
from jaxalign.verbs import VERBS, load_verb

for name in VERBS:
    load_verb(name)
for name in NAMES:
    importlib.import_module(f"jaxalign.stages.{name}")
jax.config.update("jax_default_matmul_precision", "highest")
