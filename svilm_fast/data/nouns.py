"""Nouns of captions, with their adjectives ("red circle"), found offline by part-of-speech tags."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from svilm_fast.data.config import NounsConfig
from svilm_fast.data.errors import DataError, SampleJsonError
from svilm_fast.data.language import is_english, is_latin
from svilm_fast.data.text import clean, is_visible

# Nouns that name no visible thing: nothing in the frames could be grounded to them.
_NOT_VISIBLE = frozenset(
    """anybody anyone anything back beginning bit bottom camera centre center clip clockwise couple
    different direction edge end everybody everyone everything footage front group half kind left
    lot middle moment nobody nothing other pair part piece place right scene second side somebody
    someone something somewhere sort speed start thing time top video way while""".split()  # noqa: SIM905
)
# The lexicon calls these nouns or participles; in front of a noun they describe it.
_ADJECTIVES = frozenset(
    """amber beige black blue bright brown cyan dark gold golden gray green grey large light lime
    magenta maroon navy olive orange pink plain purple red round silver small striped tall teal
    tiny turquoise violet wavy white yellow""".split()  # noqa: SIM905
)
# Verbs of motion that the lexicon takes for plural nouns ("a circle moves").
_VERBS = frozenset(
    """appears arrives blinks bounces comes crosses dances disappears drifts drops enters exits
    falls fades flashes floats flies follows glides goes grows inspects jumps leaves lifts meets
    moves orbits passes pulses puts rests rises rolls rotates runs shakes shrinks sits slides spins
    stands stays stops swings swirls turns vanishes waits walks wobbles zooms""".split()  # noqa: SIM905
)
# Verbs that the lexicon takes for nouns where two subjects share them ("a man and a woman dance").
_SHARED_VERBS = frozenset(("dance", "sit", "talk", "walk"))
# Words whose singular is another thing or none.
_PLURALS = frozenset(
    ("clothes", "glasses", "jeans", "pants", "people", "scissors", "shorts", "trousers")
)
_PHRASE_ADJECTIVES = 2
OTHER_LANGUAGE = "captions not in English, in which data.nouns.extractor=textblob finds no nouns"
_NAME = re.compile(r"[^\W\d_][\w'’-]*$")


@dataclass(frozen=True)
class Noun:
    """A noun or noun phrase and where it stands in its caption: `caption[start:end]`."""

    text: str
    start: int
    end: int


class NounExtractor(Protocol):
    """Finds the nouns of a caption, in reading order, each text once."""

    def __call__(self, caption: str) -> list[Noun]: ...


@lru_cache(maxsize=65536)
def singular(word: str) -> str:
    """The singular of a noun: onions -> onion; words that are no plural stay ("glasses")."""
    from lemminflect import getLemma

    lemmas = [lemma for lemma in getLemma(word, upos="NOUN") if lemma]  # that of "s" is ""
    return word if word in _PLURALS or not lemmas or word in lemmas else lemmas[0]


@dataclass(frozen=True)
class _Word:
    text: str
    kind: str  # N noun, A adjective, x anything else
    start: int
    end: int


class TextBlobNouns:
    """Nouns by the lexicon and rules inside TextBlob's wheel; downloads nothing.

    The lexicon is English: captions in other languages (`language.is_english`) have no nouns.
    """

    def __init__(self, *, phrases: bool = True) -> None:
        if importlib.util.find_spec("textblob") is None:
            raise DataError("nouns.extractor=textblob needs a package: pip install textblob")
        self.phrases = phrases

    def __call__(self, caption: str) -> list[Noun]:
        if not is_english(caption):
            return []
        words = _tagged(caption)
        found: dict[str, Noun] = {}
        for match in _PHRASE.finditer("".join(word.kind for word in words)):
            noun = self._noun(words[match.start() : match.end()])
            if noun is not None:
                found.setdefault(noun.text, noun)
        return list(found.values())

    def _noun(self, words: list[_Word]) -> Noun | None:
        nouns = [word for word in words if word.kind == "N"]
        adjectives = [word for word in words if word.kind == "A"]
        head = singular(nouns[-1].text.lower())
        if head in _NOT_VISIBLE or nouns[-1].text.lower() in _NOT_VISIBLE:
            return None
        kept = [*adjectives[-_PHRASE_ADJECTIVES:], *nouns] if self.phrases else nouns[-1:]
        text = " ".join([*(word.text.lower() for word in kept[:-1]), head])
        return Noun(text, kept[0].start, nouns[-1].end)


_PHRASE = re.compile("A*N+")


def _tagged(caption: str) -> list[_Word]:
    """Words with spans and kinds; words that no blank alone separates get a break between them."""
    from textblob.en import tag

    tagged: list[tuple[str, str, int]] = []
    position = 0
    for text, label in tag(caption):
        start = caption.find(text, position)
        if start >= 0:
            tagged.append((text, label[:2], start))
            position = start + len(text)
    words: list[_Word] = []
    for place, (text, label, start) in enumerate(tagged):
        before = tagged[place - 1][1] if place else ""
        after = tagged[place + 1][1] if place + 1 < len(tagged) else ""
        if words and not caption[words[-1].end : start].isspace():
            words.append(_Word("", "x", start, start))
        kind = _kind(text, label, before, after)
        if text.lower() in _SHARED_VERBS and after != "NN" and _has_two_subjects(tagged[:place]):
            kind = "x"
        words.append(_Word(text, kind, start, start + len(text)))
    return words


def _has_two_subjects(tagged: Sequence[tuple[str, str, int]]) -> bool:
    """Whether words end in a noun phrase that "and" joins to another noun: "a man & a woman"."""
    labels = ["&" if label == "CC" and text in ("and", "&") else label for text, label, _ in tagged]
    return re.search(r"NN,&,(DT,|PR,|CD,)?(JJ,)*(NN,)+$", ",".join([*labels, ""])) is not None


def _kind(text: str, label: str, before: str, after: str) -> str:
    lower = text.lower()
    if not _NAME.match(text) or not any(map(is_latin, text)):
        return "x"
    if lower in _VERBS and before in ("NN", "RB"):
        return "x"
    if lower in _ADJECTIVES or lower.rpartition("-")[2] in _ADJECTIVES:
        alone = after not in ("NN", "JJ", "VB")
        return "N" if alone and label == "NN" else "A"
    return {"NN": "N", "JJ": "A"}.get(label, "x")


class SpacyNouns:
    """Noun chunks by a spaCy model that the user has installed."""

    def __init__(self, model: str, *, phrases: bool = True) -> None:
        try:
            import spacy

            self._model = spacy.load(model, exclude=["ner", "textcat"])
        except (ImportError, OSError):
            raise DataError(
                f"nouns.extractor=spacy needs spaCy and its model {model!r}: "
                f"pip install spacy && python -m spacy download {model}"
            ) from None
        self.phrases = phrases

    def __call__(self, caption: str) -> list[Noun]:
        found: dict[str, Noun] = {}
        for chunk in self._model(caption).noun_chunks:
            head = chunk.root
            if head.pos_ not in ("NOUN", "PROPN") or head.lemma_.lower() in _NOT_VISIBLE:
                continue
            kinds = ("ADJ", "NOUN", "PROPN")
            kept = [t for t in chunk if t.pos_ in kinds and t.i < head.i] if self.phrases else []
            words = [*(t.text.lower() for t in kept), head.lemma_.lower()]
            start = kept[0].idx if kept else head.idx
            noun = Noun(" ".join(words), start, head.idx + len(head.text))
            found.setdefault(noun.text, noun)
        return list(found.values())


def _no_nouns(caption: str) -> list[Noun]:
    return []


def build_extractor(config: NounsConfig) -> NounExtractor:
    """The extractor that the settings name. Raises DataError where it is not installed."""
    if config.extractor == "none":
        return _no_nouns
    if config.extractor == "spacy":
        return SpacyNouns(config.spacy_model, phrases=config.phrases)
    return TextBlobNouns(phrases=config.phrases)


def in_other_language(config: NounsConfig, caption: str) -> bool:
    """Whether the configured extractor finds no nouns in `caption` for its language."""
    return config.extractor == "textblob" and not is_english(caption)


def nouns_to_json(nouns: Sequence[Noun]) -> list[dict[str, Any]]:
    """The form in which a sample's json keeps nouns: text and span in the caption."""
    return [{"text": noun.text, "span": [noun.start, noun.end]} for noun in nouns]


def nouns_from_json(value: Any, label: str) -> list[Noun]:
    """Nouns from a sample's json; plain strings are allowed and have the span (0, 0)."""
    if not isinstance(value, list):
        raise SampleJsonError(f"{label}: nouns must be a list, found {type(value).__name__}")
    nouns = []
    for item in value:
        if isinstance(item, str):
            item = {"text": item}
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            raise SampleJsonError(f"{label}: a noun must be a text or have one: {item!r:.80}")
        span = item.get("span", [0, 0])
        if not (isinstance(span, list) and [type(v) for v in span] == [int, int]):
            raise SampleJsonError(f"{label}: the span of {item['text']!r} must be two integers")
        name = clean(item["text"])
        if is_visible(name):
            nouns.append(Noun(name, span[0], span[1]))
    return nouns
