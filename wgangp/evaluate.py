"""The scores of a trained run, in a table and in FOLDER/scores.jsonl."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wgangp.checkpoint import list_checkpoints
from wgangp.config import find_device, restore
from wgangp.logs import append_line, collect_provenance, read_metrics
from wgangp.metrics.scores import build_scores, find_best
from wgangp.report import describe_budget, leave_unchanged
from wgangp.tables import markdown_table

__all__ = ["evaluate"]


def evaluate(
    run: str,
    scores: list[str] | None = None,
    n: int | None = None,
    seed: int = 0,
    reference: str | None = None,
    weights: str | None = None,
    classifier: str | None = None,
    step: int | None = None,
    data_root: str | None = None,
    device: str = "auto",
    trust: Sequence[str] = (),
) -> str:
    """Score the generator of a run folder; append a record per score to scores.jsonl, and return a table as Markdown.

    The generator is the averaged one if the run has an average (ema.decay).

    Args:
        run: the run folder.
        scores, n, seed, reference, weights, classifier: as in `metrics.scores.build_scores`.
        step: of the checkpoint. None: the newest, and, if the run was evaluated during training, the one with the best
            score, too. They are two rows: the best of many evaluations is better than a run is on average.
        data_root: the folder (for text, the file) where the data is now; None: where it was during training.
        device, trust: as in `config.load_run`.

    Raises:
        ValueError: as in `config.restore` and `build_scores`; a score cannot be computed. Scores that were computed
            before are kept.
    """
    folder, torch_device = Path(run), find_device(device)
    data: Any = None
    rows: list[dict[str, str]] = []
    small = describe_budget(folder)
    notes = {small: None} if small else {}  # in order, without repetitions
    for number, label in _list_checkpoints(folder, step):
        place = {"step": number, "read_data": True, "data_root": data_root, "trust": trust}
        trained, number = restore(folder, torch_device, **place)
        data = data or trained.data
        trained = replace(trained, data=data)  # the same object, so that real images are measured once
        for score in build_scores(trained, scores, n, seed, reference, weights, classifier):
            numbers = leave_unchanged(score.compute)(trained, number)
            record = {
                "score": score.name,
                "step": number,
                "checkpoint": label,
                "values": {name: value for name, value in numbers.items() if not name.startswith("real_")},
                "real": {name[5:]: value for name, value in numbers.items() if name.startswith("real_")},
                "settings": score.settings,
                **collect_provenance(torch_device),
            }
            append_line(folder / "scores.jsonl", record)
            rows += _list_rows(record)
            settings = ", ".join(f"{key} {value}" for key, value in score.settings.items())
            notes[f"{score.name}: {settings}"] = None
    return "\n".join([markdown_table(rows), "", *(f"- {note}" for note in notes)])


def _list_checkpoints(folder: Path, step: int | None) -> list[tuple[int | None, str]]:
    """Return the steps (None: the newest) of the checkpoints to score, and what each of them is called."""
    if step is not None:
        return [(step, "of this step")]
    newest = next(iter(list_checkpoints(folder / "checkpoints")), None)
    labels: dict[int, list[str]] = {}
    for name, best in find_best(read_metrics(folder / "metrics.jsonl")).items():
        path = folder / "checkpoints" / f"step_{best:08d}.pt"
        if path.exists() and path != newest:
            labels.setdefault(best, []).append(name)
    return [(None, "newest"), *((best, f"best by {', '.join(names)} in training") for best, names in labels.items())]


def _list_rows(record: dict[str, Any]) -> list[dict[str, str]]:
    """Return the rows of a table: a row per number, with its standard deviation and the value of real samples."""
    rows = []
    for name, value in record["values"].items():
        if name.endswith("_sd"):
            continue
        spread, real = record["values"].get(f"{name}_sd"), record["real"].get(name)
        count = record["real"].get(f"{record['score']}_n", record["settings"].get("n"))
        fewer = f" (n = {count:,})" * (count != record["settings"].get("n"))
        rows.append(
            {
                "score": name,
                "value": f"{value:.5g}" + ("" if spread is None else f" +- {spread:.2g}"),
                "real samples": "" if real is None else f"{real:.5g}{fewer}",
                "step": f"{record['step']:,} ({record['checkpoint']})",
            }
        )
    return rows
