"""Studies: what papers say, as claims with rules, seeds, intervals and verdicts."""

from jaxalign.ablation.claims import Claim, Verdict
from jaxalign.ablation.effects import Effect, arm_name, value
from jaxalign.ablation.study import Chart, Outcome, Study, Trial, Tuning, cross

__all__ = [
    "Chart",
    "Claim",
    "Effect",
    "Outcome",
    "Study",
    "Trial",
    "Tuning",
    "Verdict",
    "arm_name",
    "cross",
    "value",
]
