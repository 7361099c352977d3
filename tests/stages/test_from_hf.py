"""Training that starts from a Hugging Face folder, and leaves as one."""

import json

import jax
import numpy as np
import pytest
from tiny import run

from jaxalign.models.hf.importer import by_path
from jaxalign.parallel import make_mesh, use_mesh
from jaxalign.training.saved_model import find_model
from jaxalign.verbs.convert import ConvertRequest, convert


def load(path):
    with use_mesh(make_mesh(devices=jax.devices()[:1])) as mesh:
        return by_path(find_model(str(path), "path").load(mesh))


@pytest.fixture(scope="module")
def hf(runs, tmp_path_factory):
    """The pretrained tiny model as a Hugging Face folder, from somebody who added a key to its config."""
    folder = tmp_path_factory.mktemp("hf") / "pretrained"
    convert(ConvertRequest(str(runs / "pretrain"), str(folder), "hf"))
    config = json.loads((folder / "config.json").read_text()) | {"use_cache": False}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
def test_fine_tuning_is_the_same_from_either_folder(hf, runs, tmp_path):
    """One step, bit for bit: the import, its tokenizer and its chat template are those of the run."""
    for name, source in (("ours", runs / "pretrain"), ("theirs", hf)):
        run("sft", runs, tmp_path / name, num_steps=1, model__init_from=str(source))
    ours, theirs = load(tmp_path / "ours"), load(tmp_path / "theirs")
    for path in ours:
        np.testing.assert_array_equal(theirs[path], ours[path], err_msg="/".join(path))

    convert(ConvertRequest(str(tmp_path / "theirs"), str(tmp_path / "out"), "hf"))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == json.loads((hf / "config.json").read_text())
    back = load(tmp_path / "out")
    assert all(np.array_equal(back[path], theirs[path]) for path in theirs)
    assert any(not np.array_equal(back[path], x) for path, x in load(hf).items()), "nothing was learned"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (hf / name).read_bytes()


@pytest.mark.slow
def test_a_reward_model_begun_from_it_leaves_as_a_classifier(hf, runs, tmp_path):
    run("reward", runs, tmp_path / "reward", num_steps=1, model__init_from=str(hf))
    convert(ConvertRequest(str(tmp_path / "reward"), str(tmp_path / "out"), "hf"))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["LlamaForSequenceClassification"]
    assert written["use_cache"] is False
    wanted, back = load(tmp_path / "reward"), load(tmp_path / "out")
    assert wanted.keys() == back.keys()
    assert all(np.array_equal(back[path], x) for path, x in wanted.items())
