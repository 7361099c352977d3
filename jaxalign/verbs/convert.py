"""`jaxalign convert`: runs to Hugging Face folders, and back."""

import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import jax

from jaxalign import parallel
from jaxalign.checksums import write_sums
from jaxalign.data import Tokenizer
from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.models.hf.config import architecture_for, architecture_of, classifier_of, config_to_hf
from jaxalign.models.hf.exporter import write_folder
from jaxalign.models.hf.importer import CONFIG, HEAD_BIAS, SIDE_NOTE
from jaxalign.signals import handled, restart_signals
from jaxalign.storage import Path, is_remote, naming, sync, temporary_folder, to_path, upload
from jaxalign.streams import say
from jaxalign.text.fast_tokenizer import write_fast_tokenizer
from jaxalign.text.tokenizer import SentencePieceTokenizer
from jaxalign.training.saved_model import HF_CONFIG, HF_DTYPE, SavedModel, find_model, origin, save_model
from jaxalign.verbs.padding import set_padding
from jaxalign.verbs.requests import Request, flag
from jaxalign.verbs.rounding import Rounding
from jaxalign.verbs.sampling import MODEL

GENERATION = "generation_config.json"
DTYPES = ("float32", "bfloat16", "float16")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclasses.dataclass(frozen=True)
class ConvertRequest(Request):
    """Write a model in Hugging Face's format, or from it.

    jaxalign convert --from=runs/dpo --out=runs/dpo-hf --to=hf
    """

    from_: str = flag(MODEL, show="SRC")
    out: str = flag("the folder to write; must not exist, or be empty", show="DIR")
    to: str = flag(
        "hf, or jaxalign, whose parameters are float32 always", choices=("hf", "jaxalign"), show="FORMAT"
    )
    dtype: str = flag(
        "float32, bfloat16 or float16, of the tensors (default: as the model came, else float32)",
        default="",
        show="DTYPE",
    )
    max_shard_size: str = flag("of a safetensors file", default="5GB", show="SIZE")
    architecture: str = flag(
        "of config.json (default: as the model came, else the first that can express it)", default=""
    )


def run(request: ConvertRequest) -> int:
    """Writes the folder, and prints what somebody should know of it."""
    # Nothing is computed, and accelerators may be busy.
    jax.config.update("jax_platforms", "cpu")
    for notice in convert(request):
        say(notice)
    print(f"{request.out}: written")
    return 0


def convert(request: ConvertRequest) -> list[str]:
    """Writes a model to a new folder.

    Returns:
      What somebody should know of the result, a line each.

    Raises:
      ConfigError: a flag that cannot work, or a model that no Hugging Face architecture expresses.
      CheckpointError: the source is missing or damaged.
    """
    to, dtype, architecture = request.to, request.dtype, request.architecture
    limit = _bytes(request.max_shard_size)
    if dtype and (to != "hf" or dtype not in DTYPES):
        raise ConfigError(f"--dtype={dtype}: write one of {', '.join(DTYPES)}, with --to=hf only")
    if architecture and to != "hf":
        raise ConfigError(f"--architecture={architecture} goes with --to=hf only; leave it out")
    target = to_path(request.out)
    _check_free(target)
    while True:
        model = find_model(request.from_, "--from")
        try:
            return _convert_to(target, model, to, dtype, limit, architecture)
        except CheckpointError:
            # A run that goes on may have removed what was read: then there is a newer checkpoint.
            if model.newer() is None:
                raise


def _convert_to(
    target: Path, model: SavedModel, to: str, dtype: str, limit: int, architecture: str
) -> list[str]:
    tokenizer = model.tokenizer()
    mesh = parallel.make_mesh(devices=jax.devices("cpu")[:1])
    with parallel.use_mesh(mesh), _new_folder(target) as folder:
        if to == "hf":
            return _write_hf(model, tokenizer, folder, dtype, limit, architecture)
        # On an object store Orbax marks what is complete, so it has to write there itself.
        place = target if is_remote(target) else folder
        save_model(place, model.load(mesh), model.config, tokenizer, scalar=model.scalar, meta=origin(model))
        return []


def _write_hf(
    model: SavedModel, tokenizer: Tokenizer, folder: pathlib.Path, dtype: str, limit: int, architecture: str
) -> list[str]:
    original = model.meta.get(HF_CONFIG)
    name = architecture or (architecture_of(original, CONFIG) if original else architecture_for(model.config))
    name = classifier_of(name) if model.scalar else name
    dtype = dtype or model.meta.get(HF_DTYPE, "float32")
    values = config_to_hf(model.config, name, original)
    config = _config_json(model, tokenizer, values, dtype)
    read = model.leaf_reader(jax.sharding.get_mesh())
    rounding = Rounding(model, dtype)
    write_folder(
        folder,
        rounding.watch(read),
        model.config,
        name,
        scalar=model.scalar,
        dtype=dtype,
        max_shard_size=limit,
    )
    notices = _write_tokenizer(model, tokenizer, folder) + rounding.notices()
    if model.scalar:
        config, notice = set_padding(folder, config, tokenizer, model.config.vocab_size)
        notices += [notice] if notice else []
    _write_json(folder / CONFIG, config)
    if model.scalar and (bias := float(read(("head", "bias")))):
        _write_json(folder / SIDE_NOTE, {HEAD_BIAS: bias})
        notices.append(
            f"the reward head's bias {bias:.6g} has no place in this format: other programs' scores are lower "
            f"by it, in the same order; {SIDE_NOTE} keeps it for jaxalign"
        )
    write_sums(folder, [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()])
    return notices


def _config_json(
    model: SavedModel,
    tokenizer: Tokenizer,
    values: dict[str, Any],
    dtype: str,
) -> dict[str, Any]:
    values = {
        key: value for key, value in values.items() if key != "auto_map"
    }  # names code that stays behind
    if HF_CONFIG not in model.meta:
        values |= _special_ids(tokenizer) | {"eos_token_id": tokenizer.eos_ids[0], "torch_dtype": dtype}
    for key in ("torch_dtype", "dtype"):
        if key in values:
            values[key] = dtype
    return values


def _write_tokenizer(model: SavedModel, tokenizer: Tokenizer, folder: pathlib.Path) -> list[str]:
    tokenizer.save(folder)
    if not (folder / GENERATION).exists():
        _write_json(folder / GENERATION, _special_ids(tokenizer))
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return []
    reason = write_fast_tokenizer(folder, model.config.max_length)
    return [] if reason is None else [f"tokenizer.model is there, but no tokenizer.json: {reason}"]


def _special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": list(tokenizer.eos_ids),
        "pad_token_id": tokenizer.pad_id,
    }


def _write_json(file: pathlib.Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _bytes(size: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([KMG]B)", size.upper())
    if match is None or not int(match[1]):
        raise ConfigError(f"--max-shard-size={size}: write a number of KB, MB or GB, such as 5GB")
    return int(match[1]) * _UNITS[match[2]]


def _check_free(target: Path) -> None:
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConfigError(f"--out={target} exists and is not an empty folder; name a new one")


def _leave(number: int, frame: Any) -> None:
    """Ends the process as the signal would, once what is half-written is removed."""
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _new_folder(target: Path) -> Iterator[pathlib.Path]:
    """A local folder that becomes `target` when all went well, and vanishes otherwise."""
    if not isinstance(target, pathlib.Path):
        folder = temporary_folder()
        yield folder
        upload(folder, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = temporary_folder(beside=target)
    try:
        with handled(restart_signals(), _leave), naming(target):
            yield folder
        for place in (*folder.rglob("*"), folder):
            sync(place)
        _check_free(target)
        folder.replace(target)
        sync(target.parent)
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)
