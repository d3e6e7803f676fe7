"""The commands and the only room that knows Hydra."""
