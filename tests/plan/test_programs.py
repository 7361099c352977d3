"""Every stage's programs: what they hold, that they compile for a slice, and that their counts are right."""

import dataclasses
import json
import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from rich.console import Console

from jaxalign import parallel
from jaxalign.config import load_config
from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig
from jaxalign.models.flops import active_params, visible_pairs
from jaxalign.models.presets import PRESETS
from jaxalign.parallel.chips import CHIPS
from jaxalign.parallel.mesh import mesh_shape
from jaxalign.plan import hlo
from jaxalign.plan import programs as plan_programs
from jaxalign.plan.costs import count_flops
from jaxalign.plan.measure import measure, split_memory
from jaxalign.plan.programs import planned, stage_steps
from jaxalign.plan.report import print_plan, problem_lines, remedies
from jaxalign.plan.search import candidates
from jaxalign.plan.topology import describe_devices, parse_topology
from jaxalign.rl.rollout import rollout_work
from jaxalign.stages import NAMES, default_config, parse_config
from jaxalign.training.flops import update_flops
from jaxalign.training.memory import FROZEN, OPTIMIZER, PARAMETERS, bytes_per_device
from jaxalign.verbs.plan import estimated_plan, run_plan, searched, write_json

STAGES = list(NAMES)
# SFT is compiled below; what the other stages run are the parts of these two.
COMPILED = ["dpo", "ppo"]


def tiny(stage, **model):
    config = default_config(stage)
    sizes = {"vocab_size": 1024, "embed_dim": 256, "num_kv_heads": 2, "head_dim": 128, "mlp_dim": 512}
    run = {"dtype": "bfloat16", "remat": "none"}
    config.model.update(sizes | run | {"num_layers": 3, "tie_embeddings": False} | model)
    config.batch_size = 8
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.data.max_length = 256
    config.data.row_length = 512
    options = config[stage]
    if "sampling" in options:
        options["teacher" if stage == "distill" else "reward"] = "a/run"
        options.sampling.max_new_tokens = 128
    if "group_size" in options:
        options.group_size = 2
    return config


def abstract_mesh(config, chips):
    kinds = (AxisType.Auto,) * len(parallel.AXES)
    return AbstractMesh(mesh_shape(config.mesh, chips), parallel.AXES, axis_types=kinds)


def steps_of(values, chips=4):
    config = parse_config(values)
    return stage_steps(config, abstract_mesh(config, chips), "tpu")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_presets_are_whole_configs(stage):
    for name in ("gpt2", "gemma3_270m", "qwen3_0_6b", "llama3_1_8b"):
        config = parse_config(load_config(stage, name))
        assert config.model.embed_dim == PRESETS[name]["embed_dim"] and config.mesh.fsdp == -1
        config = planned(config, abstract_mesh(config, 8))
        new = config.options.sampling.max_new_tokens if hasattr(config.options, "sampling") else 0
        assert config.data.max_length + new <= min(8192, PRESETS[name]["max_length"])
        assert config.batch_size % 8 == 0 and config.optimizer.learning_rate > 0


def test_parameters_of_a_chip_are_the_published_number():
    """8,030,261,248 parameters of Llama 3.1 8B in float32, and Adam's two moments, split over 64 chips."""
    config = load_config("dpo", "llama3_1_8b")
    config.batch_size = 64
    model, (step,) = steps_of(config, chips=64)
    norms = 4096 * (2 * 32 + 1)  # a norm is on every chip
    a_chip = 4 * ((8_030_261_248 - norms) // 64 + norms)
    assert bytes_per_device(step.kinds[PARAMETERS]) == a_chip == bytes_per_device(step.kinds[FROZEN])
    assert bytes_per_device(step.kinds[OPTIMIZER]) == 2 * a_chip + 8  # and two counts
    assert step.tokens == 64 * 4096
    assert model.attention == "splash"


def test_model_flops_are_six_a_parameter_and_token_and_the_pairs():
    model, (step,) = steps_of(tiny("sft"))
    tokens, pairs = 8 * 512, 8 * 2 * 256 * 257 / 2
    assert step.model_flops == 6 * active_params(model) * tokens + 12 * 3 * 4 * 128 * pairs
    _, (dpo,) = steps_of(tiny("dpo"))
    assert dpo.model_flops == pytest.approx(step.model_flops * 4 / 3)  # and the reference forward


def full_batch(rows, length, every):
    """Rows of whole sequences of length `every`, with all that `count_work` reads."""
    place = jnp.arange(length)[None].repeat(rows, 0)
    mask = jnp.ones(place.shape)  # a plan takes every token for one that is learned
    return SimpleNamespace(segment_ids=place // every + 1, positions=place % every, mask=mask)


KINDS = ({}, {"window": 64, "layer_pattern": "LLG"}, {"num_experts": 4, "experts_per_token": 2})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=["plain", "window", "experts"])
def test_a_run_counts_what_its_plan_counts(kind):
    """The FLOPs that perf/mfu divides, of batches that are full, are those of the plan's programs."""
    for stage, frozen in (("sft", 0), ("reward", 0), ("dpo", 1)):
        model, (step,) = steps_of(tiny(stage, **kind))
        got = update_flops(model, full_batch(8, 512, 256), (model,) * frozen, scalar=stage == "reward")
        assert float(got) == pytest.approx(step.model_flops, rel=1e-6), stage
    for stage, k, judges, passes in (("ppo", 1, 2, 2), ("grpo", 2, 1, 0), ("distill", 1, 0, 1)):
        model, programs = steps_of(tiny(stage, **kind))
        flops = {program.name: program.model_flops for program in programs}
        prompts, whole = full_batch(8 // k, 256, 256), full_batch(8, 384, 384)
        got = rollout_work(
            prompts, vars(whole), None, model=model, judges=(model,) * judges, samples=k, readers=passes
        )
        wanted = flops["rollout"] + flops["score"]
        assert float(got["perf/flops/rollout"].total) == pytest.approx(wanted, rel=1e-6), stage
        got = update_flops(model, whole, (model,) * (stage == "distill"))
        assert float(got) == pytest.approx(flops["policy update"], rel=1e-6), stage
        if "value update" in flops:
            assert float(update_flops(model, whole, scalar=True)) == pytest.approx(
                flops["value update"], rel=1e-6
            )


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_a_rollout_reads_each_prompt_once_and_needs_logits_from_its_last_token_on(stage):
    values = tiny(stage)
    values.batch_size = 32
    model, (rollout, *_) = steps_of(values)
    E, P, N = 32, 256, values[stage].sampling.max_new_tokens
    k = values[stage].get("group_size", 1)
    head = model.vocab_size * model.embed_dim
    layers = (active_params(model) - head) * (E // k * P + E * N)
    pairs = E // k * P * (P + 1) / 2 + E * (N * P + N * (N + 1) / 2)
    attention = 2 * model.num_layers * model.num_heads * model.head_dim * pairs
    assert rollout.model_flops == pytest.approx(2 * (layers + head * E * (1 / k + N) + attention), rel=1e-12)


def test_ppo_counts_what_lies_beside_each_program():
    """Whichever program runs, a run holds policy, critic, both their optimizers, reference and reward model."""
    _, steps = steps_of(tiny("ppo"))
    assert [step.name for step in steps] == ["rollout", "score", "policy update", "value update"]
    held = {sum(bytes_per_device(tree) for tree in (*step.kinds.values(), step.beside)) for step in steps}
    assert max(held) - min(held) <= 16  # the counts of the states, which are no part of a kind
    one = bytes_per_device(steps[0].kinds[PARAMETERS])
    assert max(held) == pytest.approx((2 + 2 + 4) * one, rel=2e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mesh": {"tensor": 4, "fsdp": 1}, "model": {"num_kv_heads": 2}},
            "config.model.num_kv_heads=2 is not divis",
        ),
        (
            {"batch_size": 6},
            "config.batch_size / config.num_microbatches=6 is not divisible by config.mesh.fsdp=4",
        ),
        ({"mesh": {"tensor": 3}}, "a multiple of 3 devices, but there are 4"),
        ({"model": {"vocab_size": 0}}, "config.model.vocab_size=0"),
        ({"mesh": {"expert": 4, "fsdp": 1}, "model": {"num_experts": 6}}, "config.model.num_experts=6"),
    ],
)
def test_sizes_that_do_not_divide_are_named(change, message):
    values = tiny("sft")
    values.update(change)
    with pytest.raises(ConfigError) as error:
        steps_of(values)
    assert message in str(error.value)


@pytest.mark.slow
def test_flops_of_a_step_are_the_analytic_ones_and_remat_adds_a_forward_pass():
    """Attention as plain products over all pairs, which is what the CPU is given to compile."""
    mesh = parallel.make_mesh(parallel.MeshConfig(data=1, fsdp=4), jax.devices()[:4])
    counted = {}
    for remat in ("none", "full"):
        config = parse_config(tiny("sft", dtype="float32", remat=remat, attention="xla"))
        model, (step,) = stage_steps(config, mesh, "cpu")
        with parallel.use_mesh(mesh):
            compiled = step.function.lower(*step.arguments).compile()
        counted[remat] = count_flops(hlo.parse(compiled.as_text()))["matmul"]
        memory = split_memory(step, compiled.memory_analysis())
        assert memory["total"] == pytest.approx(sum(v for k, v in memory.items() if k != "total"))
        arguments = memory[PARAMETERS] + memory[OPTIMIZER] + memory["batch and padding"]
        assert arguments == compiled.memory_analysis().argument_size_in_bytes
        # The whole state is donated, and takes no room a second time.
        state = memory[PARAMETERS] + memory[OPTIMIZER]
        assert compiled.memory_analysis().alias_size_in_bytes >= state
    tokens = 8 * 512
    attention = 12 * 3 * 4 * 128 * 8 * 512 * 512
    assert counted["none"] == pytest.approx((6 * active_params(model) * tokens + attention) / 4, rel=0.02)
    layers = active_params(model) - 1024 * 256
    again = (2 * layers * tokens + attention / 3) / 4
    assert counted["full"] - counted["none"] == pytest.approx(again, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("stage", COMPILED)
def test_a_stage_compiles_for_a_slice(tpu, stage, tmp_path, capsys):
    """Of PPO every program gathers each parameter as often as a model uses it, or a warning would say so."""
    found = run_plan(parse_config(tiny(stage)), "v5e:2x2")
    if stage == "ppo":
        assert [(step["name"], step["warnings"]) for step in found["steps"]] == [
            (name, []) for name in ("rollout", "score", "policy update", "value update")
        ]
    write_json(found, tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["steps"] == found["steps"]
    assert found["mesh"]["fsdp"] == 4 and found["chips"] == 4 and found["compiled"]
    for step in found["steps"]:
        assert step["fits"] and 0 < step["mfu_bound"] <= 1
        assert step["memory"]["total"] == pytest.approx(
            sum(v for k, v in step["memory"].items() if k != "total")
        )
        assert set(step["seconds"]) == {"compute", "hbm", "ici"} and min(step["seconds"].values()) > 0
        assert set(step["sent_by_axes"]) == {"fsdp"}
        assert sum(step["sent_by_kind"].values()) == pytest.approx(step["sent_by_axes"]["fsdp"])


@pytest.mark.slow
def test_gradients_are_accumulated_on_a_slice(tpu):
    """Which the compiler once failed at: bfloat16, two tables, all of the mesh in fsdp."""
    values = tiny("sft")
    values.num_microbatches = 2
    (step,) = run_plan(parse_config(values), "v5e:2x2")["steps"]
    assert step["fits"] and step["warnings"] == []


@pytest.mark.slow
def test_between_slices_each_chip_sends_its_part_of_the_gradients(tpu):
    """In bfloat16, as it is computed; an all-reduce of two sends what a chip holds. Norms and metrics are small."""
    values = tiny("sft", num_heads=4)
    values.mesh.data = 2
    (step,) = run_plan(parse_config(values), "2*v5e:2x2")["steps"]
    layers, tables = 3 * (256 * 128 * 2 * (4 + 2) + 3 * 256 * 512), 2 * 1024 * 256
    assert step["sent_by_axes"]["slices"] == pytest.approx(2 * (layers + tables) / 4, rel=0.01)
    assert step["seconds"]["network"] == step["sent_by_axes"]["slices"] / CHIPS["v5e"].network
    assert step["warnings"] == []


@pytest.mark.slow
def test_of_a_frozen_model_in_host_memory_a_chip_holds_the_tables(tpu):
    values = tiny("dpo")
    values.frozen.update(dtype="int8", offload=True)
    (step,) = run_plan(parse_config(values), "v5e:2x2")["steps"]
    tables, scales, norms = 2 * 1024 * 256 / 4, 2 * 1024 * 4, 256 * 7 * 4
    assert step["memory"][FROZEN] == tables + scales + norms
    assert step["fits"]


@pytest.mark.slow
def test_flops_compiled_for_a_slice_are_the_analytic_ones(tpu):
    """Products to the FLOP but for the logits' second pass, and splash attention's two kernels' worth of repeats.

    Two of the three layers have a window, and each layer runs its own branch of the two.
    """
    config = parse_config(tiny("sft", window=128, layer_pattern="LLG"))
    topology = parse_topology("v5e:2x2")
    mesh = parallel.make_mesh(config.mesh, describe_devices(topology))
    model, (step,) = stage_steps(config, mesh)
    found = measure(step, model, mesh, parallel.RULES, topology)
    tokens = 8 * 512
    exact = 6 * active_params(model) * tokens / 4
    logits = 2 * 1024 * 256 * tokens / 4
    assert 0.99 * exact <= found["flops"]["matmul"] <= 1.01 * (exact + logits)
    pairs = visible_pairs(512) + 2 * visible_pairs(512, 128)
    assert found["flops"]["attention"] == pytest.approx(9 * 2 * 4 * 128 * 8 * pairs / 4, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "products"), [("full", 11), ("attention", 9)])
def test_a_kernel_of_attention_runs_forward_once_where_its_result_is_kept(tpu, remat, products):
    """Of the kernels two products are forward; the layers' own are computed again with either."""
    config = parse_config(tiny("sft", remat=remat))
    topology = parse_topology("v5e:2x2")
    mesh = parallel.make_mesh(config.mesh, describe_devices(topology))
    model, (step,) = stage_steps(config, mesh)
    found = measure(step, model, mesh, parallel.RULES, topology)
    pairs = 3 * visible_pairs(512)
    assert found["flops"]["attention"] == pytest.approx(products * 2 * 4 * 128 * 8 * pairs / 4, rel=1e-12)
    again = 2 * (active_params(model) - 1024 * 256) * 8 * 512 / 4
    exact = 6 * active_params(model) * 8 * 512 / 4
    assert found["flops"]["matmul"] >= 0.99 * (exact + 0.85 * again)


@pytest.mark.slow
def test_what_does_not_fit_says_by_how_much_and_what_to_change(tpu):
    values = tiny("sft", embed_dim=4096, mlp_dim=16_384, num_layers=32, vocab_size=32_768)
    found = run_plan(parse_config(values), "v5e:2x2")
    assert not found["steps"][0]["fits"] and found["steps"][0]["over_bytes"] > 2**30
    (line,) = (line for line in problem_lines(found) if line.startswith("PROBLEM"))
    assert "update needs" in line and "saved activations" in line
    assert "try config.model.remat='full', config.num_microbatches=2, a larger config.mesh.fsdp" in line
    assert "config.frozen" not in line  # SFT has none


def test_what_helps_a_step_that_does_not_fit_is_what_is_not_done_yet():
    plan = {"remat": "full", "num_microbatches": 1, "batch_size": 8, "unit": "chip", "stage": "dpo"}
    plan |= {"mesh": {"data": 1, "fsdp": 8, "expert": 1}, "frozen": {"dtype": "bfloat16", "offload": False}}
    found = list(remedies(plan, {FROZEN: 1.0}))
    assert found[:2] == ["config.frozen.dtype='int8'", "config.frozen.offload=True"]
    assert not any("remat" in line or "microbatches" in line or "decode" in line for line in found)


def test_a_plan_recomputes_as_little_as_there_is_memory_for():
    """The same step on chips of 95.7, 31.25 and 15.75 GiB; parameters and both moments are 12 of its 16 bytes each."""
    values = load_config("sft", "llama3_1_8b")
    values.data.update(max_length=8192, row_length=8192)
    chosen = {}
    for topology, batch in (("v5p:4x4x4", 128), ("v6e:16x16", 256), ("v5e:8x8", 64)):
        values.batch_size = batch
        plan = estimated_plan(parse_config(values), parse_topology(topology))
        chosen[topology] = plan["remat"]
        (step,) = plan["steps"]
        assert step["memory"]["total"] < 0.8 * plan["room"]["fits"]
        assert plan["model"]["attention_block"] == (512 if "v5e" in topology else 1024)
    assert chosen == {"v5p:4x4x4": "dots_no_batch", "v6e:16x16": "attention", "v5e:8x8": "attention"}


def test_gpus_are_estimated_without_their_compiler(estimates):
    values = load_config("sft", "llama3_2_1b")
    values.model.remat = "full"
    found = run_plan(parse_config(values), "h200:8")
    (step,) = found["steps"]
    assert not found["compiled"] and step["memory"][PARAMETERS] == pytest.approx(
        4 * 1_235_814_400 / 8, rel=1e-3
    )
    # Layers recomputed: a third more than the model's own.
    assert step["flops"]["all"] == pytest.approx(step["model_flops"] * 4 / 3)
    assert step["mfu_bound"] == pytest.approx(0.75)


def test_estimates_of_sampling_read_and_hold_the_gathered_weights(estimates):
    values = load_config("ppo", "llama3_1_8b")
    weights = 2 * 8_030_261_248
    found = {}
    for rules in ("", "decode_embed=fsdp"):
        values.mesh.rules = rules
        rollout = run_plan(parse_config(values), "h200:8")["steps"][0]
        assert rollout["hbm_bytes"] > 1024 * weights
        found[rules] = rollout["memory"]["temporaries"]
    assert found[""] - found["decode_embed=fsdp"] == pytest.approx(weights, rel=1e-3)


@pytest.mark.parametrize("decay_fraction", [0.1, 0.5, 0.9])
def test_a_plan_without_steps_has_room_for_a_long_warm_up(decay_fraction, estimates):
    """Of data that is not here nobody knows the steps: a warm-up of any length fits, before wsd's decay, too."""
    values = load_config("sft", "llama3_2_1b")
    values.optimizer.update(schedule="wsd", warmup=0.0, warmup_steps=10_000, decay_fraction=decay_fraction)
    assert run_plan(parse_config(values), "h200:8")["steps"][0]["fits"]
    values.num_steps = 10_000
    with pytest.raises(ConfigError, match=r"config\.optimizer\.warmup_steps=10000: too long"):
        run_plan(parse_config(values), "h200:8")


def test_estimates_of_hosts_that_do_not_divide_the_mesh_are_refused_as_in_a_run(estimates):
    values = load_config("sft", "llama3_2_1b")
    message = r"config\.mesh\.data=1 is split over 2 hosts of GPUs; make it a multiple of 2, or name another"
    with pytest.raises(ConfigError, match=message):
        run_plan(parse_config(values), "2*h100:8")
    values.mesh.data = 2
    (step,) = run_plan(parse_config(values), "2*h100:8")["steps"]
    # Of gradients a device sends its part between the hosts, and none along data within one.
    weights = 2 * 1_235_814_400
    assert step["sent_by_axes"]["slices"] == pytest.approx(2 * weights / 8 * 0.5, rel=1e-3)
    assert "data" not in step["sent_by_axes"]


@pytest.mark.slow
def test_a_search_orders_by_the_bounds_and_names_the_best(estimates, capsys):
    """By estimate on GPUs: 8 billion parameters in training state fit on 8 of them only when split."""
    values = load_config("sft", "llama3_1_8b")
    values.batch_size = 32
    found = run_plan(parse_config(values), "h200:8", search=True, budget=3)
    assert len(found["tried"]) == 3 and found["steps"][0]["fits"]
    assert found["steps"][0]["mfu_bound"] == max(plan["steps"][0]["mfu_bound"] for plan in found["tried"])
    assert math.prod(found["mesh"].values()) == 8
    assert "fits, MFU at most" in capsys.readouterr().out


def test_a_search_on_gpus_looks_first_at_what_fits_into_their_pool(estimates, monkeypatch, capsys):
    """Five candidates would be faster and fit into an H100, but not into what JAX takes of it."""
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    values = load_config("sft", "llama3_1_8b")
    values.batch_size = 64
    found = run_plan(parse_config(values), "h100:8", search=True, budget=1)
    (step,) = found["steps"]
    assert step["fits"] and step["memory"]["total"] <= found["room"]["fits"]


def test_a_search_splits_the_experts_of_the_model_that_a_run_begins_from(monkeypatch):
    """They are that model's, and not config.model's."""
    config = parse_config(load_config("sft"))
    config = dataclasses.replace(
        config, batch_size=8, model=dataclasses.replace(config.model, init_from="a/run")
    )
    for experts, sizes in ((0, {1}), (8, {1, 2, 4, 8})):
        source = SimpleNamespace(config=ModelConfig(num_experts=experts, max_length=4096))
        monkeypatch.setattr(plan_programs, "find_model", lambda path, key, source=source: source)
        assert {x.mesh.expert for x in candidates(config, parse_topology("h100:8"))} == sizes


def test_a_search_of_which_nothing_can_be_compiled_says_why(monkeypatch, capsys):
    def refuse(config, topology):
        raise ConfigError("no such mesh")

    config = parse_config(load_config("sft", "llama3_1_8b"))
    monkeypatch.setattr("jaxalign.verbs.plan.rank", lambda configs, look: [config, config])
    with pytest.raises(
        ConfigError, match=r"--search: h200:8 takes none of the 2 candidates; the last: no such mesh"
    ):
        searched(config, parse_topology("h200:8"), refuse, budget=3)


@pytest.mark.parametrize(("said", "share"), [(None, 0.75), ("0.9", 0.9)])
def test_an_estimate_fits_into_what_jax_takes_of_a_gpu_less_a_margin(
    said, share, estimates, monkeypatch, capsys
):
    """Of an H100's memory a pool of three quarters, or of what the environment says, and nine tenths of that."""
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    if said:
        monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", said)
    found = run_plan(parse_config(load_config("sft", "llama3_1_8b")), "h100:2")
    (step,) = found["steps"]
    room, hbm = found["room"], CHIPS["h100"].hbm
    assert room == pytest.approx({"all": hbm, "pool": share * hbm, "fits": 0.9 * share * hbm})
    assert not step["fits"] and step["over_bytes"] == pytest.approx(step["memory"]["total"] - room["fits"])
    print_plan(found, Console(width=200))
    printed = capsys.readouterr().out
    assert "sft, 8.03 billion parameters, on h100:2 (2 GPUs: fsdp 2), remat full, 1 microbatch\n" in printed
    assert f"JAX takes {share * hbm / 2**30:.2f} (XLA_PYTHON_CLIENT_MEM_FRACTION={share:g})" in printed
    assert f"a step fits up to {0.9 * share * hbm / 2**30:.2f}" in printed


def test_the_pool_of_a_gpu_must_be_a_share(estimates, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "75%")
    with pytest.raises(ConfigError, match=r"XLA_PYTHON_CLIENT_MEM_FRACTION=75% must be a share above 0"):
        run_plan(parse_config(load_config("sft", "llama3_2_1b")), "h100:8")


def test_small_models_are_counted_in_millions(estimates, capsys):
    print_plan(run_plan(parse_config(tiny("sft")), "h200:4"), Console(width=200))
    assert re.search(r"^sft, [1-9]\d*\.\d\d million parameters, on h200:4", capsys.readouterr().out)
