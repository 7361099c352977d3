"""Models on disk: weights, architecture and tokenizer, left by a run or in Hugging Face's format.

<run>/model/<step>/...        parameters and meta, see checkpoint.py
<run>/model/tokenizer.model   or the files of a Hugging Face tokenizer
<run>/model/chat_template.jinja, where the run had one of its own

<run>/checkpoints/<step>/...  the same within a whole state, see workdir.py

<folder>/config.json          a Hugging Face model: model.safetensors or shards, and a tokenizer
"""

import dataclasses
import fnmatch
import functools
import hashlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxalign import storage
from jaxalign.checksums import SUMS, Mismatch, check_sums, write_sums
from jaxalign.data import Tokenizer, load_tokenizer
from jaxalign.errors import CheckpointError, ConfigError, JaxalignError
from jaxalign.hub import QUICKSTART, download, is_hub_name
from jaxalign.models import ModelConfig, Params, abstract_params, add_tokens
from jaxalign.models.config import SCALING_KEYS, best_on
from jaxalign.models.hf.importer import (
    CONFIG,
    HFModel,
    Path,
    by_path,
    load_folder,
    load_leaves,
    open_folder,
)
from jaxalign.parallel import platform, processes
from jaxalign.storage import local_copy, to_path
from jaxalign.text.hf_tokenizer import HFTokenizer
from jaxalign.training.checkpoint import load_leaf, load_meta, load_params, save_params
from jaxalign.training.step_files import CHECKPOINTS, find_step, verified_record
from jaxalign.training.workdir import (
    LATEST,
    MODEL,
    TEMPLATE,
    TOKENIZER,
    find_checkpoint,
    named_checkpoint,
)

HF_CONFIG = "hf_config"  # in meta: the config.json that a model began with
HF_DTYPE = "hf_dtype"  # and the type of its tensors
# No pickle, no code.
HUB_FILES = ("model*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", SUMS)


_TRIES = 5  # to read the newest checkpoint of a run that goes on, and removes those before it


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A model on disk that has been looked into."""

    path: storage.Path  # the folder with its tokenizer
    config: ModelConfig
    scalar: bool
    meta: dict[str, Any]
    foreign: HFModel | None = None  # None: left by a run
    checkpoint: storage.Path | None = None  # where the parameters are, unless in `path`
    # Looks for it again: what a run that goes on calls its latest or its best is another one then.
    again: Callable[[], "SavedModel"] | None = None

    @property
    def place(self) -> storage.Path:
        """The folder with its parameters, by which one model is told from another."""
        return self.checkpoint or self.path

    def tokenizer(self, chat_template: str = "", template_args: str = "") -> Tokenizer:
        """The tokenizer that the model was trained with, with its own chat template or another.

        Raises:
          CheckpointError: a file of it is damaged. ConfigError: see `load_tokenizer`.
        """
        self.check_tokenizer()
        return load_tokenizer(self.path, chat_template, template_args)

    def check_tokenizer(self) -> None:
        """Raises CheckpointError unless tokenizer and chat template are those left with the model."""
        self._check("tokenizer*", self.path)
        self._check("chat_template*", self.path)

    def _check(self, pattern: str, folder: storage.Path) -> None:
        """Raises CheckpointError for a file that is not what jaxalign wrote; of other folders nothing is known."""
        try:
            check_sums(folder, lambda name: fnmatch.fnmatchcase(name, pattern))
        except Mismatch as error:
            raise CheckpointError(
                f"{folder}: {error}; get a whole copy, or delete {SUMS} there if the change was meant"
            ) from None

    def tokenizer_digest(self) -> str:
        """The same for two models exactly when their tokenizer files are."""
        files = sorted(file for file in self.path.glob("tokenizer*") if file.is_file())
        return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()

    def load(self, mesh: Mesh, vocab_size: int = 0) -> Params:
        """Its parameters, float32, laid out on `mesh` by the rules in force.

        Args:
          vocab_size: rows of the vocabulary's tables, where they are to be more than the model's: see `add_tokens`.
        """
        abstract = abstract_params(self.config, mesh, scalar=self.scalar)
        params = self._load(abstract)
        if vocab_size <= self.config.vocab_size:
            return params
        larger = dataclasses.replace(self.config, vocab_size=vocab_size)
        return add_tokens(params, abstract_params(larger, mesh, scalar=self.scalar))

    def _load(self, abstract: Params) -> Params:
        if self.foreign is not None:
            self._check("*.safetensors", self.foreign.folder)
            return load_folder(self.foreign, abstract)
        found = self
        for _ in range(_TRIES):
            try:
                return load_params(found.place, abstract, where=found.meta.get("weights", "params"))
            except CheckpointError:
                newer = found.newer()
                if newer is None:
                    raise
                found = newer
        raise CheckpointError(f"{found.place}: its run removes checkpoints faster than they can be read")

    def newer(self) -> "SavedModel | None":
        """The checkpoint that is in the place of this one now; None: this one is still it.

        Raises:
          CheckpointError: it was removed, and nothing stands in its place.
        """
        if self.checkpoint is not None and self.again is None and not self.checkpoint.is_dir():
            raise CheckpointError(
                f"{self.checkpoint} was removed while it was read, by the run that goes on there; config.keep_every "
                "and config.keep_checkpoints keep checkpoints, and @latest is the one there is"
            )
        found = self.again() if self.again else self
        return None if found.place == self.place else found

    def leaf_reader(self, mesh: Mesh) -> Callable[[Path], jax.Array]:
        """Reads single parameters by their path, without reading any others."""
        abstract = by_path(abstract_params(self.config, mesh, scalar=self.scalar))
        foreign = self.foreign
        if foreign is not None:
            self._check("*.safetensors", foreign.folder)
            return lambda path: load_leaves(foreign, {path: abstract[path]})[path]
        where = self.meta.get("weights", "params")
        verified_record(find_step(self.place))
        return lambda path: load_leaf(self.place, "/".join(path), abstract[path], where=where)


def find_model(path: str, key: str) -> SavedModel:
    """Looks into a model: a run, one of its checkpoints (see workdir.py), a Hugging Face folder or hub name.

    Of a run that has not ended, the latest checkpoint is taken, and said on standard error.

    Raises:
      CheckpointError: nothing is there, or it is damaged; names the config `key` that gave the path.
      ConfigError: a Hugging Face model of an unknown kind, or a name that the hub does not give.
    """
    try:
        folder = to_path(path)
        named = named_checkpoint(path)
    except ConfigError as error:
        raise ConfigError(f"{key}={error}") from error
    if named is not None:
        return _of_run(*named, path, key)
    if not folder.exists() and is_hub_name(path):
        folder = download(path, HUB_FILES, key)
    if (folder / CONFIG).is_file() and not _has_steps(folder):
        return _find_foreign(folder, f"{key}={path!r}")
    if (folder / MODEL).is_dir() and _has_steps(folder / MODEL):
        return _open(folder / MODEL, path, key)
    if (folder / CHECKPOINTS).is_dir() and _has_steps(folder / CHECKPOINTS):
        found = _of_run(folder, LATEST, path, key)
        if jax.process_index() == 0:
            done, steps = found.meta["step"], found.meta.get("steps", "an unknown number")
            print(
                f"{key}={path!r}: that run has not ended; its latest checkpoint is taken, after step {done} of {steps}",
                file=sys.stderr,
            )
        return found
    return _open(folder, path, key)


def _of_run(run: storage.Path, which: str, path: str, key: str) -> SavedModel:
    try:
        found = _open(find_checkpoint(run, which), path, key)
    except CheckpointError as error:
        where = f"{key}={path!r}: "
        raise CheckpointError(f"{where}{str(error).removeprefix(where)}") from error
    if which.isdigit():
        return found
    return dataclasses.replace(found, again=functools.partial(_of_run, run, which, path, key))


def _open(folder: storage.Path, path: str, key: str) -> SavedModel:
    """The model in `folder`, which `key` gave as `path`: parameters alone, or within the state of a run."""
    try:
        step = find_step(folder)
        meta = load_meta(step)
    except CheckpointError as error:
        raise CheckpointError(f"{key}={path!r}: {error}{_advice(path)}") from error
    beside = any(file.is_file() for file in folder.glob("tokenizer*"))
    own = step.parent.parent / TOKENIZER
    try:
        config, scalar = _computed_here(ModelConfig(**meta["model"])), meta["scalar"]
        named = "" if beside or own.is_dir() else meta["config"]["data"]["tokenizer"]
        if type(scalar) is not bool or not isinstance(named, str):
            raise TypeError("its scalar or its tokenizer is of another type")
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{key}={path!r}: another version of jaxalign wrote it ({error}); use that version, or train it again"
        ) from None
    except ConfigError as error:
        raise CheckpointError(f"{key}={path!r}: {error}; the checkpoint says so, and is damaged") from None
    if beside:
        return SavedModel(folder, config, scalar, meta)
    return SavedModel(to_path(named) if named else own, config, scalar, meta, checkpoint=step)


def _computed_here(config: ModelConfig) -> ModelConfig:
    """The same model, computed as is best on the devices that are here."""
    return dataclasses.replace(config, **best_on(platform(), config.num_layers, config.head_dim))


def _advice(path: str) -> str:
    """What makes the models that the config files of jaxalign begin with."""
    if to_path(path).parent.name != QUICKSTART:
        return ""
    return "; `jaxalign quickstart` makes it, or name a model of yours"


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
    return any((folder / name).is_dir() for name in (MODEL, CHECKPOINTS)) or any(
        child.name.isdigit() for child in folder.iterdir()
    )


def _find_foreign(folder: storage.Path, where: str) -> SavedModel:
    try:
        found = open_folder(local_copy(folder, *HUB_FILES))
    except JaxalignError as error:
        raise type(error)(f"{where}: {error}") from error
    config = _computed_here(found.config)
    meta = {"model": dataclasses.asdict(config), "scalar": found.scalar}
    meta |= {HF_CONFIG: found.values, HF_DTYPE: found.dtype}
    return SavedModel(folder, config, found.scalar, meta, found)


def origin(source: SavedModel | None) -> dict[str, Any]:
    """What the meta of a model keeps of the Hugging Face model that it began as, so that it can become one again."""
    if source is None:
        return {}
    return {key: source.meta[key] for key in (HF_CONFIG, HF_DTYPE) if key in source.meta}


def save_tokenizer(folder: storage.Path, tokenizer: Tokenizer, *, own_template: bool = False) -> None:
    """Leaves a tokenizer beside a model, and its chat template where the run has one of its own; process 0 does."""
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder)
        if own_template and tokenizer.template is not None:
            storage.write_whole(folder / TEMPLATE, tokenizer.template.saved().encode())
        write_sums(folder, [file.name for file in folder.iterdir() if file.is_file() and file.name != SUMS])


def save_model(
    folder: storage.Path,
    params: Params,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    scalar: bool,
    meta: dict[str, Any],
    own_template: bool = False,
) -> None:
    """Leaves a model for `find_model`."""
    save_tokenizer(folder, tokenizer, own_template=own_template)
    own = {"model": dataclasses.asdict(config), "scalar": scalar, "weights": "params"}
    save_params(folder, params, meta | own)


def describe_changes(saved: ModelConfig, now: ModelConfig) -> list[str]:
    """What a run changes of the model that it starts from, a line each: a larger vocabulary, a longer context."""
    lines = []
    if now.vocab_size != saved.vocab_size:
        lines.append(
            f"{now.vocab_size - saved.vocab_size} tokens are new to the model (config.model.vocab_size="
            f"{now.vocab_size}): their rows begin as the mean of the others"
        )
    if now.max_length != saved.max_length:
        lines.append(
            f"the model was made for {saved.max_length} tokens, and is trained and exported for "
            f"config.model.max_length={now.max_length}"
        )
    scaling = [key for key in SCALING_KEYS if getattr(now, key) != getattr(saved, key)]
    if scaling:
        values = (f"{key}={getattr(now, key)!r} (was {getattr(saved, key)!r})" for key in scaling)
        lines.append(f"the model's rotary positions are changed: {', '.join(values)}")
    return lines


def check_length(model: ModelConfig, length: int, asked: str, key: str = "config.model.init_from") -> None:
    """Raises ConfigError unless a model reads sequences of `length` tokens; see `ModelConfig.max_length`.

    Args:
      asked: the settings that make sequences so long, as the beginning of a sentence: "config.x=3 makes".
      key: where the model is named.
    """
    if length <= model.max_length:
        return
    way = ""
    if model.positions == "learned":
        reason = f"the position table of the model in {key} ends at {model.max_length}"
    else:
        reason = (
            f"the model in {key} was made for {model.max_length}, and what serves it refuses to read further"
        )
        if key.startswith("config.model"):
            way = (
                f", or set config.model.max_length={length} to train and export it for that length (where it is much "
                "longer, with config.model.rope_scaling='yarn', rope_factor and rope_original_length)"
            )
    raise ConfigError(f"{asked} sequences of up to {length} tokens, but {reason}; lower that{way}")


def check_vocabulary(config: ModelConfig, tokenizer: Tokenizer, where: str, *, started: bool = False) -> None:
    """Raises ConfigError unless the model has a row for each piece, and with a tokenizer made here no more.

    Args:
      started: it is a trained one, which can be given more rows.
    """
    padded = isinstance(tokenizer, HFTokenizer)  # models of others round their tables up
    if config.vocab_size < tokenizer.vocab_size and started:
        raise ConfigError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} pieces, but the model in config.model.init_from has "
            f"vocab_size={config.vocab_size}; use the tokenizer that it was trained with, or set "
            f"config.model.vocab_size={tokenizer.vocab_size} to give it rows for the new ones"
        )
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
        # Formats differ in how they write white space at the ends, and control tokens and the unknown one at all.
        mine, theirs = (x.decode([number]).strip() for x in (tokenizer, own))
        if mine != theirs and mine and theirs:
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
