"""Exported models: a folder with weights, settings, tokenizer and card, and how to use one."""
