"""What each metric is, in words and as data. Everything else that names metrics reads it here; no other list has to be kept.

A new metric is one function and one row: a function of the row's name in `overfocus.metrics` (or given in the row), and the row.
Registries, table columns, titles, units, expectations, `overfocus list metrics` and the report follow from the row.
"""

import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from overfocus.settings import shown, typed

TOP_FRACTION = 0.05
"""f of k = max(1, round(f·N)), unless asked otherwise."""

_NUMBER = re.compile(r"[−-]?\d+(\.\d+)?")


@dataclass(frozen=True)
class TokenCounts:
    """What the value of a symbol depends on."""

    tokens: int
    """N, the patch tokens."""
    prefix_tokens: int = 0
    grid: tuple[int, int] | None = None
    """(rows, columns) of the patches."""
    top_fraction: float = TOP_FRACTION

    @property
    def top(self) -> int:
        """k, the number of tokens that count as the most attended."""
        return top_count(self.tokens, self.top_fraction)


class Level(str):
    """A value in symbols, which is its text, and how it is computed: "k/N", "1", "undefined".

    >>> Level("k/N", lambda counts: counts.top / counts.tokens).value(TokenCounts(20))
    0.05
    >>> Level("−1").number
    -1.0
    """

    _computed: Callable[[TokenCounts], float] | None

    def __new__(cls, text: str, computed: Callable[[TokenCounts], float] | None = None) -> "Level":
        level = super().__new__(cls, text)
        level._computed = computed
        return level

    @property
    def number(self) -> float:
        """The value where it is the same for every layer; NaN where it depends on the layer or there is none."""
        return float(self.replace("−", "-")) if _NUMBER.fullmatch(self) else math.nan

    def value(self, counts: TokenCounts) -> float:
        """The value in a layer with that many tokens; NaN if there is none."""
        return self.number if self._computed is None else self._computed(counts)


def top_count(tokens: int, top_fraction: float) -> int:
    """Number of tokens that count as the most attended: k = max(1, round(f·N)).

    Raises:
        ValueError: `top_fraction` is not in (0, 1].
    """
    if not 0 < top_fraction <= 1:
        raise ValueError(f"expected top_fraction in (0, 1], got {top_fraction}; 0.05 takes the top twentieth of the tokens")
    return max(1, round(top_fraction * tokens))


def mean_distance(grid: tuple[int, int]) -> float:
    """Mean Euclidean distance, in patches, between two patches of a (rows, columns) grid that are drawn independently."""
    rows, columns = grid
    total = 0.0
    for down in range(rows):
        for right in range(columns):
            # a displacement of (down, right) fits (rows - down)(columns - right) times, and as often in each mirrored direction
            mirrored = (1 if down == 0 else 2) * (1 if right == 0 else 2)
            total += mirrored * (rows - down) * (columns - right) * math.hypot(down, right)
    return total / (rows * columns) ** 2


Group = Literal["concentration", "similarity", "locality", "norms", "stability", "prediction", "custom"]

HEADINGS: dict[Group, str] = {
    "concentration": "Concentration — how few tokens receive the attention",
    "similarity": "Similarity — do all tokens look at the same place",
    "locality": "Locality — how far tokens look",
    "norms": "Token norms — are there outlier tokens, and do they receive the attention",
    "custom": "Custom metrics",
    "stability": "Stability — the same image, clean against corrupted",
    "prediction": "Prediction — does the output follow",
}
"""What each group of metrics shows, in the order of a report."""

ALL_KINDS = ("global", "window", "pooled", "class")
SELF_KINDS = ("global", "window")
PATCH_KINDS = ("global", "window", "pooled")

_RESERVED = frozenset(
    "image name label corruption severity layer module kind head metric received mean low high count skipped".split()
)
"""Columns of the tables beside the metrics."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric. N is the number of patch tokens, k = max(1, round(f·N)) with f = 0.05 unless asked otherwise.

    For a custom metric give `name` and `function`, and as much of the rest as the report should say:

        Metric(name="peak", function=lambda weights: weights.amax((1, 2, 3)), title="Largest weight", overfocused="high")
    """

    name: str
    """Column of the tables; a Python identifier."""
    group: Group = "custom"
    """"stability" is for functions of a clean and a corrupted map."""
    title: str = ""
    """Name for people, used everywhere; from `name` where empty."""
    formula: str = ""
    lowest: Level = field(default=Level("−∞"))
    """Smallest possible value."""
    highest: Level = field(default=Level("∞"))
    """Largest possible value."""
    unit: str = "1"
    """What an axis counts; "1" for a plain ratio."""
    high: str = ""
    """What a high value means."""
    overfocused: Literal["high", "low", "neither"] = "neither"
    """Which end of the range speaks of overfocused or fragile attention."""
    uniform: Level = field(default=Level("undefined"))
    """Value where attention is uniform over all keys; "undefined" where it has none."""
    chance: Level = field(default=Level("none"))
    """Value of an uninformed guess; "none" where there is no such level."""
    identical: float | None = None
    """Value for two identical maps (or outputs); None for metrics of one map."""
    kinds: tuple[str, ...] = PATCH_KINDS
    """Kinds of attention that it is measured on; empty for metrics of the prediction and of norms, which need no attention."""
    scale: tuple[Level, Level] | None = None
    """What becomes 0 and 1 where layers of different N are put together; None where the value itself is comparable."""
    function: Callable[..., Any] | None = None
    """Of a custom metric: `function(weights, …)`, or `function(clean, corrupted, …)` in the group "stability", of attention
    weights (batch, heads, queries, keys); returns (batch,). Of the keyword arguments `prefix_tokens`, `key_prefix_tokens`,
    `grid`, `key_grid`, `top_fraction` it gets those that it takes. None: the built-in function of that name."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier() or self.name in _RESERVED:
            raise ValueError(f"expected the name of a metric to be an identifier that is no other column, got {shown(self.name)}")
        if not isinstance(self.group, str) or self.group not in get_args(Group):
            raise ValueError(
                f"expected the group of metric {self.name} to be one of {', '.join(HEADINGS)}; got {shown(self.group)}"
            )
        if not (self.function is None or callable(self.function)):
            raise ValueError(f"expected a function in the row of metric {self.name}, got {shown(self.function)}")
        if not isinstance(self.title, str):
            raise ValueError(f"expected the title of metric {self.name} to be a text, got {shown(self.title)}")
        if not self.title:
            object.__setattr__(self, "title", self.name.replace("_", " ").capitalize())
        for end in ("lowest", "highest", "uniform", "chance"):
            if not isinstance(getattr(self, end), Level):
                given = getattr(self, end)
                object.__setattr__(self, end, Level(given if isinstance(given, str) else shown(given)))

    @property
    def compares(self) -> bool:
        """Whether it compares a clean map with a corrupted one."""
        return self.group == "stability"

    @property
    def of_attention(self) -> bool:
        """Whether it is measured on attention weights."""
        return bool(self.kinds) and self.group not in ("norms", "prediction")

    @property
    def per_layer(self) -> bool:
        """Whether it is a column of the metrics table, which has a row per layer."""
        return self.group != "prediction"

    def distance(self, values: Any) -> Any:
        """|identical − value|: how far the compared maps are from equal.

        Raises:
            ValueError: it compares nothing.
        """
        if self.identical is None:
            raise ValueError(f"{self.name} is measured on one map; only metrics of two maps have a distance from equal")
        return abs(self.identical - values)

    def describe(self) -> dict[str, Any]:
        """The row without its function, as JSON has it; `Metric(**described)` is the same row."""
        described = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("function", "scale")}
        return described | {"kinds": list(self.kinds)}


_TOP_OF_N = Level("k/N", lambda counts: counts.top / counts.tokens)
_N = Level("N", lambda counts: float(counts.tokens))
_ALL_BUT_ONE = Level("1 − 1/N", lambda counts: 1 - 1 / counts.tokens)
_MEAN_DISTANCE = Level(
    "mean distance between two patches", lambda counts: mean_distance(counts.grid) if counts.grid else math.nan
)
_ONE_OF_N = Level("1/N", lambda counts: 1 / counts.tokens)
_ONE_UNLESS_ALONE = Level("1", lambda counts: 1.0 if counts.tokens > 1 else math.nan)
_CLASSES = Level("1/classes")

_ROWS = (
    Metric(
        name="top_share",
        title="Attention on the top k",
        group="concentration",
        formula="Σ_{j∈T_k(r)} r_j",
        lowest=_TOP_OF_N,
        highest=Level("1"),
        unit="share of attention",
        high="a few tokens take all attention",
        overfocused="high",
        uniform=_TOP_OF_N,
        scale=(_TOP_OF_N, Level("1")),
        kinds=ALL_KINDS,
    ),
    Metric(
        name="max_ratio",
        title="Most attended token",
        group="concentration",
        formula="N · max_j r_j",
        lowest=Level("1"),
        highest=_N,
        unit="× uniform",
        high="the most attended token receives this many times its even share",
        overfocused="high",
        uniform=Level("1"),
        scale=(Level("1"), _N),
        kinds=ALL_KINDS,
    ),
    Metric(
        name="gini",
        title="Gini coefficient",
        group="concentration",
        formula="Σ_{a,b} |r_a − r_b| / (2 N)",
        lowest=Level("0"),
        highest=_ALL_BUT_ONE,
        unit="0 even … 1 one token",
        high="attention is shared out unequally among the tokens",
        overfocused="high",
        uniform=Level("0"),
        scale=(Level("0"), _ALL_BUT_ONE),
        kinds=ALL_KINDS,
    ),
    Metric(
        name="effective_tokens",
        title="Effective tokens",
        group="concentration",
        formula="exp(−Σ_j r_j ln r_j) / N",
        lowest=_ONE_OF_N,
        highest=Level("1"),
        unit="share of N",
        high="attention reaches all tokens; low means that a few receive it",
        overfocused="low",
        uniform=Level("1"),
        scale=(_ONE_OF_N, Level("1")),
        kinds=ALL_KINDS,
    ),
    Metric(
        name="row_entropy",
        title="Row entropy",
        group="concentration",
        formula="mean_{i∈P} H(Ā_P,i / Σ_j Ā_P,ij) / ln N",
        lowest=Level("0"),
        highest=Level("1"),
        unit="share of ln N",
        high="each token spreads its attention over all tokens; low means that it looks at one",
        overfocused="low",
        uniform=_ONE_UNLESS_ALONE,
        kinds=ALL_KINDS,
    ),
    Metric(
        name="prefix_share",
        title="Attention on prefix tokens",
        group="concentration",
        formula="mean_{i∈P} Σ_{j∉P} Ā_ij",
        lowest=Level("0"),
        highest=Level("1"),
        unit="share of attention",
        high="patches give their attention to class, distillation or register tokens",
        uniform=Level("prefix/(prefix + N)", lambda counts: counts.prefix_tokens / (counts.prefix_tokens + counts.tokens)),
        kinds=ALL_KINDS,
    ),
    Metric(
        name="token_cosine",
        title="Cosine between tokens",
        group="similarity",
        formula="mean_{i≠j∈P} cos(Ā_P,i , Ā_P,j)",
        lowest=Level("0"),
        highest=Level("1"),
        unit="cosine",
        high="every token attends to the same places",
        overfocused="high",
        uniform=_ONE_UNLESS_ALONE,
        kinds=PATCH_KINDS,
    ),
    Metric(
        name="diversification",
        title="Similarity to the mean row",
        group="similarity",
        formula="mean_{i∈P} cos(m>t, Ā_P,i>t), m = mean_i Ā_P,i, t = 2/N",
        lowest=Level("0"),
        highest=Level("1"),
        unit="cosine",
        high="every token looks at the tokens that the layer as a whole looks at",
        overfocused="high",
        uniform=Level("0"),
        kinds=SELF_KINDS,
    ),
    Metric(
        name="attention_distance",
        title="Attention distance",
        group="locality",
        formula="mean_{i∈P} Σ_j p_ij · d(i,j), p_i = Ā_P,i / Σ_j Ā_P,ij",
        lowest=Level("0"),
        highest=Level(
            "diagonal of the patch grid",
            lambda counts: math.hypot(counts.grid[0] - 1, counts.grid[1] - 1) if counts.grid else math.nan,
        ),
        unit="patches",
        high="tokens attend to distant patches; low means to their neighbours",
        uniform=_MEAN_DISTANCE,
        scale=(Level("0"), _MEAN_DISTANCE),
        kinds=PATCH_KINDS,
    ),
    Metric(
        name="token_norm",
        title="Token norm",
        group="norms",
        formula="mean_{i∈P} ‖x_i‖₂, x the tokens that leave the block",
        lowest=Level("0"),
        highest=Level("∞"),
        unit="Euclidean norm",
        high="the block's tokens are long; compare layers of one model only",
        kinds=(),
    ),
    Metric(
        name="norm_ratio",
        title="Largest norm over median",
        group="norms",
        formula="max_{i∈P} ‖x_i‖₂ / median_{i∈P} ‖x_i‖₂",
        lowest=Level("1"),
        highest=Level("∞"),
        unit="× median",
        high="a patch token stands out by its norm, typically an artefact on background",
        overfocused="high",
        kinds=(),
    ),
    Metric(
        name="outlier_share",
        title="Tokens of outlier norm",
        group="norms",
        formula="|O| / N, O = {i∈P : ‖x_i‖₂ > 3 · median}",
        lowest=Level("0"),
        highest=Level("1"),
        unit="share of N",
        high="many patch tokens have outlier norms",
        overfocused="high",
        kinds=(),
    ),
    Metric(
        name="outlier_received",
        title="Attention on outlier tokens",
        group="norms",
        formula="Σ_{j∈O} r_j",
        lowest=Level("0"),
        highest=Level("1"),
        unit="share of attention",
        high="the tokens that receive the attention are those with outlier norms",
        overfocused="high",
        chance=Level("outlier_share"),
        kinds=(),
    ),
    Metric(
        name="top_overlap",
        title="Top-k overlap",
        group="stability",
        formula="|T_k(r) ∩ T_k(r')| / k",
        lowest=Level("0"),
        highest=Level("1"),
        unit="share of k",
        high="the most attended tokens stay the same; low means that they change",
        overfocused="low",
        uniform=Level("1"),
        chance=_TOP_OF_N,
        identical=1.0,
        scale=(_TOP_OF_N, Level("1")),
        kinds=ALL_KINDS,
    ),
    Metric(
        name="rank_correlation",
        title="Rank correlation",
        group="stability",
        formula="Spearman's ρ of r and r'",
        lowest=Level("−1"),
        highest=Level("1"),
        unit="Spearman's ρ",
        high="the order of the tokens stays the same",
        overfocused="low",
        chance=Level("0"),
        identical=1.0,
        kinds=ALL_KINDS,
    ),
    Metric(
        name="attention_cosine",
        title="Attention cosine",
        group="stability",
        formula="mean_{i∈P} cos(Ā_P,i , Ā'_P,i)",
        lowest=Level("0"),
        highest=Level("1"),
        unit="cosine",
        high="each token attends to the same places as before",
        overfocused="low",
        uniform=Level("1"),
        identical=1.0,
        kinds=ALL_KINDS,
    ),
    Metric(
        name="js_divergence",
        title="Jensen–Shannon divergence",
        group="stability",
        formula="mean_{i∈P} JS(p_i , p'_i)",
        lowest=Level("0"),
        highest=Level("1"),
        unit="bits",
        high="the attention of each token has diverged",
        overfocused="high",
        uniform=Level("0"),
        identical=0.0,
        kinds=ALL_KINDS,
    ),
    Metric(
        name="received_shift",
        title="Attention moved",
        group="stability",
        formula="½ Σ_j |r_j − r'_j|",
        lowest=Level("0"),
        highest=Level("1"),
        unit="share of attention",
        high="attention has moved to other tokens",
        overfocused="high",
        uniform=Level("0"),
        identical=0.0,
        kinds=ALL_KINDS,
    ),
    Metric(
        name="agreement",
        title="Same prediction",
        group="prediction",
        formula="[argmax p' = argmax p]",
        lowest=Level("0"),
        highest=Level("1"),
        high="the predicted class stays the same",
        overfocused="low",
        chance=_CLASSES,
        identical=1.0,
        kinds=(),
    ),
    Metric(
        name="confidence_drop",
        title="Confidence drop",
        group="prediction",
        formula="p_c − p'_c, c = argmax p",
        lowest=Level("−1"),
        highest=Level("1"),
        high="the class predicted for the clean image loses probability",
        overfocused="high",
        identical=0.0,
        kinds=(),
    ),
    Metric(
        name="correct",
        title="Accuracy",
        group="prediction",
        formula="[argmax p' = label]",
        lowest=Level("0"),
        highest=Level("1"),
        high="the predicted class is the label",
        overfocused="low",
        chance=_CLASSES,
        kinds=(),
    ),
    Metric(
        name="output_cosine",
        title="Output cosine",
        group="prediction",
        formula="cos(y, y'), y what the model returns",
        lowest=Level("−1"),
        highest=Level("1"),
        high="the output keeps its direction",
        overfocused="low",
        identical=1.0,
        kinds=(),
    ),
    Metric(
        name="image_iou",
        title="IoU of the images",
        group="prediction",
        formula="mean over the classes of an image of |S_c ∩ L_c| / |S_c ∪ L_c|",
        lowest=Level("0"),
        highest=Level("1"),
        high="the predicted segments of each image cover the labelled ones",
        overfocused="low",
        kinds=(),
    ),
    Metric(
        name="mean_iou",
        title="mIoU of the set",
        group="prediction",
        formula="mean over classes of Σ |S_c ∩ L_c| / Σ |S_c ∪ L_c|, sums over images",
        lowest=Level("0"),
        highest=Level("1"),
        high="the predicted segments cover the labelled ones, pixels of all images counted together",
        overfocused="low",
        kinds=(),
    ),
)

CATALOGUE: dict[str, Metric] = {metric.name: metric for metric in _ROWS}
"""Every metric by name, in the order of the tables: the built-in ones, then custom ones that were used or read."""

BUILT_IN: tuple[Metric, ...] = _ROWS


@typed(ValueError)
def select_metrics(metrics: Sequence[str | Callable[..., Any] | Metric] | None = None) -> tuple[Metric, ...]:
    """The rows of the metrics that are asked for, per layer: names, functions, or rows; None for all built-in ones.

    A function becomes a row named after it: of the group "stability" where it takes two maps. Custom rows are added to
    the catalogue, so that tables and reports know them.

    Raises:
        ValueError: an unknown name, a name that is taken, or a function without a name.
    """
    if metrics is None:
        return tuple(metric for metric in BUILT_IN if metric.per_layer)
    chosen: dict[str, Metric] = {}
    for given in metrics:
        metric = metric_named(given) if isinstance(given, str) else given if isinstance(given, Metric) else _row_of(given)
        if not metric.per_layer:
            raise ValueError(f"{metric.name} is a score of the prediction, measured in every run; expected metrics of attention")
        if metric.function is not None:
            register_metric(metric)
        elif CATALOGUE.get(metric.name) is not metric:
            raise ValueError(f"expected a function in the row of metric {metric.name}")
        if metric.name in chosen:
            raise ValueError(f"metric {metric.name} is given twice")
        chosen[metric.name] = metric
    if not chosen:
        raise ValueError("expected at least one metric, got none")
    return tuple(chosen.values())


@typed(ValueError)
def register_metric(metric: Metric) -> None:
    """Add a custom row to the catalogue, or put it in place of one of that name: titles and units of a saved run, say.

    Raises:
        ValueError: the name is that of a built-in metric.
    """
    if any(metric.name == built_in.name for built_in in BUILT_IN):
        raise ValueError(f"{metric.name} is the name of a built-in metric; choose another name")
    CATALOGUE[metric.name] = metric


def _row_of(function: Callable[..., Any]) -> Metric:
    name = getattr(function, "__name__", "")
    if not callable(function) or not name.isidentifier():
        raise ValueError(f"expected names of metrics, named functions or rows of the catalogue; got {shown(function)}")
    required = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
        and parameter.name not in KEYWORDS
    ]
    if len(required) not in (1, 2):
        raise ValueError(f"expected metric {name} to take (weights, …) or (clean, corrupted, …), got {len(required)} arguments")
    about = (inspect.getdoc(function) or "").partition("\n")[0]
    compares = len(required) == 2
    return Metric(name=name, group="stability" if compares else "custom", high=about, function=function)


KEYWORDS = ("prefix_tokens", "key_prefix_tokens", "grid", "key_grid", "top_fraction")
"""What custom functions may ask for beside the weights."""


@typed(ValueError)
def metric_named(name: str) -> Metric:
    """The row of a metric.

    Raises:
        ValueError: no metric has that name; the message lists the names.
    """
    if name not in CATALOGUE:
        raise ValueError(f"expected a metric, one of {', '.join(CATALOGUE)}; got {shown(name)}")
    return CATALOGUE[name]


def title_of(name: str) -> str:
    """Name of a metric or score for people; the column's name where it has no row.

    >>> title_of("js_divergence")
    'Jensen–Shannon divergence'
    """
    return CATALOGUE[name].title if name in CATALOGUE else name.replace("_", " ")


@typed(ValueError)
def uniform_value(
    name: str,
    tokens: int,
    *,
    prefix_tokens: int = 0,
    grid: tuple[int, int] | None = None,
    top_fraction: float = TOP_FRACTION,
) -> float:
    """Value of metric `name` where each query spreads its attention evenly over all keys; NaN where it has none.

    `tokens` is the number N of patch tokens; `grid` their (rows, columns), which attention_distance needs.

    >>> round(uniform_value("top_share", 196), 3)
    0.051
    """
    return metric_named(name).uniform.value(TokenCounts(tokens, prefix_tokens, grid, top_fraction))


@typed(ValueError)
def chance_level(name: str, tokens: int, *, top_fraction: float = TOP_FRACTION) -> float:
    """Value of metric `name` for an uninformed guess among `tokens` patch tokens; NaN where there is no such level.

    >>> round(chance_level("top_overlap", 196), 3)
    0.051
    """
    return metric_named(name).chance.value(TokenCounts(tokens, top_fraction=top_fraction))
