"""Every family against transformers itself: logits, greedy generation and scores of small random models.

Each peer is saved by transformers and read from its files, so config.json and names are those of a checkpoint.
"""

import functools
import json
import warnings

import jax
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.models import hidden_states, scalar_head, unembedding
from jaxalign.models.hf import architecture_of, config_from_hf, config_to_hf, is_scalar
from jaxalign.sampling.generate import SamplingConfig, generate

from .hf_state import load_state, save_state

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from safetensors.numpy import load_file, save_file

LENGTH, WINDOW, NEW_TOKENS = 24, 5, 64
COMMON = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
NEOX = {"intermediate_size": 40, "rotary_pct": 0.5, "rotary_emb_base": 500}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 48,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24, "beta_fast": 6.0}
GEMMA3 = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "sliding_window": WINDOW,
    "sliding_window_pattern": 3,
    "rope_theta": 5000.0,
    "rope_local_base_freq": 100.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "query_pre_attn_scalar": 24,
}
BIASED = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
CASES = {
    "llama": ("llama", {"rope_scaling": LLAMA3, "rope_theta": 500.0}),
    "llama-linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}, **BIASED}),
    "llama-yarn": ("llama", {"rope_scaling": YARN, "head_dim": 16}),
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "qwen2": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 2,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma": ("gemma", {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 24,
        },
    ),
    "gemma3": ("gemma3_text", GEMMA3),
    "phi3": ("phi3", {"partial_rotary_factor": 0.5, "sliding_window": WINDOW}),
    # Sequences are of 24 tokens, and so longer than the original context.
    "phi3-longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 16,
            "rope_scaling": {
                "rope_type": "longrope",
                "short_factor": [1.0, 1.2, 1.5, 2.0],
                "long_factor": [1.1, 2.0, 3.0, 6.0],
            },
        },
    ),
    "olmo2": ("olmo2", {"rope_theta": 500.0}),
    "gpt2": ("gpt2", {"num_hidden_layers": 2}),
    "gpt_neox": ("gpt_neox", NEOX),
    "gpt_neox-sequential": ("gpt_neox", {**NEOX, "use_parallel_residual": False, "attention_bias": False}),
    "opt": ("opt", {"ffn_dim": 48}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW}),
    "qwen3_moe": (
        "qwen3_moe",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
}
FAST = ("llama", "qwen3", "gemma3")
families = pytest.mark.parametrize(
    "case", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)


def quiet(function):
    """transformers and torch warn of many things that are not ours to mend."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return function(*args, **kwargs)

    return wrapped


@functools.cache
@quiet
def peer_of(case: str, kind: str = "CausalLM"):
    """A random model of transformers in which no bias is 0 and no norm's weight is as it was."""
    model_type, own = CASES[case]
    labels = {"num_labels": 1} if kind == "SequenceClassification" else {}
    default = transformers.AutoConfig.for_model(model_type)
    common = {key: value for key, value in COMMON.items() if hasattr(default, key)}
    config = transformers.AutoConfig.for_model(model_type, **{**common, **own, **labels})
    maker = getattr(transformers, f"AutoModelFor{kind}")
    peer = maker.from_config(config, attn_implementation="eager").eval().float()
    generator = torch.Generator().manual_seed(len(case))
    for name, x in peer.named_parameters():
        std = 0.3 if "norm" in name or x.ndim == 1 else 0.2
        mean = float(x.mean().round()) if "norm" in name and "weight" in name else 0.0
        x.copy_(mean + std * torch.randn(x.shape, generator=generator))
    return peer


@quiet
def from_files(peer, folder):
    """Our config and parameters, and the parsed config.json, from the files that transformers writes."""
    peer.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    architecture = architecture_of(values, "config.json")
    config = config_from_hf(values, "config.json")
    state = load_file(folder / "model.safetensors")
    return config, load_state(state, architecture, config, scalar=is_scalar(architecture)), values


@quiet
def ask(peer, tokens, mask=None, positions=None):
    """Their logits, or scores, from int [B, T]."""
    mask = np.ones_like(tokens) if mask is None else mask
    positions = np.maximum(mask.cumsum(1) - 1, 0) if positions is None else positions
    given = (torch.tensor(x).long() for x in (tokens, mask, positions))
    names = ("input_ids", "attention_mask", "position_ids")
    return peer(**dict(zip(names, given, strict=True)), use_cache=False).logits.numpy()


apply = jax.jit(hidden_states, static_argnames="config")


def logits_of(params, config, batch):
    hidden = np.asarray(apply(params, config, *batch)[0])
    logits = hidden @ np.asarray(unembedding(params, config)).T
    cap = config.final_softcap
    return cap * np.tanh(logits / cap) if cap else logits


def row(parts, lead=0):
    """One row of ours: `lead` padding tokens, then sequences of tokens as segments 1, 2, ..."""
    row = np.zeros((3, LENGTH), np.int32)
    start = lead
    for number, part in enumerate(parts, 1):
        at = slice(start, start := start + len(part))
        row[:, at] = part, np.arange(len(part)), np.full(len(part), number)
    return row


def sequences(*lengths):
    rng = np.random.default_rng(1)
    return [rng.integers(1, COMMON["vocab_size"], n) for n in lengths]


@families
def test_logits_plain_padded_and_packed(case, tmp_path):
    peer = peer_of(case)
    config, params, _ = from_files(peer, tmp_path)
    whole, other, a, b = sequences(LENGTH, LENGTH, 10, 13)
    rows = [row([whole]), row([other]), row([a], LENGTH - 10), row([b], LENGTH - 13), row([a, b])]
    batch = np.stack(rows).swapaxes(0, 1)
    got = logits_of(params, config, batch)

    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(got[:2], ask(peer, np.stack([whole, other])), err_msg="plain")
    padded, real = batch[0][2:4], batch[2][2:4] > 0
    close(got[2:4][real], ask(peer, padded, real.astype(int))[real], err_msg="padded on the left")
    close(got[4][:10], ask(peer, a[None])[0], err_msg="packed, first")
    close(got[4][10:23], ask(peer, b[None])[0], err_msg="packed, second")


@pytest.mark.slow
@families
def test_greedy_generation_is_identical(case, tmp_path):
    peer = peer_of(case)
    config, params, _ = from_files(peer, tmp_path)
    prompts = np.stack([row([p], LENGTH - len(p))[:, -9:] for p in sequences(9, 6)]).swapaxes(0, 1)
    sampling = SamplingConfig(max_new_tokens=NEW_TOKENS, temperature=0.0)
    if (
        config.rope_scaling == "longrope"
    ):  # of which transformers reads everything again past the original context
        with pytest.raises(
            ConfigError, match=r"needs 73 positions, but .* config\.model\.rope_original_length=16"
        ):
            generate(params, config, *prompts, jax.random.key(0), sampling=sampling, stop_ids=())
        return
    ours = generate(params, config, *prompts, jax.random.key(0), sampling=sampling, stop_ids=())
    theirs = quiet(peer.generate)(
        torch.tensor(prompts[0]).long(),
        attention_mask=torch.tensor(prompts[2]).long(),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        pad_token_id=0,
    )
    np.testing.assert_array_equal(ours.tokens, theirs.numpy()[:, 9:])
    assert len(np.unique(ours.tokens)) > 3


@families
def test_scores_of_a_sequence_classifier(case, tmp_path):
    peer = peer_of(case, "SequenceClassification")
    config, params, _ = from_files(peer, tmp_path)
    parts = sequences(LENGTH, 11, 6)
    batch = np.stack([row([part]) for part in parts]).swapaxes(0, 1)
    hidden, _ = apply(params["transformer"], config, *batch)
    got = scalar_head(params["head"], hidden)
    want = [ask(peer, part[None])[0, 0] for part in parts]
    last = [len(part) - 1 for part in parts]
    np.testing.assert_allclose(got[np.arange(3), last], want, rtol=0, atol=1e-5)


@families
def test_back_to_transformers(case, tmp_path):
    """What we write, without an original config.json to lean on, is the same model in transformers."""
    peer = peer_of(case)
    config, params, values = from_files(peer, tmp_path)
    architecture = values["architectures"][0]
    state = save_state(params, architecture, config)
    for name, x in load_file(tmp_path / "model.safetensors").items():
        np.testing.assert_array_equal(state[name], x, err_msg=name)

    ours = tmp_path / "ours"
    ours.mkdir()
    save_file(state, ours / "model.safetensors", {"format": "pt"})
    (ours / "config.json").write_text(json.dumps(config_to_hf(config, architecture)))
    load = quiet(transformers.AutoModelForCausalLM.from_pretrained)
    again = load(ours, attn_implementation="eager", dtype=torch.float32).eval()
    tokens = np.stack(sequences(LENGTH, LENGTH))
    np.testing.assert_array_equal(ask(again, tokens), ask(peer, tokens))
