"""Triggers: what else than a person or a clock makes runs, and what it gives to them.

Nothing is imported here: `settings` is for everybody who reads commands, `webhooks` reads documents too.
"""
