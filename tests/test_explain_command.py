"""`cnn-train explain`: the list, the words it takes, and what it leaves behind."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cnn_train.cli.line import split
from cnn_train.cli.options import read as parsed
from cnn_train.commands.explain import Options, contents, read, run
from cnn_train.errors import ConfigError
from cnn_train.explain import TOPICS, options, summary


def line(*words: str) -> Options:
    return parsed(Options, split(["explain", *words], ["explain"]))


def test_topics_are_listed_with_a_line_each_before_torch_is_imported():
    code = (
        "import sys; from cnn_train.__main__ import main;"
        "main(['explain']); assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert [row.split()[0] for row in shown.splitlines()[2:]] == list(TOPICS)
    assert all(len(row) < 120 and len(row.split()) > 4 for row in contents().splitlines()[2:])


def test_a_topic_is_printed_and_its_page_left_in_the_folder(tmp_path, capsys):
    folder = tmp_path / "here"
    assert run(line("label-smoothing", "classes=3", "epsilon=0.2", f"output={folder}")) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Label smoothing\n===") and "K = 3" in shown and "ε = 0.2" in shown
    assert f"Page: {folder / 'index.html'} (its 4 pictures are beside it)" in shown
    assert {path.name for path in folder.iterdir()} == {"index.html", "1.svg", "2.svg", "3.svg", "4.svg"}


def test_without_an_output_it_goes_where_outputs_go(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(line("crf", "steps=1"))
    assert (tmp_path / "outputs" / "explain" / "crf" / "index.html").is_file()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["convolutoin"], "no topic 'convolutoin'. Did you mean convolution?"),
        (["unpooling"], "no topic 'unpooling'. Did you mean upsampling?"),
        (["xyzzy"], f"no topic 'xyzzy'. There are {', '.join(TOPICS)}"),
        (["kernel=3"], "kernel=3 is an option of which topic? cnn-train explain TOPIC kernel=3"),
        (["pooling", "kernal=3"],
         "explain pooling has no option 'kernal'. Did you mean kernel? It takes size, kernel, stride, seed, output"),
        (["pooling", "zzz=3"], "explain pooling has no option 'zzz'. It takes size, kernel, stride, seed, output"),
        (["pooling", "kernel=two"], "kernel must be a whole number, got 'two'; its default is 2"),
        (["pooling", "kernel=2.5"], "kernel must be a whole number, got '2.5'; its default is 2"),
        (["dropout", "rate=half"], "rate must be a number, got 'half'; its default is 0.5"),
        (["initialization", "act=rleu"],
         "act must be one of relu, tanh, sigmoid, identity, got 'rleu'. Did you mean relu?"),
        (["pooling", "output=pyproject.toml"],
         "output=pyproject.toml is a file; name a folder for the page and its pictures"),
        (["pooling", "kernel=9"], "kernel must be from 1 to 6, got 9"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_answered_in_one_line(words, answer):
    with pytest.raises(ConfigError, match=f"^{re.escape(answer)}$"):
        run(line(*words))


def test_values_have_the_types_of_the_function():
    assert read("pooling", "kernel", "3") == 3 and read("dropout", "rate", "1e-1") == 0.1
    assert read("initialization", "act", "tanh") == "tanh" and read("receptive_field", "stack", "3,3") == "3,3"


def test_the_docs_list_the_topics_with_their_options():
    text = (Path(__file__).parents[1] / "docs" / "explain.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.*) \|$", text, re.MULTILINE)
    assert [(topic, words.replace("`", "").split()) for topic, _, words in rows] == [
        (topic, [f"{name}={option.default}" for name, option in options(topic).items()]) for topic in TOPICS
    ]
    assert [about for _, about, _ in rows] == [summary(topic).partition(": ")[2].rstrip(".") for topic in TOPICS]
