"""One file a command of `cnn-train`."""
