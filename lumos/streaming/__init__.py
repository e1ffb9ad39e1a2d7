"""Videos that are made while they are watched: prompts that change, pixels beside tokens, files that grow."""
