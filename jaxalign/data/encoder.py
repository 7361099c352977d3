"""How the records of a source become a part of it."""

from dataclasses import dataclass

from jaxalign.data.encode import Reading, encode_records
from jaxalign.data.invalid import Noted
from jaxalign.data.overlap import record_keys
from jaxalign.data.parts import Part, make_part
from jaxalign.data.records import KINDS
from jaxalign.data.sources import Records
from jaxalign.text.templates import ChatTemplate
from jaxalign.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Encoder:
    """All that the tokens of a record depend on beside the record; see `encode_records`."""

    kind: str
    tokenizer: Tokenizer
    template: ChatTemplate | None
    max_length: int
    overlong: str
    group_length: int | None
    reading: Reading

    def encode(self, records: Records, first_row: int = 0, *, stop_early: bool = False) -> Part:
        """Some records of a source, of which they are number `first_row` and following.

        Args:
          stop_early: where none of the first thousand can be used, these are all that is encoded.
        """
        noted = Noted(first_only=stop_early)
        encoded = encode_records(
            records,
            self.kind,
            self.tokenizer,
            self.template,
            max_length=self.max_length,
            overlong=self.overlong,
            group_length=self.group_length,
            first_row=first_row,
            invalid=noted,
            reading=self.reading,
        )
        return make_part(
            encoded,
            record_keys,
            small_ids=self.tokenizer.vocab_size <= 2**16,
            completions=KINDS[self.kind].mismatched,
            bad=noted.rows,
        )
