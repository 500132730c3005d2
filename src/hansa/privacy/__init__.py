"""Who may see what: transforms that stand between a client and the sum."""
