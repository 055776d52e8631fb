"""The texts of the report."""

from __future__ import annotations

from svilm_fast.core.text import counted
from svilm_fast.evaluation.pointing import PointingScore
from svilm_fast.evaluation.result import RetrievalResult

QUERIES = (
    "Each caption with the clips that the model ranks first, as film strips with their cosine "
    "scores. The right clip has a green frame. If it is not among the first, it is shown last with "
    "its rank."
)
CURVES = "From metrics.jsonl. Thin lines are logged values, thick lines their running mean."
ACCURACY = " Accuracy is that of finding the right partner in the batch."
GROUPS = (
    "Every video token belongs to one group token. The second row colours the tokens by their "
    "group in the last grouping block. Each noun of the caption is compared with all groups: the "
    "bars are its softmax over them, and its row highlights the tokens of the group that it "
    "attends to most."
)
POINTING = (
    " Pointing score: {score:.0%} of the attention of {nouns} of {clips} lies on the object that "
    "the noun names; pointing at a random token would reach {chance:.1%}. A noun scores the share "
    "of its group’s tokens that the object covers by at least a quarter, and an empty group scores "
    "nothing."
)
POINTING_TOO_SMALL = " Left out: {nouns} whose object covers a quarter of no token."
NO_GROUNDING = (
    "Grounding had weight 0 in this run: training compared no noun with the groups. The groups "
    "result from the other objectives alone."
)
NO_TEMPORAL = (
    "The temporal objective had weight 0 in this run: the assignment is that of an encoder trained "
    "without it."
)
TIME = (
    "Segments of another clip are pasted around a clip's own. The encoder does not see the mask. "
    "The mask only selects the segments whose means are the two centres, and a is the softmax over "
    "the similarities to both. A segment is part of its own centre, so the right side of 0.5 is "
    "easy to reach; a well trained encoder is far from 0.5."
)
TIME_HEAD = (
    "Segments of another clip are pasted around a clip's own. The temporal head reads all segments "
    "and does not see the mask. Its prediction a is the probability that a segment is the clip's "
    "own or pasted."
)
SIMILARITY = (
    "Cosine similarity between the segments of one clip. An encoder that ignores time makes them "
    "all similar. Temporal grouping separates a pasted segment from the clip's own."
)
BARS_ALT = "Bars of text-to-video recall at 1, 5 and 10 beside the colour-set baseline and chance"
CURVES_ALT = "Small charts over the training steps: loss and its parts, accuracy, scales, speed"
GROUPS_ALT = "Frames of some clips, their tokens coloured by group, and the group of each noun"
TIME_ALT = "Blended clips over time with their paste masks and the model's two-column assignment"
SIMILARITY_ALT = "Matrices of cosine similarity between segments, with frames along both sides"


def pointing(score: PointingScore, clips: int) -> str:
    """The pointing score, its chance level, and what was left out."""
    text = POINTING.format(
        score=score.score,
        chance=score.chance,
        nouns=counted(score.nouns, "noun"),
        clips=counted(clips, "clip"),
    )
    if score.too_small:
        text += POINTING_TOO_SMALL.format(nouns=counted(score.too_small, "noun"))
    return text


def retrieval(result: RetrievalResult) -> str:
    """Queries, gallery and ranking rule, and the meaning of the baseline rows."""
    found = result.embeddings
    text = (
        f"{result.protocol}: {counted(len(found.captions), 'caption')} "
        f"({result.distinct_captions} distinct) "
        f"and {counted(len(found.video_ids), 'video')}, ranked by cosine similarity. "
        "In brackets: 95 % bootstrap intervals. Ties count in expectation over a random order of "
        "the tied videos. "
        "Chance is the binomial 99.9 % interval of guessing. "
    )
    if result.colours:
        text += (
            "“Colour sets only” compares the set of colours named in the caption with the true set "
            f"of each clip ({counted(len(result.colours.colours), 'colour')}, "
            f"{counted(result.colours.distinct_clip_sets, 'different set')}), in expectation "
            "over ties. "
        )
    return text + f"Manifest {result.manifest[:16]}."
