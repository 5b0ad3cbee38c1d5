"""Who may call: API keys and what each is allowed."""
