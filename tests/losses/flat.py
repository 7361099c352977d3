"""The losses with one keyword for each array and each setting, as the tests' tables name them."""

import dataclasses

from jaxalign.losses import DPOObjective, GRPOObjective, KTOObjective, PPOObjective, SequenceNLL
from jaxalign.losses import dpo_loss as _dpo_loss
from jaxalign.losses import grpo_loss as _grpo_loss
from jaxalign.losses import kto_loss as _kto_loss
from jaxalign.losses import orpo_loss as _orpo_loss
from jaxalign.losses import policy_loss as _policy_loss


def _split(objective: type, keywords: dict) -> dict:
    names = [field.name for field in dataclasses.fields(objective)]
    settings = {name: keywords.pop(name) for name in names if name in keywords}
    return keywords | {"objective": objective(**settings)}


def dpo_loss(chosen_length=None, rejected_length=None, **keywords):
    lengths = None if chosen_length is None else (chosen_length, rejected_length)
    return _dpo_loss(**_split(DPOObjective, keywords), lengths=lengths)


def orpo_loss(chosen_length, rejected_length, nll, nll_length, nll_weight=None, **keywords):
    lengths = (chosen_length, rejected_length)
    return _orpo_loss(**keywords, lengths=lengths, nll=SequenceNLL(nll, nll_length, nll_weight))


def policy_loss(**keywords):
    return _policy_loss(**_split(PPOObjective, keywords))


def kto_loss(**keywords):
    return _kto_loss(**_split(KTOObjective, keywords))


def grpo_loss(**keywords):
    return _grpo_loss(**_split(GRPOObjective, keywords))
