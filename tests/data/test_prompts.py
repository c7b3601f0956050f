"""Prompts: what is read from a file of them, and what is refused."""

import pytest

from mame_lab.data.prompts import Prompts
from mame_lab.errors import MameLabError


def read(path, content: bytes) -> list[str]:
    path.write_bytes(content)
    return [request.prompt for request in Prompts(file=str(path), count=None).requests()]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_prompt_is_a_line_whatever_wrote_it(tmp_path, encoding):
    assert read(tmp_path / "p.txt", "un café\r\n\r\n  a #1 dog \r\n".encode(encoding)) == ["un café", "a #1 dog"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_joined_files_keep_no_mark(tmp_path, encoding):
    joined = b"".join(text.encode(encoding) for text in ("a cat\n", "", "# animals\na dog\n", "a\ufeffb\n"))
    assert read(tmp_path / "p.txt", joined) == ["a cat", "a dog", "a\ufeffb"]


def test_a_line_that_begins_with_a_hash_is_a_comment(tmp_path):
    assert read(tmp_path / "p.txt", b"# animals\na cat\n  #a dog\n") == ["a cat"]


def test_eight_prompts_ship():
    assert len(Prompts(count=None, seeds=[0, 1]).requests()) == 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a cat\nun café".encode("latin-1"), ", line 2, is no text in UTF-8: save"),
        ("a cat".encode("utf-16-le"), ", line 1, is no text in UTF-8: save"),
        (b"\n# a cat\n", " holds no prompt: "),
    ],
)
def test_what_is_no_prompt_is_refused(tmp_path, content, message):
    path = tmp_path / "p.txt"
    with pytest.raises(MameLabError, match=f"^dataset.file={path}{message}"):
        read(path, content)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(MameLabError, match=f"^dataset.file={tmp_path} cannot be read \\(Is a directory\\): give"):
        Prompts(file=str(tmp_path)).requests()
