"""Access control: API keys with their scopes and quotas."""
