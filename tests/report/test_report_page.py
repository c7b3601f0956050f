import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made import make_result, save_run

from mame_lab import report
from mame_lab.errors import MameLabError
from mame_lab.report.__main__ import main
from mame_lab.report.page import differences
from mame_lab.report.runs import Run


class Page(HTMLParser):
    """Rows of the table, and all that is text outside of scripts."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.words, self.tags = [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] in ("script", "style"):
            return
        self.words.append(data)
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data}".strip()


@pytest.fixture(scope="module")
def page(sweep_report):
    return Page(sweep_report.read_text(encoding="utf-8"))


def test_two_files_and_nothing_else(sweep_report):
    assert sorted(path.name for path in sweep_report.parent.iterdir()) == ["report.html", "report.png"]
    assert sweep_report.with_name("report.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_holds_every_run(page):
    header, *rows = page.rows
    assert header[:3] == ["run", "model", "mame.r"]
    assert [row[0] for row in rows] == ["0", "1", "2", "10", "11", "12"]
    assert rows[0][1:5] == ["s", "4", "80.0 % [77.4, 82.4]", "-1.0 points [-3.0, +1.0]"]
    assert rows[0][5:9] == ["1.50x", "1,500", "3.00", "61 of 100"]
    assert rows[0][9:11] == ["-", "-"]
    assert [row[11].split() for row in rows[:4]] == [*[["speed", "GFLOPs"]] * 3, []]
    assert [row[-1] for row in rows] == [*["finished"] * 4, "failed", "unfinished"]
    assert rows[4][2:4] == ["<i>no</i>", "mame.r='<i>no</i>' is not valid"]
    assert "killed, or still runs" in rows[5][3]


def test_the_page_says_what_the_numbers_hold_for(page):
    assert "6 runs: 4 finished, 1 failed, 1 unfinished" in page.text
    for condition in ("device Example GPU", "dtype 16-mixed", "batch 64", "torch 2.15.0", "evaluated by classifier"):
        assert condition in page.text
    assert "The same in all runs: dataset=digits" in page.text
    assert "Runs differ" not in page.text


def test_conditions_that_differ_are_named():
    found = [
        Run("0", {}, make_result(model="a")),
        Run("1", {}, make_result(dtype="32-true", model="b")),
        Run("2", {}, error="no"),
        Run("3", {}, make_result(model="a")),
    ]
    assert differences(found) == {"dtype": {"16-mixed": ["0", "3"], "32-true": ["1"]}}


def test_nothing_is_fetched(sweep_report, page):
    text = sweep_report.read_text(encoding="utf-8")
    assert not [tag for tag, attributes in page.tags if "src" in attributes or tag in ("iframe", "img", "base")]
    assert [attributes["href"] for tag, attributes in page.tags if tag == "link"] == ["data:,"]
    assert not re.search(r"@import|url\(", text[: text.index("<script>")])


def test_files_cannot_write_markup(tmp_path):
    evil = "</script><script>alert(1)</script><b>"
    save_run(tmp_path / "0", f"a={evil}", f"{evil}=1", result=make_result(model=evil))
    save_run(tmp_path / "1", f"a={evil}2", result=make_result(device=evil))
    save_run(tmp_path / "2", error=evil)
    text = report.make([tmp_path], tmp_path).read_text(encoding="utf-8")
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert "<b>" not in text.replace("<b>device</b>", "")


@pytest.mark.parametrize(
    ("results", "says"),
    [
        ([make_result(None)], ["Accuracy against speed: no run has an accuracy"]),
        ([None, None], ["Accuracy against GFLOPs: no run has an accuracy", "Tokens by block: no run has a result"]),
    ],
    ids=["no accuracy", "all failed"],
)
def test_charts_without_data_say_so(tmp_path, results, says):
    for i, result in enumerate(results):
        save_run(tmp_path / str(i), f"mame.r={i}", result=result, error=None if result else "out of memory")
    text = report.make([tmp_path], tmp_path).read_text(encoding="utf-8")
    assert all(each in text for each in says)


def test_an_old_report_survives_a_failed_write(tmp_path, monkeypatch):
    made = report.make([save_run(tmp_path / "0", result=make_result(None))], tmp_path)
    before = made.read_bytes()

    def disk_full(path, content):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(MameLabError, match=r"cannot be written to \(No space left on device\)"):
        report.make([tmp_path], tmp_path)
    assert made.read_bytes() == before


def test_command_writes_to_the_first_folder_unless_told(tmp_path, capsys):
    run = save_run(tmp_path / "0", result=make_result(None))
    main([str(run)])
    assert capsys.readouterr().out == f"Written to {run / 'report.html'}\n"
    main([str(run), "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "report.png").exists()


def test_command_ends_in_one_line(tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path)])
    assert str(stop.value).startswith("error: no run lies in or under")


@pytest.mark.parametrize(("arguments", "name"), [([""], "RUNS"), ([".", " "], "RUNS"), ([".", "--out", ""], "--out")])
def test_an_empty_folder_is_refused(arguments, name, tmp_path, monkeypatch, capsys):
    save_run(tmp_path / "0", result=make_result(None))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(arguments)
    assert f"error: argument {name}: '{arguments[-1]}' is empty: give a folder\n" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_importing_the_report_is_light():
    code = "import sys, mame_lab.report; print([m for m in ('torch', 'altair', 'jinja2', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
