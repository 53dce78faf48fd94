"""The CLAIM checklist: filled from files, and open where a file does not tell."""

import json
from pathlib import Path

import pytest

from mvo_jax.evaluation.claim import ITEMS, Artefacts, fill, write_claim
from mvo_jax.run import train_and_evaluate
from tools.tiny_run import tiny_config

FOR_AUTHORS = {2, 3, 4, 5, 6, 11, 15, 18, 33, 34, 40, 41, 44}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A run on a simulated cohort, evaluated."""
    folder = tmp_path_factory.mktemp("claim")
    data = {"data.dir": str(folder / "data"), "data.size": "tiny", "data.preset": "easy"}
    config = tiny_config(**data, **{"train.total_steps": 4, "train.eval_every": 4})
    train_and_evaluate(config, folder / "run")
    return folder / "run"


@pytest.fixture
def copied(run_folder, tmp_path) -> Path:
    for path in run_folder.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def values(folder: Path) -> dict[int, str | None]:
    return {row["number"]: row["value"] for row in fill(Artefacts(folder))}


def test_the_items_are_those_of_the_checklist():
    assert [item.number for item in ITEMS] == list(range(1, 45))
    assert {item.number for item in ITEMS if item.value is None} == FOR_AUTHORS
    assert all(item.kinds for item in ITEMS if item.value is not None)


def test_a_simulated_run_fills_thirty_and_names_where_from(run_folder):
    rows = fill(Artefacts(run_folder))
    filled = [row for row in rows if row["value"]]
    assert len(filled) >= 30
    for row in filled:
        assert "not applicable" not in row["value"].lower()
        assert row["artefacts"]
        assert all((run_folder / name).is_file() for name in row["artefacts"])
    # Tests may run from an unpacked archive, whose revision nobody knows.
    start = json.loads((run_folder / "provenance.json").read_text())[-1]
    unknown = {43} if start["git_revision"].startswith("not ") else set()
    assert {row["number"] for row in rows if not row["value"]} == FOR_AUTHORS | unknown
    metrics = json.loads((run_folder / "metrics.json").read_text())
    of = {row["number"]: row["value"] for row in rows}
    assert f"{metrics['metrics']['auc']['value']:.3f}" in of[37]
    assert f"{metrics['metrics']['recall']['value']:.3f}" in of[38]
    assert "16 cases of 16 patients, 8 with MVO" in of[19]
    assert "male" in of[36]
    assert "numpy" in of[23]
    text = (run_folder / "claim.md").read_text()
    assert f"{len(filled)} of 44 items are filled" in text
    assert text.count("**open**") == 44 - len(filled)
    page = (run_folder / "report.html").read_text()
    assert page.count("open: for the authors") == 44 - len(filled)
    assert f"{len(filled)} of 44 items are filled" in page


@pytest.mark.parametrize("kind", ["metrics", "config", "provenance", "geometry", "cohort_card"])
def test_an_item_is_open_where_its_file_is_missing_damaged_or_silent(copied, kind):
    whole = values(copied)
    needing = {item.number for item in ITEMS if kind in item.kinds}
    path = copied / f"{kind}.json"
    for content in (None, "{", "[{}]" if kind == "provenance" else "{}"):
        path.unlink() if content is None else path.write_text(content)
        found = values(copied)
        # The hash of the config needs no key of it.
        hashed = {42} if content is not None and kind == "config" else set()
        assert {number for number in needing if found[number]} <= hashed, content
        assert all(found[number] == whole[number] for number in found if number not in needing)


def test_values_follow_the_files(copied):
    metrics = json.loads((copied / "metrics.json").read_text())
    metrics["metrics"]["auc"].update(value=0.123, low=0.1, high=0.2)
    (copied / "metrics.json").write_text(json.dumps(metrics))
    assert "AUC 0.123 (0.100 to 0.200)" in (values(copied)[37] or "")
    card = json.loads((copied / "cohort_card.json").read_text())
    del card["splits"]["train"]
    (copied / "cohort_card.json").write_text(json.dumps(card))
    found = values(copied)
    assert all(found[number] is None for number in (12, 13, 19, 35, 36))


def test_a_prepared_cohort_leaves_what_its_owner_knows_open(copied):
    card = json.loads((copied / "cohort_card.json").read_text())
    del card["simulator"]
    card |= {"kind": "prepared", "data": "prepared cohort 'x'"}
    card["prepared"] = {"unlabelled": 3, "rejected": 2, "division": "5 folds"}
    for split in card["splits"].values():
        split["attributes"] = {"centre from": {"mask": 8}}
    (copied / "cohort_card.json").write_text(json.dumps(card))
    found = values(copied)
    assert all(found[number] is None for number in (8, 13, 16, 17, 21, 36, 43))
    assert "2 rejected" in (found[35] or "")
    assert "3 unlabelled cases" in (found[12] or "")
    assert "5 folds" in (found[19] or "")


def test_the_file_escapes_its_table(tmp_path):
    rows = fill(Artefacts(tmp_path))
    assert all(row["value"] is None for row in rows)
    rows[0] |= {"value": "a | b\nc", "artefacts": ["config.json"]}
    write_claim(tmp_path / "claim.md", rows)
    text = (tmp_path / "claim.md").read_text()
    assert "a \\| b c" in text
    assert "1 of 44 items are filled" in text
