"""cnn-train: compose a CNN experiment from YAML and train it. Importing this imports nothing heavy."""

__version__ = "0.1.0"
