"""Models on disk: weights, architecture and tokenizer in one folder, left by a run or in Hugging Face's format.

<run>/model/<step>/...        parameters and meta, see checkpoint.py
<run>/model/tokenizer.model   or the files of a Hugging Face tokenizer
<run>/model/chat_template.jinja, where the run had one of its own

<folder>/config.json          a Hugging Face model: model.safetensors or shards, and a tokenizer
"""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxalign import storage
from jaxalign.data import Tokenizer, load_tokenizer
from jaxalign.errors import CheckpointError, ConfigError, JaxalignError
from jaxalign.hub import download, is_hub_name
from jaxalign.models import ModelConfig, Params, abstract_params
from jaxalign.models.attention import default_attention
from jaxalign.models.config import RUNTIME_KEYS
from jaxalign.models.hf.importer import CONFIG, HFModel, Path, by_path, load_folder, open_folder
from jaxalign.parallel import platform, processes
from jaxalign.storage import local_copy, to_path
from jaxalign.text.hf_tokenizer import HFTokenizer
from jaxalign.training.checkpoint import load_leaf, load_meta, load_params, save_params

MODEL = "model"
HF_CONFIG = "hf_config"  # in meta: the config.json that a model began with
HF_DTYPE = "hf_dtype"  # and the type of its tensors
HUB_FILES = ("model*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt")  # no pickle, no code


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A model folder that has been looked into."""

    path: storage.Path
    config: ModelConfig
    scalar: bool
    meta: dict[str, Any]
    foreign: HFModel | None = None  # None: left by a run

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""
        return load_tokenizer(self.path)

    def tokenizer_digest(self) -> str:
        """The same for two models exactly when their tokenizer files are."""
        files = sorted(file for file in self.path.glob("tokenizer*") if file.is_file())
        return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()

    def load(self, mesh: Mesh) -> Params:
        """Its parameters, float32, laid out on `mesh` by the rules in force."""
        abstract = abstract_params(self.config, mesh, scalar=self.scalar)
        if self.foreign is not None:
            return load_folder(self.foreign, abstract)
        return load_params(self.path, abstract)

    def leaf_reader(self, mesh: Mesh) -> Callable[[Path], jax.Array]:
        """Reads single parameters by their path; those of a run without reading any others."""
        if self.foreign is not None:
            return by_path(self.load(mesh)).__getitem__
        abstract = by_path(abstract_params(self.config, mesh, scalar=self.scalar))
        return lambda path: load_leaf(self.path, "/".join(path), abstract[path])


def find_model(path: str, key: str) -> SavedModel:
    """Looks into a model: a run's folder or its `model`, a Hugging Face folder, or the name of one on the hub.

    Raises:
      CheckpointError: nothing is there, or it is damaged; names the config `key` that gave the path.
      ConfigError: a Hugging Face model of an unknown kind, or a name that the hub does not give.
    """
    try:
        folder = to_path(path)
    except ConfigError as error:
        raise ConfigError(f"{key}={error}") from error
    if not folder.exists() and is_hub_name(path):
        folder = download(path, HUB_FILES, key)
    if (folder / CONFIG).is_file() and not _has_steps(folder):
        return _find_foreign(folder, f"{key}={path!r}")
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
    try:
        config = ModelConfig(**meta["model"] | {"attention": default_attention(platform())})
    except TypeError as error:
        raise CheckpointError(
            f"{key}={path!r}: another version of jaxalign wrote it ({error}); use that version, or train it again"
        ) from None
    return SavedModel(folder, config, meta["scalar"], meta)


def find_language_model(path: str, key: str) -> SavedModel:
    """`find_model`, of a model that writes.

    Raises:
      ConfigError: it is a reward model, or see `find_model`. CheckpointError: see `find_model`.
    """
    found = find_model(path, key)
    if found.scalar:
        raise ConfigError(f"{key}={path!r} is a reward model; name a language model")
    return found


def _has_steps(folder: storage.Path) -> bool:
    # The model of a run may have a config.json too, among the files of its tokenizer.
    return any((folder / name).is_dir() for name in (MODEL, "checkpoints")) or any(
        child.name.isdigit() for child in folder.iterdir()
    )


def _find_foreign(folder: storage.Path, where: str) -> SavedModel:
    try:
        found = open_folder(local_copy(folder, *HUB_FILES))
    except JaxalignError as error:
        raise type(error)(f"{where}: {error}") from error
    meta = {"model": dataclasses.asdict(found.config), "scalar": found.scalar}
    config = dataclasses.replace(found.config, attention=default_attention(platform()))
    return SavedModel(
        folder, config, found.scalar, meta | {HF_CONFIG: found.values, HF_DTYPE: found.dtype}, found
    )


def origin(source: SavedModel | None) -> dict[str, Any]:
    """What the meta of a model keeps of the Hugging Face model that it began as, so that it can become one again."""
    if source is None:
        return {}
    return {key: source.meta[key] for key in (HF_CONFIG, HF_DTYPE) if key in source.meta}


def save_model(
    folder: storage.Path,
    params: Params,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    scalar: bool,
    meta: dict[str, Any],
) -> None:
    """Leaves a model for `find_model`."""
    if jax.process_index() == 0:
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
    """Raises ConfigError unless the model has a row for each piece, and with a tokenizer made here no more."""
    padded = isinstance(tokenizer, HFTokenizer)  # models of others round their tables up
    if config.vocab_size < tokenizer.vocab_size or (config.vocab_size > tokenizer.vocab_size and not padded):
        raise ConfigError(
            f"{where}: the model has vocab_size={config.vocab_size}, but its tokenizer has {tokenizer.vocab_size} "
            f"pieces; use the tokenizer that the model was trained with, or set config.model.vocab_size=0 when "
            f"training from scratch"
        )


def check_pieces(source: SavedModel, tokenizer: Tokenizer, where: str) -> None:
    """Checks that a tokenizer gives the model's ids to the model's pieces.

    Raises:
      ConfigError: it is another one, however many pieces it has; names the first piece that differs.
    """
    own = source.tokenizer()
    for number in range(min(own.vocab_size, tokenizer.vocab_size)):
        mine, theirs = tokenizer.decode([number]), own.decode([number])
        if mine != theirs:
            raise ConfigError(
                f"{where} is another tokenizer than that of config.model.init_from: token {number} is {mine!r} in it, "
                f"and {theirs!r} to the model, whose embeddings would stand for other text; leave the key empty"
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
    return hashlib.sha256(processes.fetch_whole(_checksums(params)).tobytes()).hexdigest()[:16]
