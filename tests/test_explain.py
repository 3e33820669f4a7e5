"""The pages of `cnn_train.explain` run, and a wrong formula on one does not get past its check."""

import html.parser
import importlib
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from cnn_train.errors import ConfigError, UserError
from cnn_train.explain import TOPICS, detection, load, options, summary
from cnn_train.explain.check import Mismatch, agree, limits, number, require
from cnn_train.explain.draw import cells, curves
from cnn_train.explain.page import Page, _marked, _plain

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "cnn_train" / "explain"

# In each topic, formulas with one number or sign altered: what the file says, and what it says falsely.
FALSE = {
    "convolution": [
        ("(kernel - 1) - 1) // stride + 1\n    places", "(kernel - 1) - 1) // stride + 2\n    places"),
        ("matrix[i, place] = x[place], w[j]", "matrix[i, place] = x[place], w[-1 - j]"),
        ("sum(delta[i] * columns[i, j]", "sum(delta[i] * columns[i, 0]"),
        ("sum(w[i, j] * x[row, column]", "sum(w[j, i] * x[row, column]"),
    ],
    "channels": [
        ("ours += (fan_in + 1)", "ours += (fan_in + 2)"),
        ("connections += o**2", "connections += (o - 1) ** 2"),
        ("1 / m + 1 / k**2", "1 / m + 1 / k"),
        ('"mc,chw->mhw", w, x', '"mc,chw->mhw", w[::-1], x'),
    ],
    "pooling": [
        ("+= d / kernel**2", "+= d / kernel"),
        ("winner // kernel, column", "winner % kernel, column"),
        ("chances * windows", "chances**2 * windows"),
        ("np.sqrt(2 * min", "np.sqrt(3 * min"),
    ],
    "dilation": [
        ("(kernel - 1) * (dilation - 1)\n    require", "(kernel - 1) * dilation\n    require"),
        ("holes[..., ::dilation, ::dilation] = w", "holes[..., ::dilation, ::dilation] = w.flip(3)"),
        ("part = x[..., row::dilation, column::dilation]", "part = x[..., column::dilation, row::dilation]"),
        ("taps[::rate] = 1", "taps[::rate] = 2"),
        ("1 + (2**n - 1) * (kernel - 1)", "1 + (2**n) * (kernel - 1)"),
    ],
    "upsampling": [
        ("outputs = stride * (size - 1) + kernel", "outputs = stride * size + kernel"),
        ("matrix[i, place] = w[j]", "matrix[i, place] = w[0]"),
        ("wide[::stride] = x", "wide[::stride] = x[::-1]"),
        ("line[stride * i : stride * i + k] += 1", "line[stride * i : stride * i + k - 1] += 1"),
        ("np.abs(np.arange(4) - 1.5) / 2", "np.abs(np.arange(4) - 1.5) / 3"),
    ],
    "receptive_field": [
        ("r + (reach - 1) * jump", "r + reach * jump"),
        ("(reach - 1) / 2 - padding", "(reach - 1) - padding"),
        ("n * (k * k - 1) / 12", "n * (k * k) / 12"),
    ],
    "deconvnet": [
        ('"deconvnet": np.maximum(above, 0),', '"deconvnet": np.maximum(above, 0) * (x > 0),'),
        ("output_size=edges.shape).relu()", "output_size=edges.shape)"),
        ("F.conv_transpose2d(start, corner,", "F.conv_transpose2d(start, corner.flip(2),"),
    ],
    "backpropagation": [
        ("loss = -np.log(p[np.arange(batch), target]).mean()", "loss = -np.log(p[np.arange(batch), target]).sum()"),
        ("delta_s[np.arange(batch), target] -= 1", "delta_s[np.arange(batch), target] -= 2"),
        ("delta_z = delta_h * (z > 0)", "delta_z = delta_h * (z > -9)"),
        ("q - y, -F", "p - y, -F"),
        ("np.maximum(0, 1 - scores[true]", "np.maximum(0, 2 - scores[true]"),
    ],
    "activations": [
        ("sigmoid(z) * (1 - sigmoid(z)), nn", "sigmoid(z) * (2 - sigmoid(z)), nn"),
        ("agree(0.25**depth", "agree(0.5**depth"),
        ("1 / np.sqrt(2 * np.pi), within", "1 / np.sqrt(np.pi), within"),
        ("b - lr * back.sum(0)", "b + lr * back.sum(0)"),
    ],
    "initialization": [
        ('"xavier_normal": 1 / width', '"xavier_normal": 2 / width'),
        ("np.sqrt(width * variances[name])", "np.sqrt(width * 2 * variances[name])"),
        ('{"relu": 0.5', '{"relu": 0.6'),
    ],
    "normalization": [
        ("block.mean(axes, keepdims=True), block.var(", "block.mean(axes, keepdims=True), block.std("),
        ("(2 + 1e-4 * squares)", "(1 + 1e-4 * squares)"),
    ],
    "batch_norm": [
        ("(1 - momentum) * average + momentum", "(1 - momentum) * average + (1 - momentum)"),
        ("momentum * block.var(ddof=1)", "momentum * block.var()"),
        ("norm.bias.fill_(block.mean())", "norm.bias.fill_(0)"),
        ("1 / np.sqrt(size * pixels)", "1 / np.sqrt(size)"),
    ],
    "optimizers": [
        ("v = momentum * v + (1 - momentum) * value", "v = momentum * v + momentum * value"),
        ("v = mu * v + g", "v = mu * v - g"),
        ("s = 0.9 * s + 0.1", "s = 0.9 * s + 0.2"),
        ("(m / (1 - 0.9**t))", "(m / (1 - 0.8**t))"),
        ("lr / (1 - momentum) * v2", "lr * v2"),
    ],
    "dropout": [
        ("mask * x / keep", "mask * x"),
        ("x**2 * rate / keep", "x**2 * rate"),
        ("geometric = np.exp(chances @ by_mask)", "geometric = chances @ np.exp(by_mask)"),
        ("(z**2).mean() / (1 - p)", "(z**2).mean()"),
    ],
    "label_smoothing": [
        ("epsilon / classes)\n    q[true]", "epsilon)\n    q[true]"),
        ("lead = np.log(classes * (1 - epsilon) / epsilon + 1)", "lead = np.log(classes * (1 - epsilon) / epsilon)"),
        ("1 - share + share / classes, sure", "1 - share, sure"),
    ],
    "lstm": [
        ("c_next = f * c + i * g", "c_next = f * c + g"),
        ("weights = 4 * (", "weights = 3 * ("),
        ("gate = 1 / (1 + np.exp(-forget_bias))", "gate = 1 / (1 + np.exp(forget_bias))"),
        ("1 - np.tanh(float(inputs[0]) + 0.5) ** 2", "1 - np.tanh(float(inputs[0]) + 0.5)"),
    ],
    "detection": [
        ("sides.clip(0).prod(-1)", "sides.prod(-1)"),
        ("inside = corners[0] * corners[1]", "inside = corners[0] + corners[1]"),
        ("np.log((box[:, 2:] - box[:, :2]) / size)", "np.log((box[:, 2:] - box[:, :2]) * size)"),
        ("[0, 0] <= overlap", "[0, 0] <= overlap + 0.4"),
    ],
    "crf": [
        ("alike / (2 * bi_rgb**2)", "alike / bi_rgb**2"),
        ("np.exp(-apart / 2)", "np.exp(-apart)"),
        ("scale = 1 / np.sqrt(part.sum(1))", "scale = 1 / part.sum(1)"),
    ],
}  # fmt: skip


@cache
def page(topic: str) -> Page:
    return load(topic)()


def test_every_file_with_an_explanation_is_a_topic_and_of_a_section_s_length():
    files = {path.stem: path.read_text() for path in FOLDER.glob("*.py")}
    assert {name for name, text in files.items() if "\ndef explain(" in text} == set(TOPICS)
    lengths = {topic: files[topic].count("\n") for topic in TOPICS}
    assert all(40 <= length <= 120 for length in lengths.values()), lengths


def test_nothing_imports_explanations_but_their_command():
    package = ROOT / "cnn_train"
    users = {
        path.relative_to(package).as_posix() for path in package.rglob("*.py") if _imports_explain(path.read_text())
    }
    assert {user for user in users if not user.startswith("explain/")} == {"commands/explain.py"}


def _imports_explain(source: str) -> bool:
    return bool(
        re.search(
            r"^\s*(from cnn_train\.explain|import cnn_train\.explain|from cnn_train import .*\bexplain\b)", source, re.M
        )
    )


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_runs_and_leaves_the_random_numbers_of_torch_alone(topic):
    state = torch.get_rng_state()
    text = str(page(topic))
    assert torch.equal(torch.get_rng_state(), state)
    assert page(topic).ticks >= 4 and page(topic).pictures
    assert not re.search(r"\bnan\b|\binf\b|object at|tensor\(|array\(|\{|\}", text)
    assert all(len(line) <= 125 for line in text.splitlines())


@pytest.mark.parametrize(("topic", "place"), [(topic, i) for topic, pairs in FALSE.items() for i in range(len(pairs))])
def test_a_false_formula_is_found(topic, place, monkeypatch):
    true, false = FALSE[topic][place]
    source = (FOLDER / f"{topic}.py").read_text()
    assert source.count(true) == 1, f"{topic}.py has {true!r} {source.count(true)} times"
    module = {"__name__": f"false_{topic}"}
    exec(compile(source.replace(true, false), f"{topic}.py", "exec"), module)
    monkeypatch.setattr(Page, "picture", lambda *_: None)  # what is checked is in the captions' numbers, not drawn
    for draw in ("cells", "curves", "heat", "paths", "boxes"):
        module[draw] = lambda *_, **__: Figure()  # faster
    with pytest.raises(
        Mismatch, match=rf"^{topic}\.py:\d+: the page (computes|has an array) .*; one of them is wrong$"
    ):
        module["explain"]()


def test_every_topic_has_false_formulas():
    assert set(FALSE) == set(TOPICS)


class Reader(html.parser.HTMLParser):
    """Tags that are open, images and links of a page."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "img":
            self.images.append(values)
        elif tag == "a":
            self.links.append(values["href"])
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("topic", TOPICS)
def test_the_page_is_one_file_that_needs_nothing_else(topic, tmp_path):
    file = page(topic).write(tmp_path / topic)
    text, reader = file.read_text(encoding="utf-8"), Reader()
    reader.feed(text)
    assert not reader.open
    assert len(reader.images) == len(page(topic).pictures) == len(list(file.parent.glob("*.svg")))
    for image in reader.images:
        assert len(image["alt"]) > 10 and image["src"].startswith("data:image/svg+xml;base64,")
    for link in reader.links:
        assert link.startswith("https://") or (file.parent / link).is_file(), link
    assert "<script" not in text and "$" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    assert len(text) < 700_000
    assert {path.suffix for path in file.parent.iterdir()} == {".html", ".svg"}


@pytest.mark.parametrize("topic", TOPICS)
def test_what_a_page_refers_to_is_there(topic):
    references = page(topic).references
    for name in references.get("Implemented by", ()):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    for name in references.get("Used by", ()):
        assert (ROOT / "conf" / "model" / f"{name}.yaml").is_file(), name
    for name in references.get("Shown in", ()):
        file, _, heading = name.partition("#")
        headings = re.findall(r"^#+ (.+)$", (ROOT / file).read_text(), re.MULTILINE)
        assert heading in [re.sub(r"\W+", "-", title.lower()) for title in headings], name
    assert set(references.get("See also", ())) <= set(TOPICS) - {topic}
    assert references["Implemented by"]


OTHERS = {
    "convolution": {"size": 5, "kernel": 4, "stride": 1, "padding": 3, "dilation": 2},
    "channels": {"size": 4, "kernel": 1, "channels": 2, "outputs": 2, "groups": 1},
    "pooling": {"size": 5, "kernel": 1, "stride": 1},
    "dilation": {"kernel": 2, "dilation": 3, "size": 7, "layers": 2},
    "upsampling": {"size": 3, "kernel": 2, "stride": 3, "padding": 1},
    "receptive_field": {"stack": "7/2,3/2/1,3/1/2", "deep": 3},
    "deconvnet": {"size": 13, "square": 6},
    "backpropagation": {"batch": 1, "inputs": 1, "hidden": 1, "classes": 2},
    "activations": {"slope": 0.0, "rate": 1.0, "units": 4},
    "initialization": {"act": "tanh", "depth": 2, "width": 128},
    "normalization": {"channels": 4, "groups": 4},
    "batch_norm": {"batch": 2, "momentum": 0.99, "mean": 0.0},
    "optimizers": {"lr": 0.1, "momentum": 0.0, "condition": 1.0, "steps": 2},
    "dropout": {"rate": 0.99, "units": 3},
    "label_smoothing": {"epsilon": 0.5, "classes": 2},
    "lstm": {"inputs": 1, "hidden": 1, "steps": 5, "forget_bias": -10.0},
    "crf": {"bi_w": 0.0, "steps": 1},
    "detection": {"stride": 32, "overlap": 0.0},
}


@pytest.mark.parametrize("topic", TOPICS)
def test_other_options_hold_too(topic, monkeypatch):
    monkeypatch.setattr(Page, "picture", lambda *_: None)
    assert load(topic)(**OTHERS[topic]).ticks >= 1


@pytest.mark.slow
@pytest.mark.parametrize("topic", TOPICS)
def test_other_options_are_drawn_too(topic, tmp_path):
    assert load(topic)(**OTHERS[topic]).write(tmp_path).is_file()


@pytest.mark.parametrize(
    ("topic", "given", "rule"),
    [
        ("convolution", {"kernel": 9, "padding": 0}, "kernel 9 does not fit 7 pixels with padding 0"),
        ("convolution", {"size": 100}, "size must be from 1 to 16, got 100"),
        ("convolution", {"dilation": 4, "padding": 0}, "kernel 3 with dilation 4 does not fit 7 pixels with padding 0"),
        ("channels", {"groups": 5}, "groups must divide channels and outputs, got 5 for 16 and 32"),
        ("pooling", {"kernel": 6}, "kernel 6 does not fit 4 pixels without padding"),
        ("upsampling", {"padding": 3}, "padding must be smaller than kernel 3, got 3"),
        ("normalization", {"groups": 4}, "groups must divide channels 6, got 4"),
        ("receptive_field", {"stack": "3,x"},
         "stack lists kernel/stride/dilation, each up to 16, as in stack=3,2/2,3/1/2; got 'x' in '3,x'"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_told_with_the_rule(topic, given, rule):
    with pytest.raises(ConfigError, match=f"^{re.escape(rule)}$"):
        load(topic)(**given)


def test_summaries_and_options_are_those_of_the_functions():
    for topic in TOPICS:
        module = importlib.import_module(f"cnn_train.explain.{topic}")
        assert module.__doc__.startswith(summary(topic)) and ": " in summary(topic)
        assert {name: option.default for name, option in options(topic).items()} == {
            name: default
            for name, default in zip(module.explain.__annotations__, module.explain.__defaults__, strict=False)
        }
    assert options("initialization")["act"].words == ("relu", "tanh", "sigmoid", "identity")
    assert options("optimizers")["lr"].kind == "float" and options("convolution")["size"].kind == "int"


def test_overlap_and_suppression_are_torchvision_s():
    from torchvision.ops import box_iou, nms

    draw = np.random.default_rng(0)
    corner, size = draw.uniform(0, 50, (30, 2)), draw.uniform(5, 30, (30, 2))
    boxes, scores = np.hstack([corner, corner + size]), draw.random(30)
    found = torch.tensor(boxes)
    np.testing.assert_allclose(detection.iou(boxes, boxes[:7]), box_iou(found, found[:7]), rtol=1e-12)
    for overlap in (0.1, 0.3, 0.5, 0.7):
        assert detection.suppress(boxes, scores, overlap) == nms(found, torch.tensor(scores), overlap).tolist()


# -- What pages are made of --------------------------------------------------------------------------------------------


def test_agree_takes_numbers_lists_arrays_and_tensors():
    assert f"{agree(1.5, torch.tensor(1.5))}" == "1.5✓"
    assert f"{agree([1, 2], np.array([1.0, 2.0]))}" == "(1, 2)✓"
    assert f"{agree(2 / 3, 0.6666, within=1e-3):.3f}" == "0.667✓"
    assert f"{agree(1, 1):✓}" == "✓"


@pytest.mark.parametrize(
    ("ours", "reference", "within"),
    [(1.0, 1.1, 1e-9), (np.nan, np.nan, 1.0), (1.0, np.nan, 1.0), ([1, 2], [1, 2, 3], 1.0), (0.0, 1e-6, 1e-9)],
)  # fmt: skip
def test_agree_refuses_what_differs(ours, reference, within):
    with pytest.raises(Mismatch, match=r"^test_explain\.py:\d+: ") as caught:
        agree(ours, reference, within)
    assert isinstance(caught.value, UserError) and caught.value.exit_code == 1 and "\n" not in str(caught.value)


def test_numbers_are_written_as_in_print():
    assert [number(v) for v in (1234567, -0.5, 0.1234567, 3.0, "x")] == ["1,234,567", "−0.5", "0.1235", "3", "x"]
    assert number(-2.0, ".2f") == "−2.00" and number(torch.tensor([1.0, -2.0])) == "(1, −2)"


def test_rules_say_what_was_got():
    with pytest.raises(ConfigError, match=r"^rate must be from 0 to 1, got 1\.5$"):
        limits(rate=(1.5, 0, 1))
    with pytest.raises(ConfigError, match=r"^no$"):
        require(False, "no")


def test_markup():
    shown = _marked("a < b, *very* `x_i`, $x_{i+1} = max(y, 2)$, [a page](https://x.y/z), 4✓")
    assert "a &lt; b, <em>very</em> <code>x_i</code>" in shown
    assert "<i>x</i><sub><i>i</i>+1</sub> = max(<i>y</i>, 2)" in shown
    assert '<a href="https://x.y/z">a page</a>' in shown and "<span class=tick" in shown
    assert _plain("$x_{i+1}$, $x_{i}$, *very* `b`, [a](https://x.y)") == "x_(i+1), x_i, very b, a (https://x.y)"


def test_a_page_escapes_what_is_put_on_it():
    made = Page("<b>", "<i>")
    made.say("<script>1</script>")
    made.table(["<td>"], [["<img>"]])
    made.picture("<p>", cells([[1.0]], '"><svg>'))
    text = made.html()
    for tag in ("<b>", "<i>", "<script>", "<img>", '"><svg>'):
        assert tag not in text
    assert text.count("<img ") == 1


def test_pictures_are_described_and_the_same_each_time():
    grid = cells([[1, -2], [0.5, 0]], "numbers")
    assert grid.get_label() == "numbers: 1 −2; 0.5 0"
    assert cells(np.zeros((9, 9)), "many").get_label() == "many, a grid of 9 by 9"
    assert curves([1, 2], {"a": [3, 4]}, "lines", "t").get_label() == "lines, over t: a from 3 to 4"
    first, second = (Page("a", "b") for _ in range(2))
    for made in (first, second):
        made.picture("c", cells([[1, -2]], "numbers"))
    assert first.pictures == second.pictures


def test_a_notebook_shows_the_page_with_a_style_of_its_own():
    made = Page("Title", "lead")
    assert "<h1>Title</h1>" in made._repr_html_() and ".explain {" in made._repr_html_()
    assert "\nbody {" not in made._repr_html_()
