"""A model folder that cannot be used says so."""

import jax.numpy as jnp
import pytest

from jaxalign.errors import CheckpointError
from jaxalign.training.checkpoint import save_params
from jaxalign.training.saved_model import find_model


def test_a_model_of_another_version_is_refused(tmp_path):
    save_params(tmp_path, {"x": jnp.zeros(1)}, {"model": {"old_switch": 1}, "scalar": False})
    with pytest.raises(CheckpointError, match=r"another version of jaxalign wrote it .*old_switch"):
        find_model(str(tmp_path), "config.model.init_from")
