"""An experiment: its parts built from a config and put together, trained, evaluated, recorded."""
