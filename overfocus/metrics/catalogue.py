"""What each metric is, in words and as data: for `overfocus list metrics`, for the report, and for whoever reads a table."""

from dataclasses import dataclass
from typing import Literal

Group = Literal["concentration", "similarity", "locality", "norms", "stability", "prediction"]

ALL_KINDS = ("global", "window", "pooled", "class")
SELF_KINDS = ("global", "window")
PATCH_KINDS = ("global", "window", "pooled")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric; N is the number of patch tokens, k = max(1, round(f·N)) with f = 0.05 unless told otherwise."""

    name: str
    group: Group
    formula: str
    lowest: str
    """Smallest possible value, as a number or in terms of N and k."""
    highest: str
    """Largest possible value, as a number or in terms of N and k."""
    unit: str = "1"
    """Unit of the value; "1" for a plain ratio."""
    high: str
    """What a high value means."""
    overfocused: Literal["high", "low", "neither"] = "neither"
    """Which end of the range speaks of overfocused or fragile attention."""
    uniform: str
    """Value where attention is uniform over all keys; "undefined" where it has none."""
    chance: str = "none"
    """Value of an uninformed guess; "none" where there is no such level."""
    kinds: tuple[str, ...]
    """Kinds of attention that it is measured on; empty for metrics of the prediction and of norms, which need no attention."""


_METRICS = (
    Metric(
        name="top_share",
        group="concentration",
        formula="Σ_{j∈T_k(r)} r_j",
        lowest="k/N",
        highest="1",
        high="a few tokens take all attention",
        overfocused="high",
        uniform="k/N",
        kinds=ALL_KINDS,
    ),
    Metric(
        name="max_ratio",
        group="concentration",
        formula="N · max_j r_j",
        lowest="1",
        highest="N",
        high="the most attended token receives that many times its even share",
        overfocused="high",
        uniform="1",
        kinds=ALL_KINDS,
    ),
    Metric(
        name="gini",
        group="concentration",
        formula="Σ_{a,b} |r_a − r_b| / (2 N)",
        lowest="0",
        highest="1 − 1/N",
        high="attention is shared out unequally among the tokens",
        overfocused="high",
        uniform="0",
        kinds=ALL_KINDS,
    ),
    Metric(
        name="effective_tokens",
        group="concentration",
        formula="exp(−Σ_j r_j ln r_j) / N",
        lowest="1/N",
        highest="1",
        high="attention reaches all tokens; low means that a few receive it",
        overfocused="low",
        uniform="1",
        kinds=ALL_KINDS,
    ),
    Metric(
        name="row_entropy",
        group="concentration",
        formula="mean_{i∈P} H(Ā_P,i / Σ_j Ā_P,ij) / ln N",
        lowest="0",
        highest="1",
        high="each token spreads its attention over all tokens; low means that it looks at one",
        overfocused="low",
        uniform="1",
        kinds=ALL_KINDS,
    ),
    Metric(
        name="prefix_share",
        group="concentration",
        formula="mean_{i∈P} Σ_{j∉P} Ā_ij",
        lowest="0",
        highest="1",
        high="patches give their attention to class, distillation or register tokens",
        uniform="prefix/(prefix + N)",
        kinds=ALL_KINDS,
    ),
    Metric(
        name="token_cosine",
        group="similarity",
        formula="mean_{i≠j∈P} cos(Ā_P,i , Ā_P,j)",
        lowest="0",
        highest="1",
        high="every token attends alike",
        overfocused="high",
        uniform="1",
        kinds=PATCH_KINDS,
    ),
    Metric(
        name="diversification",
        group="similarity",
        formula="mean_{i∈P} cos(m>t, Ā_P,i>t), m = mean_i Ā_P,i, t = 2/N",
        lowest="0",
        highest="1",
        high="every token looks at the tokens that the layer as a whole looks at",
        overfocused="high",
        uniform="0",
        kinds=SELF_KINDS,
    ),
    Metric(
        name="attention_distance",
        group="locality",
        formula="mean_{i∈P} Σ_j p_ij · d(i,j), p_i = Ā_P,i / Σ_j Ā_P,ij",
        lowest="0",
        highest="diagonal of the patch grid",
        unit="patches",
        high="tokens attend far away; low means that they attend to their neighbours",
        uniform="mean distance between two patches",
        kinds=PATCH_KINDS,
    ),
    Metric(
        name="token_norm",
        group="norms",
        formula="mean_{i∈P} ‖x_i‖₂, x the tokens that leave the block",
        lowest="0",
        highest="∞",
        unit="activation",
        high="the block's tokens are long; compare layers of one model only",
        uniform="undefined",
        kinds=(),
    ),
    Metric(
        name="norm_ratio",
        group="norms",
        formula="max_{i∈P} ‖x_i‖₂ / median_{i∈P} ‖x_i‖₂",
        lowest="1",
        highest="∞",
        high="a patch token sticks out by its norm, an artefact where the image has nothing",
        overfocused="high",
        uniform="undefined",
        kinds=(),
    ),
    Metric(
        name="outlier_share",
        group="norms",
        formula="|O| / N, O = {i∈P : ‖x_i‖₂ > 3 · median}",
        lowest="0",
        highest="1",
        high="many patch tokens have outlying norms",
        overfocused="high",
        uniform="undefined",
        kinds=(),
    ),
    Metric(
        name="outlier_received",
        group="norms",
        formula="Σ_{j∈O} r_j",
        lowest="0",
        highest="1",
        high="the tokens that receive the attention are those of outlying norm",
        overfocused="high",
        uniform="undefined",
        chance="outlier_share",
        kinds=(),
    ),
    Metric(
        name="top_overlap",
        group="stability",
        formula="|T_k(r) ∩ T_k(r')| / k",
        lowest="0",
        highest="1",
        high="the most attended tokens stay the same; low means that they change",
        overfocused="low",
        uniform="1",
        chance="k/N",
        kinds=ALL_KINDS,
    ),
    Metric(
        name="rank_correlation",
        group="stability",
        formula="Spearman's ρ of r and r'",
        lowest="−1",
        highest="1",
        high="the order of the tokens stays the same",
        overfocused="low",
        uniform="undefined",
        chance="0",
        kinds=ALL_KINDS,
    ),
    Metric(
        name="attention_cosine",
        group="stability",
        formula="mean_{i∈P} cos(Ā_P,i , Ā'_P,i)",
        lowest="0",
        highest="1",
        high="each token attends as it did",
        overfocused="low",
        uniform="1",
        kinds=ALL_KINDS,
    ),
    Metric(
        name="js_divergence",
        group="stability",
        formula="mean_{i∈P} JS(p_i , p'_i)",
        lowest="0",
        highest="1",
        unit="bits",
        high="the attention of each token has diverged",
        overfocused="high",
        uniform="0",
        kinds=ALL_KINDS,
    ),
    Metric(
        name="received_shift",
        group="stability",
        formula="½ Σ_j |r_j − r'_j|",
        lowest="0",
        highest="1",
        high="attention has moved to other tokens",
        overfocused="high",
        uniform="0",
        kinds=ALL_KINDS,
    ),
    Metric(
        name="agreement",
        group="prediction",
        formula="[argmax p' = argmax p]",
        lowest="0",
        highest="1",
        high="the predicted class stays the same",
        overfocused="low",
        uniform="undefined",
        chance="1/classes",
        kinds=(),
    ),
    Metric(
        name="confidence_drop",
        group="prediction",
        formula="p_c − p'_c, c = argmax p",
        lowest="−1",
        highest="1",
        high="the class predicted on the clean image loses probability",
        overfocused="high",
        uniform="undefined",
        kinds=(),
    ),
    Metric(
        name="correct",
        group="prediction",
        formula="[argmax p' = label]",
        lowest="0",
        highest="1",
        high="the predicted class is the label",
        overfocused="low",
        uniform="undefined",
        chance="1/classes",
        kinds=(),
    ),
)

CATALOGUE: dict[str, Metric] = {metric.name: metric for metric in _METRICS}
"""Every metric by name, in the order of the tables."""
