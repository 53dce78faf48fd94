"""The CLAIM checklist of a run, filled from its files and from nothing else.

CLAIM (Checklist for Artificial Intelligence in Medical Imaging, 2024 update: Tejani et al., Radiol
Artif Intell 2024, 6:e240300) has 44 items, here in our words. One that no file fills stays open.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvo_jax.files import replace_file, sha256

SOURCE = "CLAIM 2024 (Radiol Artif Intell 6:e240300), item topics in this project's words"


@dataclass(frozen=True)
class Artefacts:
    """Files of a run, read when an item asks for them.

    ``suffix`` is that of the evaluation's files, '' or '_SPLIT'; they lie in ``written``, if that
    is given, and else with the others in ``folder``.
    """

    folder: Path
    suffix: str = ""
    written: Path | None = None

    def name(self, kind: str) -> str:
        """The file's name."""
        return f"metrics{self.suffix}.json" if kind == "metrics" else f"{kind}.json"

    def read(self, kind: str) -> Any:
        """Content of a file, of ``provenance.json`` the newest start; OSError, ValueError."""
        of_evaluation = kind in ("metrics", "cohort_card")
        folder = self.written if self.written and of_evaluation else self.folder
        content = json.loads((folder / self.name(kind)).read_text())
        return content[-1] if kind == "provenance" else content


@dataclass(frozen=True)
class Item:
    """One item of the checklist.

    ``kinds`` are the files that fill it, none where only the authors can; ``value`` is of their
    contents in this order, None where they do not tell.
    """

    number: int
    section: str
    topic: str
    kinds: tuple[str, ...] = ()
    value: Callable[..., str | None] | None = None


def _splits(card: Mapping[str, Any]) -> Mapping[str, Any]:
    """All splits of the run; KeyError where the card lacks the one that was learned from."""
    return {"train": card["splits"]["train"], **card["splits"]}


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _span(estimate: Mapping[str, Any]) -> str | None:
    value, low, high = (estimate[part] for part in ("value", "low", "high"))
    if value is None:
        return None
    return f"{value:.3f} (no interval)" if low is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _subsets(config: Mapping[str, Any], geometry: Mapping[str, Any]) -> str:
    data = config["data"]
    side = geometry["image_size"] * geometry["spacing_mm"]
    crop = f"a crop of {side:.0f} mm about the ventricle of every slice"
    phantom = data["name"] == "phantom"
    return f"{data['slices_per_patient']} slice(s) a patient; {crop}" if phantom else crop


def _missing(card: Mapping[str, Any]) -> str:
    lacking = sum(split["unlabelled"] for split in _splits(card).values())
    text = f"{lacking} cases of the splits used lack a label; such cases are neither learned from "
    text += "nor scored, nothing is imputed"
    if "prepared" in card:
        text += f"; {card['prepared']['unlabelled']} unlabelled cases were set aside"
    return text


def _acquisition(card: Mapping[str, Any], geometry: Mapping[str, Any]) -> str:
    known = card["splits"]["train"]["attributes"]
    (quality,) = [known[title]["mean"] for title in known if title.startswith("image quality")]
    return (
        f"simulated short-axis cine, {geometry['frames']} frames over one beat, "
        f"{geometry['spacing_mm']:.2f} mm pixels; mean signal to noise of the blood {quality:.1f}"
    )


def _test_annotation(card: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    return (
        f"{card['simulator']['annotator']}; alike in all splits, the {metrics['cases']} cases of "
        f"{metrics['split']} included"
    )


def _partitions(card: Mapping[str, Any]) -> str:
    counts = "; ".join(
        f"{name} {one['cases']} cases of {one['patients']} patients, {one['positive']} with MVO"
        for name, one in _splits(card).items()
    )
    how = card["prepared"]["division"] if "prepared" in card else "drawn for each split by the seed"
    return f"{how}: {counts}"


def _size(card: Mapping[str, Any], config: Mapping[str, Any], metrics: Mapping[str, Any]) -> Any:
    auc = metrics["metrics"]["auc"]
    if "simulator" not in card or auc["low"] is None:
        return None
    return (
        f"{metrics['cases']} cases, {metrics['positive']} with MVO, set by data.size "
        f"{config['data']['size']!r} before training; they give the AUC to "
        f"{(auc['high'] - auc['low']) / 2:.3f} either way"
    )


def _model(config: Mapping[str, Any]) -> str:
    data, model = config["data"], dict(config["model"])
    name = model.pop("name")
    shape = f"{data['frames']} x {data['image_size']} x {data['image_size']}"
    return f"{name} on clips of {shape}: {_listed(model)}"


def _initial(config: Mapping[str, Any]) -> str:
    start = config["init_from"]
    origin = f"from {start}, the rest at random" if start else "all at random"
    return f"{origin}, seed {config['seed']}"


def _training(config: Mapping[str, Any]) -> str:
    train = config["train"]
    steps = f"{train['total_steps']} steps of {train['batch_size']} clips"
    parts = [f"{part}: {_listed(config[part])}" for part in ("loss", "optimizer", "augment")]
    return "; ".join([steps, *parts])


def _selection(metrics: Mapping[str, Any]) -> str | None:
    chosen, trained = metrics["checkpoint"], metrics["training"]
    if chosen["which"] != "best" or trained["best_validation_auc"] is None:
        return f"the {chosen['which']} checkpoint, step {chosen['step']}"
    return (
        f"highest AUC on the validation split ({trained['best_validation_auc']:.3f}), step "
        f"{chosen['step']} of {trained['last_step']}"
    )


def _intervals(metrics: Mapping[str, Any]) -> str:
    methods = dict.fromkeys(found["method"] for found in metrics["metrics"].values())
    level = f"{100 * metrics['confidence']:g} % intervals: {'; '.join(methods)}"
    if metrics["baseline"] is not None:
        level += f"; comparison: {metrics['baseline']['model_minus_baseline']['method']}"
    return level


def _robustness(metrics: Mapping[str, Any]) -> str | None:
    if not metrics["subgroups"]:
        return None
    names = dict.fromkeys(row["attribute"] for row in metrics["subgroups"])
    others = ", ".join(str(one["threshold"]) for one in metrics["fixed_thresholds"])
    return f"results by {'; '.join(names)}; decisions at the thresholds {others} too"


def _explained(metrics: Mapping[str, Any]) -> str | None:
    found = metrics["localisation"]
    if not found or not found["cases"]:
        return None
    texts = [f"highest block of the coarse map: {_span(found['map']['pointing_hit_rate'])}"]
    for which in ("mean_training_map", "chance"):
        if found[which] is not None:
            rate = found[which]["pointing_hit_rate"]["value"]
            texts.append(f"{which.replace('_', ' ')} {rate:.3f}")
    return f"{'; '.join(texts)}; {found['cases']} cases with MVO"


def _internal(metrics: Mapping[str, Any]) -> str | None:
    training = metrics["training"]
    if training is None or training["best_validation_auc"] is None:
        return None
    return (
        f"split {metrics['split']} of the same cohort, AUC {_span(metrics['metrics']['auc'])}; "
        f"validation {training['best_validation_auc']:.3f}"
    )


def _numbers(card: Mapping[str, Any]) -> str:
    total = sum(split["cases"] for split in _splits(card).values())
    text = f"{total} cases of the splits {', '.join(card['splits'])} included"
    if "prepared" in card:
        return f"{text}; {card['prepared']['rejected']} rejected when the cohort was prepared"
    return f"{text}, none excluded"


def _characteristics(card: Mapping[str, Any]) -> str | None:
    texts = []
    for name, split in _splits(card).items():
        sex = split["attributes"].get("sex")
        if sex is None:
            return None
        known = [(title, one) for title, one in split["attributes"].items() if "mean" in one]
        numbers = (f"{title} {one['mean']:.1f} (sd {one['sd']:.1f})" for title, one in known)
        texts.append(f"{name}: {_listed(sex)}; {'; '.join(numbers)}")
    return " | ".join(texts)


def _performance(metrics: Mapping[str, Any]) -> str | None:
    auc, brier = (_span(metrics["metrics"][name]) for name in ("auc", "brier"))
    return None if auc is None else f"AUC {auc}; Brier score {brier}"


def _accuracy(metrics: Mapping[str, Any]) -> str | None:
    names = {"recall": "sensitivity", "specificity": "specificity", "precision": "PPV"}
    names["negative_predictive_value"] = "NPV"
    texts = [(title, _span(metrics["metrics"][name])) for name, title in names.items()]
    known = [f"{title} {text}" for title, text in texts if text]
    at = f"at probability {metrics['threshold']['value']:.3f} ({metrics['threshold']['origin']})"
    return f"{', '.join(known)}, {at}" if known else None


def _failures(metrics: Mapping[str, Any]) -> str:
    counts = metrics["confusion"]
    worst = [row for row in metrics["subgroups"] if not row["small"] and row["auc"]["value"]]
    text = f"{counts['false_negative']} missed, {counts['false_positive']} false alarms"
    if worst:
        least = min(worst, key=lambda row: row["auc"]["value"])
        text += f"; lowest AUC {_span(least['auc'])} in {least['attribute']}: {least['group']}"
    return text


def _details(config_hash: str, provenance: Mapping[str, Any]) -> str:
    return f"the whole config, sha256 {config_hash[:16]}, run by: {provenance['command']}"


def _available(card: Mapping[str, Any], provenance: Mapping[str, Any]) -> str | None:
    revision = provenance["git_revision"]
    if "simulator" not in card or revision.startswith("not "):  # no git checkout
        return None
    return f"code of revision {revision}; data are generated again: {card['data']}"


def _preprocessing(geometry: Mapping[str, Any]) -> str:
    window = geometry["window"] or "robust percentiles of each clip, or as simulated"
    return (
        f"{geometry['frames']} frames, {geometry['image_size']} pixels of "
        f"{geometry['spacing_mm']:.3g} mm; grey window: {window}"
    )


ITEMS = (
    Item(1, "Title", "AI is used, and which kind", ("config",), lambda c: "deep learning: "
         f"{c['model']['name']}, {c['model'].get('variant', 'one form')}"),
    Item(2, "Abstract", "summary in parts, with conclusions"),
    Item(3, "Introduction", "background, intended use and role"),
    Item(4, "Introduction", "aims and hypotheses"),
    Item(5, "Study design", "prospective or retrospective"),
    Item(6, "Study design", "goal of the study"),
    Item(7, "Data", "where the data come from", ("cohort_card",), lambda c: c["data"]),
    Item(8, "Data", "who is included and who is not", ("cohort_card",),
         lambda c: f"{c['simulator']['patients']}; every simulated patient is included"),
    Item(9, "Data", "preprocessing", ("geometry",), _preprocessing),
    Item(10, "Data", "parts of the data that are used", ("config", "geometry"), _subsets),
    Item(11, "Data", "de-identification"),
    Item(12, "Data", "missing data", ("cohort_card",), _missing),
    Item(13, "Data", "how images were acquired", ("cohort_card", "geometry"), _acquisition),
    Item(14, "Reference standard", "its definition", ("cohort_card",), lambda c: c["label"]),
    Item(15, "Reference standard", "why this one"),
    Item(16, "Reference standard", "who annotated", ("cohort_card",),
         lambda c: c["simulator"]["annotator"]),
    Item(17, "Reference standard", "annotation of the test set", ("cohort_card", "metrics"),
         _test_annotation),
    Item(18, "Reference standard", "variability between and within readers"),
    Item(19, "Data partitions", "how cases were assigned", ("cohort_card",), _partitions),
    Item(20, "Data partitions", "at which level they are disjoint", ("cohort_card",),
         lambda c: c["partition"]),
    Item(21, "Testing data", "size of the test set", ("cohort_card", "config", "metrics"), _size),
    Item(22, "Model", "description", ("config",), _model),
    Item(23, "Model", "software and versions", ("provenance",),
         lambda p: f"Python {p['python']}, {_listed(p['versions'])}"),
    Item(24, "Model", "initial parameters", ("config",), _initial),
    Item(25, "Training", "procedure and hyperparameters", ("config",), _training),
    Item(26, "Training", "how the final model was selected", ("metrics",), _selection),
    Item(27, "Training", "ensembling", ("metrics",), lambda m: "one network, its checkpoint "
         f"{m['checkpoint']['which']} of step {m['checkpoint']['step']}; no ensemble"),
    Item(28, "Evaluation", "metrics of performance", ("metrics",),
         lambda m: ", ".join(m["metrics"])),
    Item(29, "Evaluation", "uncertainty and tests", ("metrics",), _intervals),
    Item(30, "Evaluation", "robustness or sensitivity", ("metrics",), _robustness),
    Item(31, "Evaluation", "explanation of predictions", ("metrics",), _explained),
    Item(32, "Evaluation", "internal data", ("metrics",), _internal),
    Item(33, "Evaluation", "external data"),
    Item(34, "Evaluation", "registration of a trial"),
    Item(35, "Results: data", "numbers included and excluded", ("cohort_card",), _numbers),
    Item(36, "Results: data", "characteristics by partition", ("cohort_card",), _characteristics),
    Item(37, "Results: performance", "performance with uncertainty", ("metrics",), _performance),
    Item(38, "Results: performance", "diagnostic accuracy with precision", ("metrics",), _accuracy),
    Item(39, "Results: performance", "analysis of failures", ("metrics",), _failures),
    Item(40, "Discussion", "limitations"),
    Item(41, "Discussion", "meaning for practice"),
    Item(42, "Other", "protocol or further technical details", ("config", "provenance"), _details),
    Item(43, "Other", "availability of software, model and data", ("cohort_card", "provenance"),
         _available),
    Item(44, "Other", "funding and role of funders"),
)  # fmt: skip


def fill(artefacts: Artefacts) -> list[dict[str, Any]]:
    """The checklist of a run: 44 rows with 'number', 'section', 'topic', 'value' and 'artefacts'.

    These are names of files. Value is None and artefacts empty where an item is open.
    """
    rows = []
    for item in ITEMS:
        value = _value(item, artefacts) or None
        names = [artefacts.name(kind) for kind in item.kinds] if value else []
        about = {name: getattr(item, name) for name in ("number", "section", "topic")}
        rows.append({**about, "value": value, "artefacts": names})
    return rows


def _value(item: Item, artefacts: Artefacts) -> str | None:
    """What the files say; None where one is missing or lacks what the item needs."""
    if item.value is None:
        return None
    try:
        contents = [artefacts.read(kind) for kind in item.kinds]
        if item.value is _details:
            contents[0] = sha256(artefacts.folder / artefacts.name("config"))
        return item.value(*contents)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def write_claim(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows of ``fill`` as Markdown; UserError where that fails."""
    filled = sum(row["value"] is not None for row in rows)
    lines = [
        "# CLAIM checklist",
        "",
        f"{SOURCE}.",
        f"{filled} of {len(rows)} items are filled from files of this run; the others are open: "
        "**only the authors can answer them.**",
        "",
        "| # | section | topic | value | read from |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        value = "**open**" if row["value"] is None else row["value"].replace("|", "\\|")
        cells = [str(row["number"]), row["section"], row["topic"], " ".join(value.split())]
        lines.append(f"| {' | '.join([*cells, ', '.join(row['artefacts'])])} |")
    replace_file(path, "\n".join(lines) + "\n")
