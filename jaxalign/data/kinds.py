"""The kinds of data that a stage may ask for, by the names that `parse_record` knows them under."""

TEXT = "text"  # documents: all of a row is learned
DEMONSTRATIONS = "sft"  # completions of prompts and assistants' turns; text may be mixed in
PAIRS = "preference"  # two or more responses of one prompt, and which is better
PAIRS_OR_DEMONSTRATIONS = "preference or sft"
UNPAIRED = "unpaired"  # one completion of a prompt, and whether it is desirable
PROMPTS = "prompt"  # what the model itself will answer
