"""A model that is talked to: a conversation to its reply, token by token."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import jax
from jax.sharding import Mesh

from jaxalign import parallel
from jaxalign.data import Tokenizer
from jaxalign.data.encode import encode_prompt
from jaxalign.data.records import Message, Prompt
from jaxalign.models import ModelConfig, Params
from jaxalign.sampling.answers import cut_at_stop
from jaxalign.sampling.generate import SamplingConfig
from jaxalign.sampling.stream import stream
from jaxalign.training.saved_model import find_language_model


@dataclasses.dataclass
class Speaker:
    """One model and its side of the conversation."""

    name: str
    params: Params
    config: ModelConfig
    tokenizer: Tokenizer
    mesh: Mesh
    messages: list[Message] = dataclasses.field(default_factory=list)

    def answer(
        self, said: Sequence[Message], sampling: SamplingConfig, key: jax.Array, *, plain: bool = False
    ) -> Iterator[str]:
        """Yields the reply to a conversation so far, longer and longer.

        Args:
          plain: continue the last text instead of answering a message, for models that know no conversation.
        """
        prompt = Prompt(said[-1].content if plain else tuple(said))
        prompt_ids = encode_prompt(prompt, self.tokenizer).ids.tolist()
        ids: list[int] = []
        reply, stops = "", self.tokenizer.eos_ids
        for token in self._tokens(prompt_ids, sampling, key):
            ids += [token] * (token not in stops)
            # A character may take several tokens: what is not yet whole is held back.
            reply, _, found = cut_at_stop(ids, self.tokenizer, sampling.stops, sampling.min_new_tokens)
            yield reply.rstrip("\ufffd")
            if found:
                break
        yield reply

    def _tokens(self, ids: list[int], sampling: SamplingConfig, key: jax.Array) -> Iterator[int]:
        stops = self.tokenizer.eos_ids
        tokens = stream(self.params, self.config, ids, key, sampling=sampling, stop_ids=stops)
        while True:
            # Whoever reads the reply may be in another thread, or have a mesh of its own in force between two tokens.
            with parallel.use_mesh(self.mesh):
                token = next(tokens, None)
            if token is None:
                return
            yield token

    def reply(self, text: str, sampling: SamplingConfig, key: jax.Array, *, plain: bool) -> Iterator[str]:
        """Yields the reply to what a user says, longer and longer, and remembers both when it is whole."""
        said = [*self.messages, Message("user", text)]
        reply = ""
        for reply in self.answer(said, sampling, key, plain=plain):
            yield reply
        if not plain and reply.strip():
            self.messages = [*said, Message("assistant", reply)]


@contextlib.contextmanager
def one_device() -> Iterator[Mesh]:
    """The mesh on which models are talked to."""
    mesh = parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])
    with parallel.use_mesh(mesh):
        yield mesh


def load_speaker(path: str, flag: str, *, chat_template: str, template_args: str, dtype: str) -> Speaker:
    """The model in a run, a Hugging Face folder or on the hub; call inside `one_device`."""
    model = find_language_model(path, flag)
    config = dataclasses.replace(model.config, dtype=dtype)
    tokenizer = model.tokenizer(chat_template, template_args)
    mesh = jax.sharding.get_mesh()
    return Speaker(path, model.load(mesh), config, tokenizer, mesh)
