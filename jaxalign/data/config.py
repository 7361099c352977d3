"""The settings of a run's data: `config.data`."""

from dataclasses import dataclass

from jaxalign.data.encode import OVERLONG
from jaxalign.data.invalid import RULES
from jaxalign.data.overlap import KEYS
from jaxalign.data.records import KINDS
from jaxalign.data.tables import MOST_ROW_BYTES
from jaxalign.fields import Checked, field
from jaxalign.text.chat import LEARN
from jaxalign.text.rendered import CONTROL_TOKENS

OVERLAP = ("drop", "error", "allow")


@dataclass(frozen=True)
class DataConfig(Checked, at="config.data"):
    """`config.data`. A source is a file, folder or hub name; see `recipes` for all that it can say."""

    # Sources; several also as one string, separated by commas. Shares and held-out data that a config file names are
    # those of its own training data.
    train: str | tuple[str, ...] = field("", replaces=("weights", "eval"))
    # Sources of held-out data, named as those of train.
    eval: str | tuple[str, ...] = field("", replaces=("eval_fraction",))
    # Without `eval`: share of the training prompts to hold out, by their hash.
    eval_fraction: float = field(
        0.0, at_least=0, below=1, says=": must be 0 or more and less than 1", replaces=("eval",)
    )
    # Training records that are also in eval: "drop", "error" or "allow".
    overlap: str = field("drop", choices=OVERLAP, says=f": write one of {', '.join(OVERLAP)}")
    # Also there by "prompt", or by the whole "record" where most have one and the same prompt.
    overlap_by: str = field("prompt", choices=tuple(KEYS), says=f": write one of {', '.join(KEYS)}")
    split: str = ""  # of a folder or hub dataset; "": the one that fits, as its recipe says, or "train"
    # Records of each source to read, a hub dataset being streamed; 0 reads all.
    take: int = field(0, at_least=0, says=": must be 0 or more")
    # What becomes of rows that cannot be used: "stop" lists them and refuses; "drop" leaves them out, up to half of a
    # source, counts them and lists them in dropped.jsonl.
    invalid: str = field("stop", choices=RULES, says=f": write one of {', '.join(RULES)}")
    # Bytes of a row of a file, at most: one that is larger is read into memory by no process, and is invalid.
    max_row_bytes: int = field(MOST_ROW_BYTES, at_least=1)
    # "OURS=THEIRS,...": what the rows call the fields that we read, as in "prompt=question,chosen=data.good".
    fields: str = ""
    # Of rows and messages, left out on purpose though they mean something.
    ignore_fields: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()  # each training source's share of rows; () is each row once per epoch
    tokenizer: str = ""  # .model or tokenizer.json, folder with one, or hub model; see `load_tokenizer`
    chat_template: str = ""  # Jinja file; "" is the tokenizer's own template, or else the built-in one
    # Values of variables that the template reads: "enable_thinking=False, level=low" or a JSON object.
    template_args: str = ""
    # Control tokens that answers may hold, beside those that the template writes in answers; see docs/templates.md.
    answer_tokens: tuple[str, ...] = ()
    # What plain text is that begins or ends as a rendered conversation: "refuse", names as "ids", or as "letters".
    control_tokens: str = field(
        CONTROL_TOKENS[0], choices=CONTROL_TOKENS, says=f": write one of {', '.join(CONTROL_TOKENS)}"
    )
    # Which answers of a conversation are learned: "all" or the "last" one.
    learn: str = field(LEARN[0], choices=LEARN, says=f": write one of {', '.join(LEARN)}")
    # Most tokens of one sequence; 0: the model's own, up to what is usual for the stage.
    max_length: int = field(0, at_least=0)
    # Tokens of one packed row; 0: what the longest record needs, and more where short ones then fill rows better.
    row_length: int = field(0, at_least=0)
    packing: bool = True  # False: one sequence, pair or ranking per row
    # The prompt of a pair or ranking is computed once, where that saves a quarter of all tokens or more.
    share_prompts: bool = True
    # Sequences in one packed row; 0: one for every 32 tokens of it, and at least 32.
    max_segments: int = field(0, at_least=0)
    # What is longer than max_length: "error", "drop" or "truncate"; text is split.
    overlong: str = field("drop", choices=OVERLONG, says=f": write one of {', '.join(OVERLONG)}")
    seed: int = field(0, at_least=0, below=2**32)  # which sequences share a row
    # Read the one training source as it comes, again and again, for num_steps steps, and keep nothing of it.
    streaming: bool = False
    # Records of it that are held at a time: rows are packed of these, and shuffled among each other.
    stream_buffer: int = field(10_000, at_least=1)
    # Where tokens are kept, so that they are made once: a folder, also gs://; "": for sources of 32 MiB and more, the
    # folder stores in JAXALIGN_CACHE, by default ~/.cache/jaxalign; "none": they are made at every start.
    store: str = ""

    def slots(self, kind: str) -> int:
        """Tokens of a row. Prompts stand one in a row, which need not hold more than one."""
        one = KINDS[kind].one_per_row and 0 < self.max_length < self.row_length
        return self.max_length if one else self.row_length

    @property
    def segments(self) -> int:
        """Most sequences of a packed row."""
        return self.max_segments or max(32, self.row_length // 32)
