"""A model folder that cannot be used says so."""

import jax.numpy as jnp
import pytest

from jaxalign.checksums import write_sums
from jaxalign.data import train_sentencepiece
from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.models import ModelConfig
from jaxalign.training.checkpoint import save_params
from jaxalign.training.saved_model import SavedModel, check_pieces, find_model


def test_a_model_of_another_version_is_refused(tmp_path):
    save_params(tmp_path, {"x": jnp.zeros(1)}, {"model": {"old_switch": 1}, "scalar": False})
    with pytest.raises(CheckpointError, match=r"another version of jaxalign wrote it .*old_switch"):
        find_model(str(tmp_path), "config.model.init_from")


def test_a_tokenizer_of_other_pieces_is_refused_though_it_has_as_many(tmp_path):
    (tmp_path / "own").mkdir()
    own = train_sentencepiece(["the cat sat on the mat"] * 20, tmp_path / "own/tokenizer.model", 280)
    other = train_sentencepiece(["a dog ran after a ball"] * 20, tmp_path / "other.model", 280)
    assert own.vocab_size == other.vocab_size
    source = SavedModel(tmp_path / "own", ModelConfig(vocab_size=280), scalar=False, meta={})
    check_pieces(source, own, "config.data.tokenizer='same'")
    first = next(
        i for i in range(280) if own.decode([i]).strip() != other.decode([i]).strip() and own.decode([i])
    )
    with pytest.raises(ConfigError) as refused:
        check_pieces(source, other, "config.data.tokenizer='other'")
    assert str(refused.value).startswith(
        "config.data.tokenizer='other' is another tokenizer than that of config.model.init_from: "
        f"token {first} is {other.decode([first]).strip()!r} in it, and {own.decode([first]).strip()!r} to the model"
    )


def test_a_chat_template_that_was_left_with_a_model_and_is_gone_is_missed(tmp_path):
    """Without it the format would be another."""
    train_sentencepiece(["the cat sat on the mat"] * 20, tmp_path / "tokenizer.model", 280)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    write_sums(tmp_path, ["chat_template.jinja", "tokenizer.model"])
    model = SavedModel(tmp_path, ModelConfig(vocab_size=280), scalar=False, meta={})
    assert model.tokenizer().vocab_size == 280
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is missing; .*SHA256SUMS"):
        model.tokenizer()
