"""Models on disk, as runs leave them for one another: weights, architecture and tokenizer in one folder.

<run>/model/<step>/...        parameters and meta, see checkpoint.py
<run>/model/tokenizer.model   and chat_template.jinja, where the run had one of its own
"""

import dataclasses
import hashlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxalign.data import Tokenizer, load_tokenizer
from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.models import ModelConfig, Params, abstract_params
from jaxalign.training.checkpoint import load_meta, load_params, save_params

MODEL = "model"
RUNTIME_KEYS = ("dtype", "remat", "attention")  # how a model is computed, not what it is


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A model folder that has been looked into."""

    path: pathlib.Path
    config: ModelConfig
    scalar: bool
    meta: dict[str, Any]

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""
        return load_tokenizer(self.path)

    def tokenizer_digest(self) -> str:
        """The same for two models exactly when their tokenizer files are."""
        files = sorted(self.path.glob("tokenizer*"))
        return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()

    def load(self, mesh: Mesh) -> Params:
        """Its parameters, float32, laid out on `mesh` by the rules in force."""
        return load_params(self.path, abstract_params(self.config, mesh, scalar=self.scalar))


def find_model(path: str, key: str) -> SavedModel:
    """Looks into the model that a run left in `path` (the run's folder, or its `model`).

    Raises:
      CheckpointError: nothing is there, or it is damaged; names the config `key` that gave the path.
    """
    folder = pathlib.Path(path).expanduser()
    if (folder / MODEL).is_dir():
        folder = folder / MODEL
    elif (folder / "checkpoints").is_dir():
        raise CheckpointError(
            f"{key}={path!r}: that run has not finished; run it to its end, it resumes by itself"
        )
    try:
        meta = load_meta(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{key}={path!r}: {error}") from error
    config = ModelConfig(**meta["model"])
    return SavedModel(folder, config, meta["scalar"], meta)


def save_model(
    folder: pathlib.Path,
    params: Params,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    scalar: bool,
    meta: dict[str, Any],
) -> None:
    """Leaves a model for `find_model`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    own = {"model": dataclasses.asdict(config), "scalar": scalar}
    save_params(folder, params, meta | own)


def resolve_architecture(wanted: ModelConfig, saved: ModelConfig) -> ModelConfig:
    """The saved architecture, computed as `wanted` says.

    Raises:
      ConfigError: a config file asks for another architecture than the saved one.
    """
    default = ModelConfig()
    for field in dataclasses.fields(ModelConfig):
        mine, theirs = getattr(wanted, field.name), getattr(saved, field.name)
        chosen = field.name == "vocab_size" or mine != getattr(default, field.name)
        if field.name in RUNTIME_KEYS:
            continue
        if chosen and mine != theirs:
            raise ConfigError(
                f"config.model.{field.name}={mine!r}, but the model in config.model.init_from has {theirs!r}; "
                f"leave the key at its default, or leave init_from empty to train from scratch"
            )
    return dataclasses.replace(saved, **{key: getattr(wanted, key) for key in RUNTIME_KEYS})


def check_vocabulary(config: ModelConfig, tokenizer: Tokenizer, where: str) -> None:
    """Raises ConfigError unless the tokenizer has exactly the pieces that the model has rows for."""
    if config.vocab_size != tokenizer.vocab_size:
        raise ConfigError(
            f"{where}: the model has vocab_size={config.vocab_size}, but its tokenizer has {tokenizer.vocab_size} "
            f"pieces; use the tokenizer that the model was trained with, or set config.model.vocab_size=0 when "
            f"training from scratch"
        )


@jax.jit
def _checksums(params: Params) -> jax.Array:
    def one(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32).ravel()
        odd = jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(2654435761) | jnp.uint32(1)
        return jnp.sum(bits * odd, dtype=jnp.uint32)

    return jnp.stack([one(x) for x in jax.tree.leaves(params)])


def fingerprint(params: Params) -> str:
    """A hexadecimal digest of the bits of all parameters, the same on any mesh."""
    return hashlib.sha256(jax.device_get(_checksums(params)).tobytes()).hexdigest()[:16]
