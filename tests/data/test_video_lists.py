"""Lists of videos with their labels: which are read, and which are refused by name."""

import re

import pytest

from mame_lab.data.kinetics import Kinetics400
from mame_lab.errors import MameLabError

TABLE = "label,youtube_id,time_start,time_end,split\n"
LISTS = {
    "a mark": ("\ufeffa.mp4 0\nb c.mp4 1\n", ["0", "1"]),
    "a mark before a header": ("\ufeffpath,label\na.mp4,cat\nb c.mp4,dog\n", ["cat", "dog"]),
    "ends of lines": ("a.mp4 0\r\n\r\nb c.mp4 1\r\n\r\n", ["0", "1"]),
    "commas": ("a.mp4,0\nb c.mp4, 1\n", ["0", "1"]),
    "tabs": ("a.mp4\t0\nb c.mp4\t1\n", ["0", "1"]),
    "quotes": ('"a.mp4","0"\n"b c.mp4" 1\n', ["0", "1"]),
    "a header": ("label;path\n00;a.mp4\n01;b c.mp4\n", ["0", "1"]),
    "floats": ("path,label\na.mp4,0.0\nb c.mp4,1.0\n", ["0", "1"]),
}


@pytest.mark.parametrize(("text", "classes"), LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_list_is_read_where_it_is_plain(tmp_path, text, classes, encoding):
    (tmp_path / "val.csv").write_bytes(text.removeprefix("\ufeff" * (encoding == "utf-16")).encode(encoding))
    splits = Kinetics400(root=str(tmp_path)).splits()
    assert sorted(splits.val.files) == [(str(tmp_path / "a.mp4"), 0), (str(tmp_path / "b c.mp4"), 1)]
    assert splits.classes == classes


@pytest.mark.parametrize("separator", [",", "\t", ", "])
def test_a_table_of_kinetics_is_read_by_its_columns(tmp_path, separator):
    rows = [["youtube_id", "label", "time_start", "time_end"], ["c-_", '"run, fast"', "1.0", "11"]]
    (tmp_path / "val.csv").write_text("\n".join(separator.join(row) for row in rows), encoding="utf-8-sig")
    splits = Kinetics400(root=str(tmp_path)).splits()
    assert splits.val.files == [(str(tmp_path / "val/c-__000001_000011.mp4"), 0)]
    assert splits.classes == ["run, fast"]


def test_names_of_classes_have_no_mark_and_no_blank_line_behind_them(tmp_path):
    (tmp_path / "val.csv").write_text("a.mp4 0\nb.mp4 1\n")
    (tmp_path / "classes.txt").write_bytes("run \r\njump\r\n \r\n\r\n".encode("utf-8-sig"))
    assert Kinetics400(root=str(tmp_path)).splits().classes == ["run", "jump"]


def test_floats_are_the_numbers_that_they_equal(tmp_path):
    (tmp_path / "val.csv").write_text("path,label\n" + "".join(f"{number}.mp4,{number}.0\n" for number in range(12)))
    splits = Kinetics400(root=str(tmp_path)).splits()
    assert splits.classes == [str(number) for number in range(12)]
    assert sorted(splits.val.files) == sorted((str(tmp_path / f"{number}.mp4"), number) for number in range(12))


def test_numbers_in_one_list_and_names_in_the_other_are_refused(tmp_path):
    (tmp_path / "val.csv").write_text("a.mp4 0\nb.mp4 1\n")
    (tmp_path / "train.csv").write_text("path,label\na.mp4,run\nb.mp4,jump\n")
    named = f"{tmp_path / 'val.csv'} has the number 0 as a label, and {tmp_path / 'train.csv'} the name 'jump': give"
    with pytest.raises(MameLabError, match="^" + re.escape(named)):
        Kinetics400(root=str(tmp_path)).splits()


REFUSED_LISTS = {
    "empty": ("", "{list} lists no videos: "),
    "blank": (" \n\n", "{list} lists no videos: "),
    "a header alone": (TABLE, "{list} lists no videos: "),
    "no labels": ("youtube_id,time_start\na,0\n", "{list} has the columns youtube_id, time_start: give it label, you"),
    "no times": ("label,youtube_id\nrun,a\n", "{list} has the columns label, youtube_id: give it label, youtube_id"),
    "a short row": (TABLE + "run,a\n", "{list}, line 2: 'run,a' has no time_start: "),
    "an empty time": (TABLE + "run,a,,11,val\n", "{list}, line 2: 'run,a,,11,val' has no time_start: "),
    "an empty label": (TABLE + ",a,1,11,val\n", "{list}, line 2: ',a,1,11,val' has no label: "),
    "a word as time": (
        TABLE + "\nrun,a,1,end,val\n",
        "{list}, line 3: 'run,a,1,end,val' has no number of seconds in time_",
    ),
    "an endless time": (
        TABLE + "run,a,inf,1,val\n",
        "{list}, line 2: 'run,a,inf,1,val' has no number of seconds in time_",
    ),
    "an open quote": (TABLE + '"run,a,1,11,val\n', "{list}, line 2: '\"run,a,1,11,val' has no youtube_id: "),
    "a comma too many": ("path,label\na,b.mp4,0\n", "{list}, line 2: 'a,b.mp4,0' has more cells than columns"),
    "a negative number": ("path,label\na.mp4,0\nb.mp4,-1\n", "{list}, line 3: 'b.mp4,-1' has a negative number as"),
    "a negative float": (TABLE + "-1.0,a,1,11,val\n", "{list}, line 2: '-1.0,a,1,11,val' has a negative number as"),
    "a name among numbers": (
        "path,label\na.mp4,0\nb.mp4,cat\n",
        "{list} has the number 0 as a label, and {list} the name 'cat': give all labels as ",
    ),
    "a small two": ("a.mp4 \u00b2\n", "{list}, line 1: 'a.mp4 \u00b2' is no 'PATH LABEL'"),
    "Latin-1": ("a.mp4 0\nvid\xe9o.mp4 0\n".encode("latin-1"), "{list}, line 2, is no text in UTF-8: "),
    "UTF-16 without a mark": ("a.mp4 0\n".encode("utf-16-le"), "{list}, line 1, is no text in UTF-8: "),
}


@pytest.mark.parametrize(("text", "message"), REFUSED_LISTS.values(), ids=REFUSED_LISTS)
def test_a_list_that_is_wrong_is_named(tmp_path, text, message):
    path = tmp_path / "val.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MameLabError, match="^" + re.escape(message.format(list=path))) as raised:
        Kinetics400(root=str(tmp_path)).splits()
    assert "\n" not in str(raised.value)
