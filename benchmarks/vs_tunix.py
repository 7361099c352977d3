"""Tunix and jaxalign in turn on the same work, as `vs_trl` compares TRL: what Tunix does with the same loss.

    pip install google-tunix                               # on Python 3.11 or newer, without torch
    python -m benchmarks.vs_tunix                          # --rows=sft,dpo; --out=FILE.json

Tunix pads each record to the longest of the data, ours packs them. Its Llama turns positions by a base of 1,000,000,
whatever its config says, so both do. Its ORPO sums log-probabilities in the odds where ours takes their mean, as the
paper has it, and has no setting for it: no two losses to compare. Its PPO samples no more completions at once than it
updates on at once: it takes all 64 for one update of four parts, ours four updates of 16, each four times over.
"""

from benchmarks.vs_trl import compare, make_parser, table


def main() -> None:
    """Compares and prints the table."""
    given = make_parser(__doc__, "sft,dpo,grpo,ppo,generate").parse_args()
    print(table(compare(given, "tunix_side", {"rope_theta": 1_000_000.0}, {}), "Tunix"))


if __name__ == "__main__":
    main()
