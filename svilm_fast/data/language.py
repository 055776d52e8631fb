"""Whether a caption is English, for the noun tagger that knows English only."""

from __future__ import annotations

import re
from functools import lru_cache

# Words without a lemma among nouns, verbs and adjectives.
_FUNCTION_WORDS = frozenset(
    """a about above across after again all along also although among an and another any anyone
    around as at because before behind below beneath beside besides between both but by could
    during each either enough etc every everyone everything few for from he her here hers herself
    him himself his how however i if in inside into it its itself just many me more most much my
    myself near neither no nor not nothing of off often on once one only onto or other others our
    ours out outside over own per quite she should since so some somebody someone something
    sometimes soon such than that the their them themselves then there these they this those
    though through to together too toward towards two under until up upon us very we what when
    where whether which while who whom whose why with within without would yet you your
    yourself""".split()  # noqa: SIM905
)
# Words of videos that are younger than the dictionary.
_NEW_WORDS = frozenset(
    """anime app apps blog blogger cosplay demo demoing drone drones emoji esports gameplay gamer
    gamers gaming gif gopro instagram ipad iphone livestream livestreaming minecraft online parkour
    podcast selfie selfies skatepark smartphone smartphones snapchat tablet tiktok timelapse trailer
    unboxing uploader vlog vlogger vlogging vlogs webcam website wifi youtube youtuber
    zumba""".split()  # noqa: SIM905
)
_OTHER_WORDS = _FUNCTION_WORDS | _NEW_WORDS
_WORD = re.compile(r"[^\W\d_]+")
_LATIN = re.compile(r"[A-Za-z\u00aa\u00ba\u00c0-\u024f\u1e00-\u1eff\ufb00-\ufb06\uff21-\uff5a]+")
_KNOWN_SHARE = 0.5


def is_latin(word: str) -> bool:
    """Whether a word is written in Latin letters alone."""
    return _LATIN.fullmatch(word) is not None


@lru_cache(maxsize=65536)
def is_english(text: str) -> bool:
    """Whether the English noun tagger may read `text`.

    False where most letters are not Latin, and where English words are less than half of the words
    in lower case (names are capitalised in most languages). English are function words and
    whatever has an entry in lemminflect's dictionary. One word alone is taken for English, and
    single letters do not count.
    """
    words = _WORD.findall(text)
    letters = sum(map(len, words))
    if sum(len(word) for word in words if is_latin(word)) * 2 < letters:
        return False
    lower = [word for word in words if word.islower()] if not text.isupper() else words
    lower = [word.lower() for word in lower if is_latin(word) and len(word) > 1]
    return len(lower) < 2 or sum(map(_is_known, lower)) >= _KNOWN_SHARE * len(lower)


@lru_cache(maxsize=65536)
def _is_known(word: str) -> bool:
    from lemminflect import getLemma

    return word in _OTHER_WORDS or any(
        getLemma(word, upos=kind, lemmatize_oov=False) for kind in ("NOUN", "VERB", "ADJ", "ADV")
    )
