"""The commands of `cnn-train`, one file each."""
