"""Configuration: composed by Hydra, checked against schema and signatures, built at one place."""
