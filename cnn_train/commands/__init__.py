"""The commands: one module each, whose `run` takes a Line and gives an exit code. To add one, add a file and a line."""

from cnn_train.cli.line import Command

COMMANDS = {
    "train": Command("train", "train a network (the default command)"),
    "resume": Command(
        "resume",
        "continue a stopped run, or train it for longer: resume DIR "
        "[trainer.max_epochs=N [schedule=stretch|keep|restart]]",
    ),
    "eval": Command("eval", "evaluate a run again: eval run=DIR [split=val] [postprocess=crf] [inference=sliding]"),
    "predict": Command(
        "predict", "predict images: predict run=DIR input=FILE_OR_FOLDER [output=DIR] [postprocess=crf]"
    ),
    "export": Command(
        "export",
        "write a checked file for others: export run=DIR format=torch_export|onnx|safetensors|torchscript "
        "[preprocessing=inside] [precision=fp16]",
    ),
    "inspect": Command(
        "inspect",
        "what each layer sees, weighs and costs: inspect model=vgg16 [versus=resnet50] [depth=1] [format=json] "
        "[picture=true]",
    ),
    "verify-repro": Command(
        "verify_repro", "train a run's first steps three times and compare the bits: verify-repro DIR [steps=10]"
    ),
    "sweep": Command("sweep", "train every combination of lists of values, as -m does"),
    "list": Command("list", "list the groups, or the choices of one: list model"),
    "worker": Command("worker", ""),
}
