"""Hugging Face checkpoints: which configs and tensors are ours, under which names."""

from jaxalign.models.hf.config import (
    architecture_for,
    architecture_of,
    classifier_of,
    config_from_hf,
    config_to_hf,
    is_scalar,
    same_function,
)
from jaxalign.models.hf.entry import Entry
from jaxalign.models.hf.tables import canonical_name, ignored, tensor_table

__all__ = [
    "Entry",
    "architecture_for",
    "architecture_of",
    "canonical_name",
    "classifier_of",
    "config_from_hf",
    "config_to_hf",
    "ignored",
    "is_scalar",
    "same_function",
    "tensor_table",
]
