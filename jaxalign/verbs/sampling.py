"""The flags of the verbs that sample from a model."""

import dataclasses

from jaxalign.fields import like
from jaxalign.sampling.generate import SamplingConfig
from jaxalign.verbs.requests import Request, flag

MODEL = "a run, RUN@STEP, RUN@best or RUN@latest of its checkpoints, a Hugging Face folder or a hub name"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingRequest(Request):
    """How tokens are sampled, by which model's template, and in which precision."""

    max_new_tokens: int = like(SamplingConfig, "max_new_tokens")
    temperature: float = like(SamplingConfig, "temperature")
    top_k: int = like(SamplingConfig, "top_k")
    top_p: float = like(SamplingConfig, "top_p")
    min_p: float = like(SamplingConfig, "min_p")
    min_new_tokens: int = like(SamplingConfig, "min_new_tokens")
    repetition_penalty: float = like(SamplingConfig, "repetition_penalty")
    slots: int = like(SamplingConfig, "slots")
    stop: str = like(SamplingConfig, "stop")
    seed: int = flag("of the sampling", default=0, at_least=0, below=2**32)
    chat_template: str = flag("Jinja file, in place of the model's own template", default="", show="FILE")
    template_args: str = flag(
        "values of variables that the template reads, such as enable_thinking=False",
        default="",
        show="NAME=VALUE",
    )
    dtype: str = flag(
        "of the computation", default="float32", choices=("float32", "bfloat16", "float16"), show="DTYPE"
    )

    @property
    def sampling(self) -> SamplingConfig:
        """How the next token is chosen."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(SamplingConfig)}
        return SamplingConfig(**values)
