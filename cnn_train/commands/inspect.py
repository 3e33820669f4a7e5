"""cnn-train inspect: what each layer sees, weighs and costs."""

from cnn_train.inspect_network import run  # noqa: F401
