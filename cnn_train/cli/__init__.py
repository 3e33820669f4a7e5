"""The command line: taken apart, guarded, explained. Imports neither torch nor hydra."""
