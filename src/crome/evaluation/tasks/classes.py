"""Answers as classes: precision, recall and F1 of each, and which is taken for which."""

from collections import Counter
from collections.abc import Sequence

from sklearn.metrics import precision_recall_fscore_support

from crome.evaluation.replies import letter_text
from crome.evaluation.tally import correct, mean_metrics
from crome.evaluation.task import Answers, Metric, Record, Scores
from crome.matching import plain

OTHER = "(other)"  # what is no expected answer of any row
MOST_CLASSES = 200  # more are free answers rather than classes, and get no numbers of their own


def tally_classes(name: str, records: Sequence[Record], answers: Answers) -> Scores:
    """Accuracy and macro F1; precision, recall and F1 by class; a confusion matrix.

    The classes are the expected answers of all records, the same but for case and space. A
    response that is none of them counts as `(other)`, which is always wrong.

    Args:
        name: Name of the metric.
        records: Records with "accepted", and with "options" where answers are letters.
        answers: A response, or the letter of an option, by id; absent or None is wrong.
    """
    labels: dict[str, str] = {}
    for record in records:
        label = letter_text(record["options"], record["answer"])
        labels.setdefault(plain(label), label)
    gold, given = [], []
    for record in records:
        gold.append(labels[plain(letter_text(record["options"], record["answer"]))])
        given.append(_class_of(record, answers.get(record["id"]), labels, gold[-1]))
    rows = {
        record["id"]: float(text == right)
        for record, text, right in zip(records, given, gold, strict=True)
    }
    metrics = mean_metrics(name, records, rows, ["kind"])
    names = list(labels.values())
    table = precision_recall_fscore_support(gold, given, labels=names, zero_division=0.0)
    found = dict(zip(("precision", "recall", "f1"), table[:3], strict=True))
    for measure, values in found.items():
        metrics[f"{name}/macro-{measure}"] = Metric(float(values.mean()), len(names))
    for k, label in enumerate(names[:MOST_CLASSES]):
        for measure, values in found.items():
            metrics[f"{name}/{measure} of {label}"] = Metric(float(values[k]), int(table[3][k]))
    confusion = {
        label: dict(Counter(g for g, right in zip(given, gold, strict=True) if right == label))
        for label in names[:MOST_CLASSES]
    }
    counts = {"classes": len(names)} | correct(rows)
    counts["no class"] = given.count(OTHER)
    return Scores(metrics, rows, counts, confusion=confusion)


def _class_of(record: Record, answer: str | None, labels: dict[str, str], gold: str) -> str:
    """The class of an answer: the expected one if the answer is accepted for it."""
    if answer is None:
        return OTHER
    text = plain(letter_text(record["options"], answer))
    if text in {plain(accepted) for accepted in record["accepted"]}:
        return gold
    return labels.get(text, OTHER)
