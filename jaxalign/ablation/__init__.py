"""Studies: what papers say, as claims with rules, seeds, intervals and verdicts."""

from jaxalign.ablation.claims import Claim, Verdict
from jaxalign.ablation.effects import Effect, arm_name, value
from jaxalign.ablation.screening import assign, contrast, plackett_burman, table_of
from jaxalign.ablation.study import Chart, Outcome, Sources, Study, Trial, Tuning, cross

__all__ = [
    "Chart",
    "Claim",
    "Effect",
    "Outcome",
    "Sources",
    "Study",
    "Trial",
    "Tuning",
    "Verdict",
    "arm_name",
    "assign",
    "contrast",
    "cross",
    "plackett_burman",
    "table_of",
    "value",
]
