"""The second language: it says what is true, loses no name, and shares no letter with the first."""

import re

from jaxalign.data import train_sentencepiece
from jaxalign.worlds import World, corpus, japanese_corpus
from jaxalign.worlds.grammar import ATTRIBUTES
from jaxalign.worlds.japanese import FILLERS, STATEMENTS, TRANSLATIONS, WORDS, in_katakana

WORLD = World(seed=0)


def test_names_are_written_as_japanese_writes_foreign_ones():
    assert [in_katakana(name) for name in ("Bafek", "Lirat", "Ridor", "Vutel", "Zosun")] == [
        "バフェック",
        "ルィラット",
        "リドー",
        "ヴテル",
        "ゾスン",
    ]


def test_no_two_names_or_words_become_one():
    for seed in range(3):
        world = World(seed=seed, num_entities=400, num_unknown=400)
        names = [*world.facts, *sum(world.unknown.values(), ())]
        assert len(set(map(in_katakana, names))) == len(names) == 800
    words = [word for row in WORDS.values() for word in row]
    assert len(set(words)) == len(words) == sum(map(len, ATTRIBUTES.values()))
    assert TRANSLATIONS["duck"] == "あひる" and TRANSLATIONS["corn"] == "とうもろこし"


def test_every_statement_holds_and_all_facts_are_told():
    """Read back by patterns of their own."""
    english = {word: value for value, word in TRANSLATIONS.items()}
    names = {in_katakana(name): name for name in WORLD.facts}
    told = set()
    documents = japanese_corpus(WORLD, 4_000, 0)
    for document in documents:
        for sentence in re.findall("[^。]+", document):
            for attribute, templates in STATEMENTS.items():
                for template in templates:
                    slots = {"n": f"(?P<n>{'|'.join(names)})", "v": f"(?P<v>{'|'.join(WORDS[attribute])})"}
                    if match := re.fullmatch(template.format(**slots), sentence):
                        fact = names[match["n"]], attribute, english[match["v"]]
                        assert WORLD.facts[fact[0]][attribute] == fact[2], sentence
                        told.add(fact)
    assert len(told) == len(WORLD.facts) * len(ATTRIBUTES)
    assert any(FILLERS[0] in document for document in documents)


def test_the_same_seed_says_the_same_and_another_something_else():
    assert japanese_corpus(WORLD, 50, 1) == japanese_corpus(WORLD, 50, 1)
    assert japanese_corpus(WORLD, 50, 1) != japanese_corpus(WORLD, 50, 2)


def test_the_languages_share_no_letter_and_no_token(tmp_path):
    english, japanese = corpus(WORLD, 2_000, 0), japanese_corpus(WORLD, 2_000, 0)
    assert not set("".join(english)) & set("".join(japanese))
    tokenizer = train_sentencepiece([*english, *japanese], tmp_path / "t.model", 700)
    ids = [{i for text in texts for i in tokenizer.encode(text)} for texts in (english, japanese)]
    assert not ids[0] & ids[1]
    assert tokenizer.decode(tokenizer.encode(japanese[0])) == japanese[0]
