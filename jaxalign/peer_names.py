"""A key that does not exist, and the one that was meant: misspelt, in another section, or by another codebase's name.

`PEERS` has the names of TRL and transformers, MaxText, Tunix, verl and OpenRLHF for what has a key here.
"""

import dataclasses
import difflib
from collections.abc import Callable, Sequence

from jaxalign.fields import nearest

_CLOSE = 0.8  # how like the name of a section a word must be, from 0 to 1
STAGE = "STAGE"  # stands for the name of the config's stage


@dataclasses.dataclass(frozen=True)
class Peer:
    """What another codebase's key is here."""

    # Below config; the first that the config at hand has. STAGE begins a key of the stage itself.
    keys: tuple[str, ...] = ()
    # The value there -> the value here; "" where only the reader can say.
    convert: Callable[[str], str] = str
    note: str = ""  # what is different, or in place of a key


def _row(
    names: str, keys: str, note: str = "", *, values: str = "", same: bool = True
) -> tuple[list[str], Peer]:
    """Names there and the keys that they are here, each parted by spaces.

    Args:
      values: what becomes of which value, "true=full false=none"; what stays may stand alone. Of any other, the reader
        must say. "=full" is of a flag without a value.
      same: without `values`, whether the value may be kept.
    """
    pairs = (word.partition("=") for word in values.split())
    known = {there: here if equals else there for there, equals, here in pairs}

    def convert(text: str) -> str:
        if values:
            return known.get(text.lower(), "")
        return text if same else ""

    return names.split(), Peer(tuple(keys.split()), convert, note)


_ROWS = "config.batch_size counts the rows of an update over all devices and slices: per device x devices x accumulated"
_LENGTH = "of one sequence; config.data.row_length, of a packed row, must be at least as long"

# fmt: off
ROWS = (
    # --- Steps ---
    _row("per_device_train_batch_size per_device_batch_size", "batch_size", _ROWS, same=False),
    _row("train_batch_size global_batch_size total_batch_size train_batch rollout_batch_size",
         "batch_size", _ROWS),
    _row("per_device_eval_batch_size", "eval_batch_size", "over all devices", same=False),
    _row("micro_batch_size micro_train_batch_size",
         "batch_size", f"{_ROWS}; config.num_microbatches cuts it", same=False),
    _row("gradient_accumulation_steps gradient_accumulation accumulate_grad_batches grad_accum_steps",
         "num_microbatches", _ROWS),
    _row("max_steps steps num_train_steps total_steps train_steps max_iters num_batches", "num_steps"),
    _row("num_train_epochs epochs num_epoch max_epochs total_epochs", "num_epochs"),
    _row("save_steps save_interval save_every checkpoint_period checkpoint_steps save_interval_steps",
         "checkpoint_every"),
    _row("save_strategy", "checkpoint_every", "a number of steps", same=False),
    _row("save_total_limit max_to_keep max_ckpt_num", "keep_checkpoints"),
    _row("eval_steps eval_interval evaluate_every eval_every_n_steps test_freq", "eval_every"),
    _row("eval_strategy evaluation_strategy do_eval",
         "eval_every", "a number of steps; 0: at the end", same=False),
    _row("eval_on_start eval_before_train val_before_train", "eval_at_start"),
    _row("metric_for_best_model monitor", "best.metric"),
    _row("greater_is_better", "best.mode", values="true=max false=min"),
    _row("early_stopping_patience", "best.patience"),
    _row("load_best_model_at_end", "best.export"),
    _row("keep_period save_period", "keep_every"),
    _row("logging_steps log_period log_interval log_steps log_freq", "log_every"),
    _row("ddp_timeout", "hang_timeout"),
    # --- Optimizer ---
    _row("lr actor_lr actor_learning_rate peak_lr max_lr", "optimizer.learning_rate"),
    _row("critic_lr", "STAGE.critic_learning_rate"),
    _row("warmup_ratio warmup_steps_fraction lr_warmup_ratio", "optimizer.warmup"),
    _row("num_warmup_steps warmup_iters lr_warmup_steps", "optimizer.warmup_steps"),
    _row("lr_scheduler_type lr_scheduler scheduler lr_schedule lr_schedule_type",
         "optimizer.schedule",
         values="cosine linear constant constant_with_warmup=constant inverse_sqrt warmup_stable_decay=wsd wsd"),
    _row("min_lr_ratio learning_rate_final_fraction cosine_learning_rate_final_fraction",
         "optimizer.final_ratio"),
    _row("optim opt_type optimizer_type optimizer_name",
         "optimizer.name",
         values="adamw adam=adamw adamw_torch=adamw adamw_torch_fused=adamw adafactor lion rmsprop"),
    _row("adam_beta1 adam_b1 beta1", "optimizer.b1"),
    _row("adam_beta2 adam_b2 beta2", "optimizer.b2"),
    _row("adam_epsilon adam_eps", "optimizer.eps"),
    _row("adam_weight_decay wd", "optimizer.weight_decay"),
    _row("max_grad_norm max_norm grad_clip gradient_clip_val gradient_clipping_threshold clip_grad",
         "optimizer.clip_norm"),
    # --- Model and precision ---
    _row("bf16", "model.dtype", values="=bfloat16 true=bfloat16 false=float32"),
    _row("fp16", "model.dtype", values="=float16 true=float16 false=float32"),
    _row("torch_dtype precision model_dtype mixed_precision",
         "model.dtype",
         "of the computation; master weights are always float32",
         values="bfloat16 torch.bfloat16=bfloat16 bf16=bfloat16 bf16-mixed=bfloat16 float16 torch.float16=float16 "
         "fp16=float16 float32 torch.float32=float32 fp32=float32"),
    _row("model_name_or_path model_name model_id model_path base_model pretrain hf_model "
         "pretrained_model_name_or_path load_parameters_path sft_model_path policy_model",
         "model.init_from"),
    _row("gradient_checkpointing activation_checkpointing use_remat enable_gradient_checkpointing",
         "model.remat", values="=full true=full false=none"),
    _row("remat_policy", "model.remat", values="full minimal=dots_no_batch none"),
    _row("attn_implementation attention_kernel use_flash_attention_2 flash_attn use_flash_attention",
         "model.attention", "'auto' takes the best kernel of the device", same=False),
    _row("hidden_size d_model n_embd base_emb_dim emb_dim", "model.embed_dim"),
    _row("num_hidden_layers n_layer n_layers base_num_decoder_layers num_decoder_layers", "model.num_layers"),
    _row("num_attention_heads n_head n_heads base_num_query_heads num_query_heads", "model.num_heads"),
    _row("num_key_value_heads n_kv_heads base_num_kv_heads", "model.num_kv_heads"),
    _row("intermediate_size d_ff base_mlp_dim ffn_dim", "model.mlp_dim"),
    _row("max_position_embeddings n_positions", "model.max_length"),
    _row("rms_norm_eps layer_norm_eps normalization_layer_epsilon", "model.norm_eps"),
    _row("tie_word_embeddings logits_via_embedding", "model.tie_embeddings"),
    _row("sliding_window sliding_window_size", "model.window"),
    _row("num_experts_per_tok", "model.experts_per_token"),
    _row("hidden_act", "model.activation"),
    _row("rope_max_timescale", "model.rope_theta"),
    _row("router_aux_loss_coef", "model.router_balance_coef"),
    _row("attn_logit_softcapping", "model.attention_softcap"),
    _row("final_logit_softcapping final_logits_soft_cap", "model.final_softcap"),
    # --- Data ---
    _row("dataset_name dataset_path dataset dataset_dir hf_path hf_train_files grain_train_files train_file "
         "train_files train_data data_path data_files prompt_data datasets",
         "data.train"),
    _row("eval_dataset eval_file eval_data validation_file val_files hf_eval_files", "data.eval"),
    _row("dataset_train_split train_split dataset_split hf_train_split", "data.split"),
    _row("test_size val_size val_split validation_split_percentage", "data.eval_fraction"),
    _row("max_train_samples max_samples num_train_samples", "data.take"),
    _row("dataset_streaming", "data.streaming"),
    _row("buffer_size shuffle_buffer_size streaming_buffer_size", "data.stream_buffer"),
    _row("dataset_weights interleave_probs dataset_probabilities", "data.weights"),
    _row("tokenizer_path tokenizer_name tokenizer_name_or_path tokenizer_type", "data.tokenizer"),
    _row("chat_template_path", "data.chat_template"),
    _row("max_seq_length max_seq_len seq_length seq_len max_target_length block_size cutoff_len "
         "context_length model_max_length max_len sequence_length",
         "data.max_length", _LENGTH),
    _row("max_prompt_length prompt_max_len max_prefill_predict_length",
         "data.max_length", "of a prompt in stages that sample, and of prompt and answer in all others"),
    _row("pack sample_packing use_packing packing_strategy", "data.packing", same=False),
    _row("data_seed data_shuffle_seed init_weights_seed", "seed"),
    # --- Mesh ---
    _row("ici_fsdp_parallelism fsdp_size fsdp_parallelism", "mesh.fsdp"),
    _row("ici_data_parallelism data_parallel_size dp_size", "mesh.data"),
    _row("ici_tensor_parallelism tensor_parallel_size tp_size tp model_parallel_size", "mesh.tensor"),
    _row("ici_context_parallelism context_parallel_size cp_size ici_sequence_parallelism ring_attn_size",
         "mesh.context"),
    _row("ici_expert_parallelism expert_parallel_size ep_size", "mesh.expert"),
    _row("dcn_data_parallelism dcn_fsdp_parallelism num_slices",
         "mesh.slice_axis",
         "the axis that crosses slices; its size is that axis's own, over all slices", same=False),
    _row("deepspeed",
         "mesh.fsdp", "the batch, parameters and optimizer state are split (ZeRO-3)", same=False),
    # --- What models that are not trained are ---
    _row("load_in_8bit ref_model_dtype", "frozen.dtype", "of models that are not trained", same=False),
    # --- Losses ---
    _row("beta", "STAGE.kl_coef STAGE.coef"),
    _row("kl_coef init_kl_coef kl_coeff kl_penalty_coef kl_loss_coef kl_beta grpo_beta dpo_beta",
         "STAGE.kl_coef STAGE.beta"),
    _row("orpo_alpha", "STAGE.coef"),
    _row("loss_type loss_fn dpo_loss_type",
         "STAGE.variant STAGE.divergence STAGE.loss_type",
         values="sigmoid hinge ipo robust ipo_mean kto apo_zero_unpaired grpo dapo bnpo dr_grpo"),
    _row("loss_agg_mode", "STAGE.loss_type", same=False),
    _row("scale_rewards norm_adv_by_std_in_grpo", "STAGE.scale", same=False),
    _row("importance_sampling_level", "STAGE.importance", values="token sequence=sequence_mean"),
    _row("mask_truncated_completions", "STAGE.mask_overlong"),
    _row("precompute_ref_log_probs precompute_ref_logps", "STAGE.precompute_reference"),
    _row("rpo_alpha sft_coef sft_weight", "STAGE.nll_coef"),
    _row("simpo_gamma gamma_beta_ratio", "STAGE.target_margin", "beta times the ratio", same=False),
    _row("center_rewards_coefficient", "STAGE.centering"),
    _row("cliprange clip_range epsilon clip_eps eps_clip", "STAGE.clip"),
    _row("epsilon_high clip_ratio_high eps_clip_high", "STAGE.clip_high"),
    _row("cliprange_value clip_range_vf value_clip_range", "STAGE.value_clip"),
    _row("vf_coef value_loss_coef",
         "STAGE.critic_learning_rate", "the critic is a model of its own with a rate of its own", same=False),
    _row("ent_coef entropy_coeff entropy_loss_coef", "STAGE.entropy_coef"),
    _row("gae_lambda gae_lam lambd", "STAGE.lam"),
    _row("cliprange_reward", "STAGE.reward_clip"),
    _row("target_kl kl_horizon_target", "STAGE.kl_target"),
    # --- Sampling and rewards ---
    _row("max_completion_length response_length max_response_length generate_max_len total_generation_steps "
         "max_tokens_to_generate max_tokens generation_max_length",
         "STAGE.sampling.max_new_tokens"),
    _row("num_generations n_samples_per_prompt num_samples_per_prompt rloo_k rollout_n num_samples",
         "STAGE.group_size"),
    _row("num_ppo_epochs ppo_epoch update_epochs", "STAGE.ppo_epochs STAGE.num_iterations"),
    _row("num_mini_batches ppo_num_mini_batches", "STAGE.num_minibatches"),
    _row("reward_model reward_model_path reward_pretrain rm_path", "STAGE.reward"),
    _row("reward_function reward_funcs reward_fn custom_reward_function", "STAGE.reward"),
    _row("stop_token_penalty non_eos_penalty", "STAGE.missing_eos_penalty"),
    _row("ref_model_mixup_alpha",
         "STAGE.reference_rate", "the share by which the reference moves a rollout", same=False),
    _row("teacher_model_name_or_path teacher_model", "STAGE.teacher"),
    # --- What needs no key ---
    _row("output_dir base_output_directory save_path checkpoint_dir default_local_dir run_name",
         "", "the folder of a run is --workdir=DIR"),
    _row("resume_from_checkpoint resume overwrite_output_dir",
         "", "the same command goes on from the latest checkpoint in --workdir"),
    _row("report_to use_wandb wandb_project logging_dir logger tensorboard_dir",
         "", "every run writes metrics.jsonl and TensorBoard events in --workdir"),
    _row("push_to_hub hub_model_id save_safetensors",
         "", "`jaxalign convert` writes a run's model in Hugging Face's format"),
    _row("use_peft use_lora lora_r lora_rank lora_alpha peft_config load_in_4bit",
         "", "all weights are trained: there are no adapters here"),
    _row("completion_only_loss assistant_only_loss train_on_inputs",
         "", "the loss is on completions and assistants' turns, and of rows of text on all"),
    _row("dataloader_num_workers dataset_num_proc preprocessing_num_workers remove_unused_columns",
         "", "nothing is to be set: drop it"),
    _row("use_vllm vllm_mode vllm_gpu_memory_utilization",
         "", "the model that is trained samples itself: drop it"),
    _row("ref_model ref_model_path reference_model",
         "", "the reference is the model that training starts from, config.model.init_from"),
)
# fmt: on
PEERS: dict[str, Peer] = {name: peer for names, peer in ROWS for name in names}


def suggest(
    path: str, value: str | None, keys: Sequence[str], stage: str = "", prefix: str = "config."
) -> str:
    """What to write in place of a key that does not exist, as the end of an error.

    Args:
      path: the key as it was given, below config: "optimizer.lr".
      value: the value as it was given; None where there is none to speak of.
      keys: all that exist, below config.
      stage: the name of the config's stage.
      prefix: what a key begins with where the reader wrote it: "--config." of a flag.
    """
    asked = path.replace("-", "_")
    section, _, leaf = asked.rpartition(".")
    by_lower = {key.lower(): key for key in keys}
    if asked.lower() in by_lower:
        return _meant([by_lower[asked.lower()]], value, prefix)
    if found := [key for key in keys if key.rpartition(".")[2].lower() == leaf.lower()]:
        return _meant(_near_first(found, section), value, prefix)
    if leaf.lower() in PEERS:
        return _peer_meant(PEERS[leaf.lower()], value, keys, stage, prefix)
    here = [key for key in keys if key.rpartition(".")[0] == section]
    near = nearest(leaf, [key.rpartition(".")[2] for key in here])
    if near:
        return _meant([f"{section}.{near}" if section else near], value, prefix)
    sections = sorted({key.rpartition(".")[0] for key in keys} - {""})
    if near := difflib.get_close_matches(asked, sections, 1, _CLOSE):
        return _meant(near, None, prefix)
    leaves = [key.rpartition(".")[2] for key in keys]
    near = nearest(leaf, [*leaves, *PEERS])
    if near in leaves:
        return _meant(
            _near_first([key for key in keys if key.rpartition(".")[2] == near], section), value, prefix
        )
    if near:
        return _peer_meant(PEERS[near], value, keys, stage, prefix)
    if here and section:
        return _listed(section, keys)
    return "`jaxalign train --config=... --print-config` shows all keys"


def is_known(path: str, keys: Sequence[str]) -> bool:
    """Whether the last part of `path` is the name of a key in some section, or another codebase's name of one."""
    leaf = path.replace("-", "_").rpartition(".")[2].lower()
    return leaf in PEERS or leaf in {key.rpartition(".")[2].lower() for key in keys}


def _near_first(found: list[str], section: str) -> list[str]:
    """Keys of one name, those of a section like the given one first, and of few parts."""
    return sorted(
        found,
        key=lambda key: (
            key.rpartition(".")[0] != nearest(section, [key.rpartition(".")[0]]),
            key.count("."),
        ),
    )


def _listed(section: str, keys: Sequence[str]) -> str:
    inside = [key.removeprefix(f"{section}.") for key in keys if key.startswith(f"{section}.")]
    return f"the keys of config.{section} are {', '.join(inside)}" if inside else "it has no keys of its own"


def _meant(found: Sequence[str], value: str | None, prefix: str) -> str:
    said = "" if value is None else f"={value}"
    return f"did you mean {' or '.join(f'{prefix}{key}{said}' for key in found[:2])}?"


def _peer_meant(peer: Peer, value: str | None, keys: Sequence[str], stage: str, prefix: str) -> str:
    wanted = [key.replace(STAGE, stage) for key in peer.keys]
    found = [key for key in wanted if key in keys]
    if not found:
        if not wanted:
            return peer.note
        return f"stage {stage!r} has nothing like it; {_listed(stage, keys)}"
    converted = peer.convert(value or "")
    note = f" ({peer.note})" if peer.note else ""
    return _meant(found[:1], converted or None, prefix) + note
