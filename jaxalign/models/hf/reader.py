"""Reads a config.json so that no key which changes what a model computes can go unread."""

from collections.abc import Mapping
from typing import Any

from jaxalign.errors import ConfigError, shorten

# Keys that say nothing of the function: names, files, generation, labels, training, how it is computed.
HARMLESS = frozenset(
    """
    architectures model_type _name_or_path name_or_path transformers_version auto_map torch_dtype
    dtype use_cache pad_token_id bos_token_id eos_token_id sep_token_id unk_token_id
    cls_token_id mask_token_id decoder_start_token_id
    id2label label2id num_labels problem_type finetuning_task task_specific_params tokenizer_class prefix
    output_attentions output_hidden_states return_dict use_return_dict chunk_size_feed_forward
    tie_last_hidden_states attention_dropout hidden_dropout classifier_dropout resid_pdrop embd_pdrop attn_pdrop
    n_ctx dropout activation_dropout layerdrop summary_type summary_use_proj summary_activation
    summary_proj_to_labels summary_first_dropout classifier_proj_size
    attn_implementation experts_implementation cache_implementation pretraining_tp gradient_checkpointing
    use_memory_efficient_attention use_flash_attention reorder_and_upcast_attn
    output_router_logits router_jitter_noise
    temperature top_k top_p typical_p min_length max_length max_new_tokens do_sample num_beams num_beam_groups
    diversity_penalty early_stopping repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores return_dict_in_generate
    forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
    suppress_tokens begin_suppress_tokens use_bfloat16 torchscript tf_legacy_loss
    """.split()
)
_ADVICE = {
    "quantization_config": "load it in transformers, dequantize it and save it again",
    "use_bidirectional_attention": "models here are causal",
    "is_causal": "models here are causal",
}
_MISSING = object()


class Reader:
    """The values of one config.json, and which of them have been read.

    Args:
      values: the parsed file.
      where: its name, for messages.
      family: who reads, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str, family: str) -> None:
        self.values, self.where, self.family = values, where, family
        self._taken: dict[str, Any] = dict.fromkeys(HARMLESS)

    def take(self, key: str, default: Any, *, null: Any = _MISSING) -> Any:
        """The value of `key`; `default` where it is missing, `null` where it is null.

        Raises:
          ConfigError: null without a meaning, or a value that is not of the type of `default` (else of `null`).
        """
        value = self.values.get(key, default)
        if value is None:
            if null is _MISSING:
                raise self.error(key, "must not be null")
            value = null
        kind = type(default if default is not None else null)
        if kind is float and type(value) is int:
            try:
                value = float(value)
            except OverflowError:
                raise self.error(key, "is larger than any number of that kind") from None
        if value is not null and kind not in (type(None), type(value)):
            raise self.error(key, f"must be of type {kind.__name__}")
        self._taken[key] = value
        return value

    def taken(self, key: str) -> Any:
        """What `take` gave for `key`."""
        return self._taken[key]

    def only(self, key: str, *accepted: Any) -> None:
        """Raises ConfigError unless `key` is missing, null, or has one of the `accepted` values."""
        value = self._taken[key] = self.values.get(key)
        if value is not None and value not in accepted:
            raise self.error(key, f"is not supported; {self._way_out(key, accepted)}")

    def finish(self) -> None:
        """Raises ConfigError for a key that nobody has read, unless it is null, false or empty: not in use.

        A leading underscore marks transformers' own notes, which its models restate under a public name.
        """
        for key, value in self.values.items():
            if key not in self._taken and not key.startswith("_") and value not in (None, False, [], {}, 0):
                raise self.error(
                    key,
                    f"is not known to the family {self.family}; "
                    + _ADVICE.get(
                        key, "if it does not change what the model computes, remove it from the file"
                    ),
                )

    def error(self, key: str, text: str) -> ConfigError:
        """A ConfigError about the value of `key`."""
        value = self.values.get(key)
        return ConfigError(f"{self.where}: {key}={shorten(value)} {text}")

    def _way_out(self, key: str, accepted: tuple[Any, ...]) -> str:
        options = " or ".join(repr(value) for value in accepted)
        return _ADVICE.get(key, f"the family {self.family} is known here with {options or 'null'} only")
