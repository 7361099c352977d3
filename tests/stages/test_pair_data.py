"""Rankings are their pairs with weights; reference log-probabilities may be computed before training."""

import jax
import numpy as np
import pytest
from tiny import final_state, history, make_config, run

import jaxalign.training.reference as reference
from jaxalign import parallel
from jaxalign.stages import parse_config
from jaxalign.training.open import open_run


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["reward", "dpo", "orpo"])
def test_a_ranking_of_three_is_its_three_pairs(stage, runs, tmp_path):
    """12 rankings, each pair weighing 1/3, against their 36 pairs of weight 1: the same weighted means.

    ORPO's likelihood term, too, counts a chosen response once for every pair that it wins.
    """
    changes = {"num_steps": 1, "batch_size": 40, "data.packing": False}
    for name in ("rankings", "rankings_as_pairs"):
        rows = {"data.train": str(runs / f"{name}.jsonl"), "data.eval": str(runs / f"{name}.jsonl")}
        run(stage, runs, tmp_path / name, **changes, **rows | {"optimizer.learning_rate": 1e-12})
    (_, ranked), (_, paired) = (history(tmp_path / n, "eval")[0] for n in ("rankings", "rankings_as_pairs"))
    assert ranked.keys() == paired.keys()
    for name, value in paired.items():
        assert ranked[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@pytest.mark.slow
def test_orpo_learns_demonstrations_by_likelihood_alone(runs, tmp_path):
    """Pairs and demonstrations together: the likelihood term is the token mean over both, the odds as without."""
    both = f"{runs}/pairs.jsonl,{runs}/sft.jsonl"
    still = {"num_steps": 1, "optimizer.learning_rate": 1e-12}
    found, tokens = {}, {}
    for name, stage, data in [
        ("pairs", "orpo", f"{runs}/pairs.jsonl"),
        ("shown", "sft", f"{runs}/sft.jsonl"),
        ("both", "orpo", both),
    ]:
        run(stage, runs, tmp_path / name, **still | {"data.train": data, "data.eval": data})
        found[name] = history(tmp_path / name, "eval")[0][1]
        config = parse_config(make_config(stage, runs, **{"data.train": data}))
        with parallel.use_mesh(parallel.make_mesh(config.mesh, jax.devices()[:1])):
            items = open_run(config, tmp_path / name).train.rows.items
        tokens[name] = sum(float(item.examples[0].mask.sum()) for item in items)  # of chosen and shown
    assert tokens["both"] == tokens["pairs"] + tokens["shown"]
    total = tokens["pairs"] * found["pairs"]["nll_loss"] + tokens["shown"] * found["shown"]["nll"]
    assert found["both"]["nll_loss"] == pytest.approx(total / tokens["both"], rel=1e-5)
    assert found["both"]["nll_loss"] != pytest.approx(found["pairs"]["nll_loss"], rel=1e-3)
    for name in ("log_odds_ratio", "rewards/accuracies", "logps/rejected"):
        assert found["both"][name] == pytest.approx(found["pairs"][name], rel=1e-5), name


@pytest.mark.slow
def test_precomputed_reference_is_the_reference_on_the_fly(runs, tmp_path):
    run("dpo", runs, tmp_path / "fly")
    run("dpo", runs, tmp_path / "before", **{"dpo.precompute_reference": True})
    for (_, a), (_, b) in zip(history(tmp_path / "fly"), history(tmp_path / "before"), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)
    a, b = (final_state(tmp_path / name, "model") for name in ("fly", "before"))
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_reference_rows_are_reused_until_data_or_weights_change(runs, tmp_path, monkeypatch):
    computed = []
    write = reference.write_whole
    monkeypatch.setattr(
        reference, "write_whole", lambda path, x: (computed.append(path.name), write(path, x))
    )

    def go(workdir, **changes):
        before = len(computed)
        run("dpo", runs, workdir, **{"dpo.precompute_reference": True, "num_steps": 1} | changes)
        return len(computed) - before

    # The files move along, as they would where a run is started afresh in its folder.
    assert go(tmp_path / "a") == 1
    assert go(tmp_path / "a") == 0
    moves = [
        {"data.train": str(runs / "rankings_as_pairs.jsonl")},
        {"model.init_from": str(runs / "pretrain")},
        {"data.row_length": 112},
    ]
    for number, changes in enumerate(moves):
        workdir = tmp_path / f"b{number}"
        workdir.mkdir()
        (workdir / reference.FOLDER).symlink_to(tmp_path / "a" / reference.FOLDER)
        assert go(workdir, **changes) == 1
    assert len(set(computed)) == 4
