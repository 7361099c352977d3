"""Which prompts stand once for all completions of their group."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.models import ModelConfig
from jaxalign.parallel import MeshConfig, make_mesh
from jaxalign.rl.layout import Packer

DENSE = ModelConfig(vocab_size=16, embed_dim=8, num_heads=1, num_kv_heads=1, num_layers=1, mlp_dim=8)
EXPERTS = ModelConfig(
    vocab_size=16, embed_dim=8, num_heads=1, num_kv_heads=1, num_layers=1, mlp_dim=8, num_experts=2
)


@pytest.mark.parametrize(
    ("policy", "judges", "samples", "shares"),
    [
        (DENSE, (), 4, True),
        (DENSE, (None, DENSE), 4, True),
        (DENSE, (EXPERTS,), 4, False),  # its experts would be balanced by other counts of tokens
        (EXPERTS, (DENSE,), 4, False),
        (DENSE, (), 1, False),
    ],
)
def test_prompts_are_shared_where_every_model_that_reads_them_can(policy, judges, samples, shares):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    options = types.SimpleNamespace(pack_completions=True, samples_per_row=samples)
    run = types.SimpleNamespace(
        config=types.SimpleNamespace(options=options),
        mesh=mesh,
        model=policy,
        rows_sharding=NamedSharding(mesh, PartitionSpec()),
    )
    segments = np.zeros((8, 16), np.int32)
    segments[:, 2:12] = 1  # prompts of 6 in the first 8 slots, completions of 4
    layout = Packer(run, *judges)(jnp.asarray(segments), prompt_slots=8)
    if not shares:
        assert layout is None  # 8 sequences of 10 tokens, each whole, take 8 rows of 16
        return
    assert layout.shared is not None
    # The last token of a prompt stays with each, as it says the first one of the completion: 2 · 5 + 8 · 5 tokens.
    assert int((np.asarray(layout.source) >= 0).sum()) == 50
