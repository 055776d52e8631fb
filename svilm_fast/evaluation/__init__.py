"""Evaluation of a video-text model: retrieval ranks, baselines, protocols."""

from svilm_fast.evaluation.baselines import chance_interval, colour_set_baseline
from svilm_fast.evaluation.embed import Embeddings, embed_clips
from svilm_fast.evaluation.result import RetrievalResult, retrieval_table
from svilm_fast.evaluation.retrieval import RetrievalOptions, evaluate_dataset, rank_embeddings

__all__ = [
    "Embeddings",
    "RetrievalOptions",
    "RetrievalResult",
    "chance_interval",
    "colour_set_baseline",
    "embed_clips",
    "evaluate_dataset",
    "rank_embeddings",
    "retrieval_table",
]
