"""Every field of a run's config, its checks, and configs from files."""
