import pytest

from mame_lab.data.files import whole_file, write_csv


def test_a_file_is_there_once_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with whole_file(path) as part:
        part.write_text("1")
        assert not path.exists()
    assert path.read_text() == "1"
    assert [each.name for each in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, shared):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path, shared) as part:
        part.write_text(f"ne{1 // 0}")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_that_write_one_file_do_not_touch_each_others_part(tmp_path):
    path = tmp_path / "a.txt"
    with whole_file(path, shared=True) as one, whole_file(path, shared=True) as two:
        one.write_text("1")
        two.write_text("2")
    assert path.read_text() == "1"
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_has_a_line_for_each_row(tmp_path):
    write_csv(tmp_path / "a.csv", ("name", "share"), [("a, b", 0.5), ("c", None)])
    assert (tmp_path / "a.csv").read_text().splitlines() == ["name,share", '"a, b",0.5', "c,"]
