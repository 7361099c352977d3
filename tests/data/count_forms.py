"""How many forms one record takes, and through how many functions it goes, from a line of a file to a batch."""

import json
import sys
from pathlib import Path

import jaxalign
from jaxalign.data.config import DataConfig
from jaxalign.data.dataset import dataset_from_records, open_sources
from jaxalign.data.files import FileRows
from jaxalign.data.kinds import PAIRS
from jaxalign.data.packing import collate
from jaxalign.text.tokenizer import Tokenizer

PAIR = {"prompt": "the quick", "chosen": " fox jumps", "rejected": " dog"}
ROOM = str(Path(jaxalign.__file__).parent)
NO_FORMS = {
    "EncodingReport",
    "Dataset",
}  # numbers about records, and what keeps the rows beside where they are from


def count_forms(folder: Path, tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """The forms of a pair of texts and the functions of jaxalign between its row being read and its batch.

    Counted are the functions that are entered once the row has been read: neither the loops that asked for it, nor
    comprehensions and lambdas, which are part of the functions that they stand in, nor properties of the config. What a
    tokenizer finds out once about itself is found out before.

    Returns:
      Types, in the order they are made: dict is the row. Qualified names of functions, in the order of the first call.
    """
    file = folder / "pair.jsonl"
    file.write_text(json.dumps(PAIR) + "\n")
    config = DataConfig(train=str(file), max_length=32, row_length=64)
    sources = open_sources(config, PAIRS, "train")
    assert None not in (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_ids)
    forms: dict[str, None] = {}
    functions: dict[str, None] = {}

    def note(frame, event, argument):
        code = frame.f_code
        if event == "return" and code is FileRows.__getitem__.__code__ and argument is not None:
            forms[type(argument).__name__] = None
        elif event == "call" and forms and code.co_filename.startswith(ROOM):
            if "<" not in code.co_name:
                functions[f"{Path(code.co_filename).stem}.{code.co_qualname}"] = None
        elif event == "call" and forms and code.co_filename == "<string>" and code.co_name == "__init__":
            made = type(frame.f_locals["self"])  # the constructor of a dataclass
            if made.__module__.startswith("jaxalign") and made.__name__ not in NO_FORMS:
                forms[made.__name__] = None

    sys.setprofile(note)
    try:
        collate(dataset_from_records(sources, config, tokenizer, PAIRS).rows, [0])
    finally:
        sys.setprofile(None)
    about = (
        "dataset.DataConfig.",
        "invalid.Invalid.",
        "sources.Records.",
        "files.FileRows.",
    )  # not the record itself
    return list(forms), [name for name in functions if not name.startswith(about)]
