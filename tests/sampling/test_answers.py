"""What is kept of answers: what stands before a stop string, in all arrays alike, and of each prompt its own."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import parallel
from jaxalign.data.items import Item
from jaxalign.data.packing import build_rows
from jaxalign.models import ModelConfig
from jaxalign.sampling import answers
from jaxalign.sampling.generate import Completions, SamplingConfig

MODEL = ModelConfig(vocab_size=27, max_length=16)
EOS = 0
# By number; what the stop token does not end has run into the limit.
SAID = ([1, 2, 3, 4], [3, 1, EOS], [1, 1, 3, EOS], [4, EOS], [2, 2, 2, 2])
PROMPTS = ([5, 6], [7], [8, 9, 10], [11], [12])


class Letters:
    """1 is a, 2 is b, and so on."""

    eos_ids = (EOS,)

    def decode_answer(self, ids):
        return "".join(chr(96 + i) for i in ids)


def said(*arguments, rows, **settings):
    """In place of `generate`: the completions of these numbers; of none, where there is none."""
    tokens, mask = np.zeros((len(rows), 4), np.int32), np.zeros((len(rows), 4), np.float32)
    for place, number in enumerate(rows):
        own = SAID[number] if number < len(SAID) else []
        tokens[place, : len(own)], mask[place, : len(own)] = own, 1
    stopped = jnp.array([number >= len(SAID) or EOS in SAID[number] for number in rows])
    return Completions(jnp.asarray(tokens), jnp.asarray(mask), -jnp.asarray(mask), stopped)


@pytest.mark.parametrize(
    ("stop", "texts", "kept"),
    [
        ("", ("abcd", "ca", "aac", "d", "bbbb"), (4, 3, 4, 2, 4)),
        # Reached with the third token, with the first, with the third, never, never.
        ("c", ("ab", "", "aa", "d", "bbbb"), (3, 1, 3, 2, 4)),
        # The string that begins first cuts the text, though another is whole before it.
        (("bcd", "c"), ("a", "", "aa", "d", "bbbb"), (3, 1, 3, 2, 4)),
        ("bb", ("abcd", "ca", "aac", "d", ""), (4, 3, 4, 2, 2)),
    ],
)
def test_what_stands_after_a_stop_string_is_gone(stop, texts, kept, monkeypatch):
    monkeypatch.setattr(answers, "generate", said)
    items = [Item(np.int32(ids), np.zeros(len(ids), np.float32), row) for row, ids in enumerate(PROMPTS)]
    prompts = types.SimpleNamespace(rows=build_rows([items], "prompt", row_length=3, max_segments=1))
    sampling = SamplingConfig(max_new_tokens=4, stop=stop)
    with parallel.use_mesh(parallel.make_mesh(devices=jax.devices()[:1])):
        found = answers.answer(
            {}, MODEL, prompts, Letters(), sampling=sampling, key=jax.random.key(0), batch_size=2
        )
    assert tuple(found.texts) == texts and tuple(found.lengths) == kept
    whole = [EOS in ids for ids in SAID]
    assert found.stopped.tolist() == [
        a or text != old
        for a, text, old in zip(whole, texts, ("abcd", "ca", "aac", "d", "bbbb"), strict=True)
    ]
    for row, (prompt, ids, count) in enumerate(zip(PROMPTS, SAID, kept, strict=True)):
        live = [0] * (3 - len(prompt)) + [1] * (len(prompt) + count) + [0] * (4 - count)
        tokens = [0] * (3 - len(prompt)) + [*prompt, *ids[:count]] + [0] * (4 - count)
        at = [0] * (3 - len(prompt)) + [*range(len(prompt) + count)] + [0] * (4 - count)
        assert found.tokens[row].tolist() == tokens and found.segment_ids[row].tolist() == live
        assert found.positions[row].tolist() == at
        assert found.mask[row].tolist() == [0] * 3 + [1] * count + [0] * (4 - count)
        assert found.logp[row].tolist() == [-1] * count + [0] * (4 - count)
