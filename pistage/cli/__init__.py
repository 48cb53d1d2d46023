"""The command line: one file a family of verbs; a verb imports what it needs when it runs."""
