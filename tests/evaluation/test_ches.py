"""The likeness of preferences against each sequence read alone, and its identities."""

import jax
import numpy as np
import pytest

from jaxalign import parallel
from jaxalign.data import DataConfig
from jaxalign.data.dataset import dataset_from_records
from jaxalign.data.sources import Records
from jaxalign.evaluation.ches import ches
from jaxalign.models import ModelConfig, hidden_states, init_params

LETTERS = "abcdefgh"
PAIRS = [
    ("abc", "de", "fgh"),
    ("h", "aa", "ab"),
    ("gg", "ccc", "d"),
    ("ba", "fed", "def"),
    ("c", "a", "bcdefg"),
]
MODEL = ModelConfig(
    vocab_size=len(LETTERS) + 1, num_layers=2, embed_dim=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=32,
    max_length=32, init_std=0.3,
)  # fmt: skip


class Letters:
    """A `Tokenizer` of letters and an end."""

    vocab_size = len(LETTERS) + 1
    pad_id, bos_id = 0, None
    eos_ids = (len(LETTERS),)
    template = None
    control_ids: dict[str, int] = {}  # noqa: RUF012
    special_tokens: dict[str, str] = {}  # noqa: RUF012

    def encode(self, text):
        return [LETTERS.index(letter) for letter in text]

    def encode_pieces(self, pieces):
        return [self.encode(piece) for piece in pieces]

    def decode(self, ids):
        return "".join(LETTERS[i] for i in ids)


@pytest.fixture(scope="module")
def found():
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in PAIRS]
    config = DataConfig(max_length=12, row_length=32)
    with parallel.use_mesh(parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])):
        dataset = dataset_from_records([Records(rows, "pairs")], config, Letters(), "preference")
        params = init_params(jax.random.key(0), MODEL)
        numbers, scores = ches(params, MODEL, dataset, batch_size=2)
        return params, dict(zip(numbers.tolist(), scores, strict=True))


def states(params, prompt, answer):
    """Off which the letters of the answer and its end are read."""
    ids = np.array([[*Letters().encode(prompt + answer), *Letters.eos_ids]], np.int32)
    return np.asarray(hidden_states(params, MODEL, ids)[0][0], np.float64)[len(prompt) - 1 : -1]


def test_packed_pairs_are_scored_as_each_alone(found):
    params, scores = found
    assert sorted(scores) == list(range(len(PAIRS)))
    for number, (prompt, chosen, rejected) in enumerate(PAIRS):
        one, other = states(params, prompt, chosen), states(params, prompt, rejected)
        assert len(one) == len(chosen) + 1
        whole = one.sum(0) @ other.sum(0) - one.sum(0) @ one.sum(0)
        mean = one.mean(0) @ other.mean(0) - one.mean(0) @ one.mean(0)
        assert scores[number] == pytest.approx([whole, mean], rel=1e-4, abs=1e-4)
