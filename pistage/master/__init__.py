"""A master: keeps the truth, decides, and serves everybody on one port."""
