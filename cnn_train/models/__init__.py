"""Networks, one file per paper."""
