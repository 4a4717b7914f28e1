"""Names of the metrics and prediction scores as they stand on axes, in table heads and on buttons."""

from overfocus.metrics.catalogue import CATALOGUE

TITLES = {
    "top_share": "Attention on the top k",
    "max_ratio": "Largest column sum",
    "gini": "Gini coefficient",
    "effective_tokens": "Effective tokens",
    "row_entropy": "Row entropy",
    "prefix_share": "Attention on prefix tokens",
    "token_cosine": "Cosine between tokens",
    "diversification": "Diversification",
    "attention_distance": "Attention distance",
    "token_norm": "Token norm",
    "norm_ratio": "Largest token norm",
    "outlier_share": "Outlying token norms",
    "outlier_received": "Attention on outlying tokens",
    "top_overlap": "Top-k overlap",
    "rank_correlation": "Rank correlation",
    "attention_cosine": "Attention cosine",
    "js_divergence": "Jensen–Shannon divergence",
    "received_shift": "Attention moved",
    "agreement": "Same prediction",
    "confidence_drop": "Confidence drop",
    "correct": "Accuracy",
    "output_cosine": "Output cosine",
    "image_iou": "IoU of the images",
    "mean_iou": "mIoU of the set",
}

UNITS = {
    "top_share": "share of attention",
    "max_ratio": "× uniform",
    "gini": "0 even … 1 one token",
    "effective_tokens": "share of N",
    "row_entropy": "share of ln N",
    "prefix_share": "share of attention",
    "token_cosine": "cosine",
    "diversification": "cosine",
    "attention_distance": "patches",
    "token_norm": "Euclidean norm",
    "norm_ratio": "× median",
    "outlier_share": "share of N",
    "outlier_received": "share of attention",
    "top_overlap": "share of k",
    "rank_correlation": "Spearman's ρ",
    "attention_cosine": "cosine",
    "js_divergence": "bits",
    "received_shift": "share of attention",
}

GROUPS = {
    "concentration": "Concentration — how few tokens receive the attention",
    "similarity, locality": "Similarity and locality — do all tokens look at the same place, and how far",
    "norms": "Token norms — are there artefact tokens, and do they receive the attention",
    "stability": "Stability — the same image, clean against corrupted",
}


def title_of(metric: str) -> str:
    """Name for people; the column's name where there is none."""
    return TITLES.get(metric, metric.replace("_", " "))


def unit_of(metric: str) -> str:
    """What an axis counts: "patches", "share of attention"."""
    return UNITS.get(metric, CATALOGUE[metric].unit)
