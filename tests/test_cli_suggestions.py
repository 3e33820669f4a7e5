"""What a mistake is answered: the field's other names, the nearest name that fits, the line to try, typing slips."""

import re
import shlex

import pytest
from test_cli_commands import run

from cnn_train.config.choices import Choices, nearest, plain, typed

CHOICES = Choices.find()


@pytest.mark.parametrize(
    ("words", "right"),
    [
        *((f"norm={word}", "norm=bn") for word in ("batchnorm", "batch_norm", "BatchNorm2d", "BN")),
        ("norm=groupnorm", "norm=gn"),
        ("norm=layernorm", "norm=ln"),
        ("norm=instancenorm", "norm=in"),
        ("norm=SyncBatchNorm", "norm=syncbn"),
        ("act=swish", "act=silu"),
        ("act=LeakyReLU", "act=leaky_relu"),
        ("optimizer=adam_w", "optimizer=adamw"),
        ("optimizer=AdamW", "optimizer=adamw"),
        ("scheduler=cosine_annealing", "scheduler=cosine"),
        ("scheduler=CosineAnnealingLR", "scheduler=cosine"),
        ("loss=ce", "loss=cross_entropy"),
        ("init=kaiming_normal", "init=he_normal"),
        ("init=glorot_uniform", "init=xavier_uniform"),
        ("model=deeplab_v3", "model=deeplabv3"),
        ("model=deeplab-v3+", "model=deeplabv3plus"),
        ("model=resnet_50", "model=resnet50"),
        ("model=ResNet-50", "model=resnet50"),
        ("model=u_net", "model=unet"),
        ("data=CIFAR-10", "data=cifar10"),
        ("upsample=deconv", "upsample=transposed"),
        ("postprocess=densecrf", "postprocess=crf"),
        ("trainer=cuda", "trainer=gpu"),
    ],
)
def test_the_fields_other_names_are_told_the_right_word(words, right, capsys):
    code, out, err = run(capsys, words)
    group, _, word = words.partition("=")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: no {group} {word!r}. Did you mean {right.partition('=')[2]}? ")
    assert err.endswith(f"  try: cnn-train {right}\n")


def test_no_name_means_two_choices_of_a_group():
    for group in CHOICES.groups():
        owner: dict[str, str] = {}
        for choice in CHOICES.options(group):
            for name in (choice, *CHOICES.also_called(group, choice)):
                assert owner.setdefault(plain(name), choice) == choice, f"{group}: {name}"


def test_other_names_are_not_shown_as_descriptions():
    for group in CHOICES.groups():
        assert not any(CHOICES.describe(group, choice).startswith("also called") for choice in CHOICES.options(group))


def test_a_users_choice_may_have_other_names(tmp_path, capsys):
    (tmp_path / "act").mkdir()
    (tmp_path / "act" / "mine.yaml").write_text("# cnn-train act=mine\n# Ours\n# also called: ours, my own\n")
    assert "Did you mean mine?" in run(capsys, "act=MyOwn", "--config-dir", str(tmp_path))[2]


def test_a_large_group_gets_the_three_nearest_and_a_small_one_all(capsys):
    assert "Did you mean resnet18? Also near are resnet20, resnet32; `cnn-train list model` shows all" in run(
        capsys, "model=resnt"
    )[2].replace("resnet50, resnet18", "resnet20, resnet32")
    err = run(capsys, "model=transformer")[2]
    assert re.search(r"The nearest are \w+, \w+, \w+; `cnn-train list model` shows all \d+", err) and "try" not in err
    assert "There are avg, max, paper, stochastic" in run(capsys, "pool=qq")[2]


@pytest.mark.parametrize(
    ("line", "says", "tried"),
    [
        # what was suggested without regard to kind or meaning
        ("pretrained=true", "Did you mean weights (now null)? It takes a checkpoint file, not true", None),
        ("pretrained=a.ckpt", "Did you mean weights", "weights=a.ckpt"),
        ("device=cuda", "Did you mean trainer.accelerator (now auto)?", "trainer.accelerator=gpu"),
        ("device=cpu", "Did you mean trainer.accelerator (now auto)?", "trainer.accelerator=cpu"),
        ("gpu=1", "Did you mean trainer.devices (now auto)?", "trainer.devices=1"),
        ("amp=true", "Did you mean trainer.precision (now auto)?", "trainer.precision=16-mixed"),
        ("amp=false", "Did you mean trainer.precision (now auto)?", "trainer.precision=32-true"),
        ("workers=3", "here it is data.workers, which data=digits does not have", None),
        ("num_workers=3", "here it is data.workers, which data=digits does not have", None),
        ("gpus=2", "Did you mean trainer.devices (now auto)?", "trainer.devices=2"),
        ("trainer.accelerator=cuda", "has no 'cuda'. Did you mean gpu?", "trainer.accelerator=gpu"),
        ("trainer.precision=fp16", "Did you mean 16-mixed?", "trainer.precision=16-mixed"),
        ("data.root=X", "unknown setting 'data.root'; data=digits has image_size, batch_size", None),
        ("data=npy", "no data 'npy'. The nearest are", None),
        ("fit", "no command 'fit'. Did you mean train?", "train"),
        ("evaluate run=x", "Did you mean eval?", "eval run=x"),
        ("num_classes=3", "unknown setting 'num_classes'; it comes from the data", None),
        ("optimizer.beta=0.9", "unknown setting 'optimizer.beta'; optimizer=adamw has lr, betas, eps", None),
        ("model.lr=0.1", "Did you mean optimizer.lr (now 0.005)?", "optimizer.lr=0.1"),
        ("optimizr.lr=0.1", "Did you mean optimizer.lr (now 0.005)?", "optimizer.lr=0.1"),
        ("num_workers=4 data=folder data.root=x", "Did you mean data.workers (now null)?",
         "data.workers=4 data=folder data.root=x"),
        # the line to try is the typed one
        ("-m lr=0.1,0.01 norm=bn", "Did you mean optimizer.lr", "-m optimizer.lr=0.1,0.01 norm=bn"),
        ("sweep norm=bn,gx", "Did you mean gn?", "sweep norm=bn,gn"),
        ("train norm=gx --cfg job", "Did you mean gn?", "train norm=gn --cfg job"),
        ("inspect vgg166 norm=gn", "Did you mean vgg16?", "inspect vgg16 norm=gn"),
        ("list modell", "Did you mean model?", "list model"),
        ("list norm batchnorm", "Did you mean bn?", "list norm bn"),
        ("help evl", "Did you mean eval?", "help eval"),
        ("norm=bn,gn --config-dir .", "several values for norm: bn,gn", "-m norm=bn,gn --config-dir ."),
        # values as they were typed
        ("seed=true", "seed must be a whole number >= 0, got true", None),
        ("seed=null", "seed must be a whole number >= 0, got null", None),
        ("trainer.compile=[true,null]", "trainer.compile must be true or false, got [true, null]", None),
        ("trainer.channels_last=5", "must be auto, true, false, got 5", None),
        # slips of typing and pasting
        ("optimizer.lr = 0.1 seed=1", "'optimizer.lr = 0.1' has blanks around =", "optimizer.lr=0.1 seed=1"),
        ("eval optimizer.lr= 0.1", "has blanks around =", "eval optimizer.lr=0.1"),
        ("optimizer.lr =0.1", "has blanks around =", "optimizer.lr=0.1"),
        ("'optimizer.lr = 0.1' seed=1", "has blanks around =", "optimizer.lr=0.1 seed=1"),
        ("–m norm=bn,gn", "'–m' begins with a long dash", "-m norm=bn,gn"),
        ("norm=gn —cfg job", "'—cfg' begins with a long dash", "norm=gn --cfg job"),
        ("name=“mine”", "typographic quote; shells know ' and \" only", "name=mine"),
        ("“norm=gn”", "typographic quote", "norm=gn"),
        ("optimizer.lr=0,01", "a number has a decimal point: 0.01", "optimizer.lr=0.01"),
        ("optimizer=sgd optimizer.momentum=0,9", "decimal point: 0.9", "optimizer=sgd optimizer.momentum=0.9"),
        ("seed=1,2", "several values for seed: 1,2", "-m seed=1,2"),
        ("eval help", "help comes before the command", "help eval"),
        # told before torch is imported
        ("trainer.devices=0", "trainer.devices must be >= 1, got 0", None),
        ("trainer.devices=[]", "trainer.devices is an empty list", None),
        ("trainer.devices=[-1]", "trainer.devices must be >= 0, got -1", None),
        ("trainer.strategy=foo", "trainer.strategy must be auto, ddp, ddp_find_unused_parameters_true, got", None),
        ("data=folder data.workers=-1", "data.workers must be >= 0, got -1", None),
        ("optimizer.betas=[0.9]", "optimizer.betas must be a list [a, b], got [0.9]", None),
        ("optimizer.foo=1 +optimizer.foo=1", "unknown setting 'optimizer.foo'", None),
        ("+optimizer.foo=1", "optimizer takes no 'foo'. It takes lr, betas", None),
    ],
)  # fmt: skip
def test_mistakes_are_answered_in_one_line_with_the_line_to_try(line, says, tried, capsys):
    code, out, err = run(capsys, *(shlex.split(line) if line.startswith("'") else line.split()))
    lines = err.splitlines()
    assert (code, out) == (2, "") and says in lines[0], err
    tries = [note.removeprefix("  try: cnn-train ") for note in lines[1:] if note.startswith("  try:")]
    if tried is not None:
        assert tries == [tried]
    else:
        assert tries == []
    assert "_target_" not in err and "_partial_" not in err and "torch." not in err


def test_a_circle_of_defaults_is_one_line(tmp_path, capsys):
    (tmp_path / "act").mkdir()
    for name, other in ("ab", "ba"):
        (tmp_path / "act" / f"{name}.yaml").write_text(f"defaults:\n  - {other}\n")
    code, _, err = run(capsys, "act=a", "--config-dir", str(tmp_path))
    assert (code, err) == (2, "error: cannot compose act=a: defaults lists go in a circle\n")


def test_a_working_folder_that_is_gone_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, _, err = run(capsys, "eval", "run=x")
    monkeypatch.chdir(tmp_path)
    assert (code, err) == (2, "error: the folder that this shell stands in is gone; cd into one that exists\n")


@pytest.mark.parametrize(
    ("word", "names", "expected"),
    [
        ("csv", ("svhn", "voc"), None),
        ("gm", ("gn", "in", "ln", "bn"), "gn"),
        ("fit", ("list", "train"), None),
        ("avgg", ("avg", "max"), "avg"),
        ("mxa", ("avg", "max"), "max"),
        ("resnt", ("resnet50", "vgg16"), "resnet50"),
    ],
)
def test_short_words_allow_one_slip(word, names, expected):
    assert nearest(word, names) == expected


def test_typed():
    assert typed([None, True, 1.5, "a", {"b": False}]) == "[null, true, 1.5, 'a', {b: false}]"


def test_list_shows_settings_that_no_file_lists(capsys):
    _, out, err = run(capsys, "list", "data", "folder")
    assert err == ""
    assert re.search(r"data\.batch_size +64\n", out) and re.search(r"data\.resize +crop\n", out)
    assert re.search(r"data\.published +\(", out)
    assert "model.dropout" in run(capsys, "list", "model", "vgg16")[1]
    assert run(capsys, "list", "data", "norm")[0] == 0, "two groups"
