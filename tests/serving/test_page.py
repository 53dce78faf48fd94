"""The page in a real browser: a folder dropped, a crop moved, all deleted."""

import csv
import io
import shutil

from tests.serving.browser import chromium

RESEARCH = "document.elementFromPoint(innerWidth / 2, 12).innerText"
CARDS = "[...document.querySelectorAll('.slice')].map(card => card.innerText)"
LOADED = "performance.getEntriesByType('resource').filter(x => /webp/.test(x.name)).length === 4"
BOX = """['x', 'y', 'width', 'height'].map(name =>
    Number(document.querySelector('#slice-1 .views rect').getAttribute(name)))"""
# Where a pixel (column, row) of the source is on the screen.
PLACE = """(() => {
    const svg = document.querySelector('#slice-1 svg');
    svg.scrollIntoView({block: 'center'});
    const at = new DOMPoint(%s, %s).matrixTransform(svg.getScreenCTM());
    return [at.x, at.y];
})()"""


def test_a_folder_is_dropped_a_crop_moved_and_all_deleted(client, cine, tmp_path):
    folder = tmp_path / "a patient"
    folder.mkdir()
    shutil.copy(cine, folder / "béat <i>.npz")
    with chromium(tmp_path / "profile") as browser:
        browser.send("Page.navigate", url=client.server.address)
        browser.wait("document.querySelector('#threshold')?.textContent.includes('0.500')")
        assert "not for clinical use" in browser.evaluate(RESEARCH)
        browser.drop(folder, "#drop")
        browser.wait("document.querySelectorAll('.slice').length === 2")
        first, second = browser.evaluate(CARDS)
        for text in (first, second):
            assert "MVO suspected" in text
            assert "crop placed by motion, to be reviewed" in text
            assert "Patient A<b>" in text  # as text, not as markup
        browser.wait("[...document.images].every(image => image.complete)")
        widths = browser.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert widths == [2 * 256 + 6] * 2
        sources = "[...document.querySelectorAll('.views image')].map(one => one.href.baseVal)"
        assert browser.evaluate(sources) == [f"source/{index}.webp?0&drop=2" for index in range(2)]
        # A click between the pixels: the crop of 32 of them then starts at a whole one.
        browser.click(*browser.evaluate(PLACE % (101, 41)))
        browser.wait("document.querySelector('#slice-1').innerText.includes('by you')")
        assert browser.evaluate(BOX) == [85, 25, 32, 32]
        one, moved = browser.evaluate(CARDS)
        assert one == first
        assert "not suspected" in moved
        assert "not for clinical use" in browser.evaluate(RESEARCH)  # scrolled down, too
        table = "fetch('predictions.csv').then(answer => answer.text())"
        *_, last = csv.DictReader(io.StringIO(browser.evaluate(table)))
        # The pointer is at whole pixels of the screen, a third of one of the source.
        assert abs(float(last["centre_row"]) - 40.5) < 0.4
        assert abs(float(last["centre_column"]) - 100.5) < 0.4
        # Loaded again it shows the same; then everything is deleted.
        browser.send("Page.reload")
        browser.wait("document.querySelectorAll('.slice').length === 2")
        browser.wait(LOADED)  # or what is asked for just then would be missing
        browser.evaluate("document.querySelector('#clear').click()")
        browser.wait("document.querySelector('#results').hidden")
        assert list(client.server.session._root.iterdir()) == []
        (tmp_path / "notes.txt").write_text("no image")
        browser.drop(tmp_path / "notes.txt", "#drop")
        browser.wait("!document.querySelector('#error').hidden")
        error = browser.evaluate("document.querySelector('#error').innerText")
        assert "no format that is recognised" in error
        assert {url for url in browser.asked if not url.startswith(client.server.address)} == set()
        assert browser.wrong == []
