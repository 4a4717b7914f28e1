"""The figures of an evaluation in one file: clean, under each corruption, mCE and what it is relative to."""

from math import isnan
from typing import Any

from overfocus.evaluation.corruption_error import corruption_error
from overfocus.evaluation.evaluation import Evaluation
from overfocus.evaluation.results import errors_of
from overfocus.evaluation.summary_files import describe_subject, write_files


def write_summary(evaluation: Evaluation, baseline: Evaluation | None) -> None:
    """Write evaluation.json and evaluation.csv into the run folder.

    evaluation.json: data (as `describe_subject`), clean and corrupted (means over corruptions and severities of top1, top5,
    ece, nll; top5 null for models of at most five classes), per_corruption (top-1 means over severities), flips (of films), mce
    (as `CorruptionError`), notes. Of a film, the figures are those of its first frame.
    evaluation.csv is `Evaluation.table`.
    """
    info, table = evaluation.run.info, evaluation.table
    corrupted = table[table["severity"] > 0]
    clean = table[table["severity"] == 0]
    errors, clean_error = errors_of(table)
    by = None
    if baseline is not None:
        by = (f"the baseline {baseline.path.name}", *errors_of(baseline.table))
    imagenet = info["checkpoint"]["num_classes"] == 1000 and info["imagenet_labels"]
    made = info["settings"]["made"]
    content: dict[str, Any] = {
        **describe_subject(info),
        "clean": _means(clean),
        "corrupted": _means(corrupted),
        "per_corruption": {
            str(name): float(value) for name, value in corrupted.groupby("corruption", sort=False)["top1"].mean().items()
        },
        "flips": _flips(evaluation) if made == "ImageNet-P" else None,
        "mce": corruption_error(errors, clean_error, made=made, imagenet=imagenet, baseline=by).as_dict()
        if errors and made != "ImageNet-P"
        else None,
        "notes": info["notes"],
    }
    write_files(evaluation, content)


def _flips(evaluation: Evaluation) -> dict[str, Any]:
    """Flip rate of each perturbation and their mean, shares of 0 … 1; not divided by AlexNet's."""
    films = evaluation.run.predictions.groupby("corruption", sort=False)["agreement"].mean()
    rates = {str(name): 1 - float(value) for name, value in films.items()}
    return {"mean_flip_rate": sum(rates.values()) / len(rates), "perturbations": rates}


def _means(table: Any) -> dict[str, float | None] | None:
    """Means of the columns, None for one that is not defined."""
    if not len(table):
        return None
    means = {name: float(table[name].mean()) for name in ("top1", "top5", "ece", "nll")}
    return {name: None if isnan(mean) else mean for name, mean in means.items()}
