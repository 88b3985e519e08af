"""Recipes: one TOML file each, with the keys of `supermask.config.SearchConfig`."""
