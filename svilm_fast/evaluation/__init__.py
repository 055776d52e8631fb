"""Evaluation of a video-text model: retrieval ranks, baselines, protocols."""

from svilm_fast.evaluation.baselines import chance_interval, colour_set_baseline
from svilm_fast.evaluation.embed import Embeddings, embed_clips, merge_ranks
from svilm_fast.evaluation.retrieval import (
    RetrievalOptions,
    RetrievalResult,
    evaluate_dataset,
    evaluate_retrieval,
    rank_embeddings,
    retrieval_table,
    write_retrieval,
)

__all__ = [
    "Embeddings",
    "RetrievalOptions",
    "RetrievalResult",
    "chance_interval",
    "colour_set_baseline",
    "embed_clips",
    "evaluate_dataset",
    "evaluate_retrieval",
    "merge_ranks",
    "rank_embeddings",
    "retrieval_table",
    "write_retrieval",
]
