"""jaxalign: aligned language models in JAX, one pure function per stage."""

__version__ = "0.1.0"
