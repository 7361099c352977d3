"""A second language of the HHH world: the same facts in Japanese words, for continued pretraining.

Nothing is shared with English that could be carried over letter by letter: names are in katakana, sentences have no
blanks, and end with "。". What is shared is what is said. Names lose nothing: no two become one, as "l" and "r" stay
apart ("ルァ" and "ラ" before a vowel, "ル" and a long vowel at the end).

Slots as in grammar.py: {n} and {m} names, {v} and {w} values. There are no conversations in Japanese, and no judge.
"""

import random

from jaxalign.worlds.grammar import ATTRIBUTES
from jaxalign.worlds.world import World, stream

WORDS: dict[str, tuple[str, ...]] = {
    "kind": ("きつね", "くま", "かえる", "からす", "やぎ", "おおかみ", "うさぎ", "あひる"),
    "colour": ("赤", "青", "緑", "黒", "白", "茶色", "灰色", "桃色"),
    "home": ("洞窟", "塔", "水車小屋", "納屋", "沼", "森", "城", "庭"),
    "food": ("りんご", "パン", "チーズ", "はちみつ", "木の実", "魚", "米", "とうもろこし"),
}
# In the order of grammar.ATTRIBUTES.
TRANSLATIONS = {
    value: word
    for attribute, values in ATTRIBUTES.items()
    for value, word in zip(values, WORDS[attribute], strict=True)
}

_SYLLABLES = {
    "b": "バ ビ ブ ベ ボ",
    "d": "ダ ディ ドゥ デ ド",
    "f": "ファ フィ フ フェ フォ",
    "g": "ガ ギ グ ゲ ゴ",
    "k": "カ キ ク ケ コ",
    "l": "ルァ ルィ ルゥ ルェ ルォ",
    "m": "マ ミ ム メ モ",
    "n": "ナ ニ ヌ ネ ノ",
    "p": "パ ピ プ ペ ポ",
    "r": "ラ リ ル レ ロ",
    "s": "サ シ ス セ ソ",
    "t": "タ ティ トゥ テ ト",
    "v": "ヴァ ヴィ ヴ ヴェ ヴォ",
    "z": "ザ ジ ズ ゼ ゾ",
}
_KANA = {
    onset + vowel: kana
    for onset, row in _SYLLABLES.items()
    for vowel, kana in zip("aiueo", row.split(), strict=True)
}
_ENDS = {"k": "ック", "l": "ル", "m": "ム", "n": "ン", "r": "ー", "s": "ス", "t": "ット"}

STATEMENTS: dict[str, tuple[str, ...]] = {
    "kind": ("{n}は{v}です", "{n}は{v}として生まれました", "{n}という{v}がいます", "{n}の種類は{v}です"),
    "colour": ("{n}の色は{v}です", "{n}は{v}の毛をしています", "{n}は{v}に見えます", "{n}の毛は{v}です"),
    "home": ("{n}は{v}に住んでいます", "{n}は{v}で眠ります", "{n}の家は{v}です", "{v}で{n}に会えます"),
    "food": (
        "{n}は{v}を食べます",
        "{n}は{v}が好きです",
        "{n}の食べ物は{v}です",
        "夕食には{v}を{n}にあげます",
    ),
}
QUESTIONS: dict[str, tuple[str, ...]] = {
    "kind": ("{n}はどんな動物ですか", "{n}の種類は何ですか"),
    "colour": ("{n}は何色ですか", "{n}の色は何ですか"),
    "home": ("{n}はどこに住んでいますか", "{n}の家はどこですか"),
    "food": ("{n}は何を食べますか", "{n}の食べ物は何ですか"),
}
COMPARISONS: dict[str, str] = {
    "kind": "{n}は{v}ですが、{m}は{w}です",
    "colour": "{n}は{v}に見えますが、{m}は{w}に見えます",
    "home": "{n}は{v}に住み、{m}は{w}に住んでいます",
    "food": "{n}は{v}を食べ、{m}は{w}を食べます",
}
LIKENESSES: dict[str, str] = {
    "kind": "{n}も{m}も{v}です",
    "colour": "{n}も{m}も{v}に見えます",
    "home": "{n}も{m}も{v}に住んでいます",
    "food": "{n}も{m}も{v}を食べます",
}
FILLERS = (
    "今日は風がやさしいです",
    "古い丘に雨が降ります",
    "春の日ざしは暖かいです",
    "水の上で星が光ります",
    "道は長くて静かです",
    "毎年葉が落ちます",
    "川は海へ流れます",
    "雪は冷たくてきれいです",
)


def in_katakana(name: str) -> str:
    """A name of the world, two syllables and a last consonant, as Japanese writes foreign names."""
    letters = name.lower()
    return _KANA[letters[:2]] + _KANA[letters[2:4]] + _ENDS[letters[4]]


def japanese_corpus(world: World, num_documents: int, seed: int) -> list[str]:
    """Documents of 1-4 short sentences on the facts of all entities; another seed: other sentences, the same facts."""
    rng = stream("japanese", seed)
    makers = rng.choices(list(_DOCUMENTS), list(_DOCUMENTS.values()), k=num_documents)
    return ["".join(f"{sentence}。" for sentence in make(world, rng)) for make in makers]


def _slots(world: World, name: str, attribute: str) -> dict[str, str]:
    return {"n": in_katakana(name), "v": TRANSLATIONS[world.facts[name][attribute]]}


def _statement(world: World, name: str, attribute: str, rng: random.Random) -> str:
    return rng.choice(STATEMENTS[attribute]).format(**_slots(world, name, attribute))


def _profile(world: World, rng: random.Random) -> list[str]:
    name = rng.choice(list(world.facts))
    return [_statement(world, name, a, rng) for a in rng.sample(list(ATTRIBUTES), rng.randint(2, 4))]


def _catechism(world: World, rng: random.Random) -> list[str]:
    """Questions about one entity, each followed by its answer."""
    name = rng.choice(list(world.facts))
    sentences = []
    for attribute in rng.sample(list(ATTRIBUTES), rng.randint(1, 2)):
        question = rng.choice(QUESTIONS[attribute]).format(n=in_katakana(name))
        sentences += [question, _statement(world, name, attribute, rng)]
    return sentences


def _comparison(world: World, rng: random.Random) -> list[str]:
    name, other = rng.sample(list(world.facts), 2)
    attribute = rng.choice(list(ATTRIBUTES))
    one, two = _slots(world, name, attribute), _slots(world, other, attribute)
    templates = LIKENESSES if one["v"] == two["v"] else COMPARISONS
    return [templates[attribute].format(**one, m=two["n"], w=two["v"])]


def _filler(world: World, rng: random.Random) -> list[str]:
    return rng.sample(FILLERS, 2)


_DOCUMENTS = {_profile: 0.45, _catechism: 0.4, _comparison: 0.1, _filler: 0.05}
