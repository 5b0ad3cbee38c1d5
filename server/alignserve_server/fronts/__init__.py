"""Several front processes, which prepare inputs and answer callers, and one device process, which embeds."""
