"""How the clients' work becomes one model: one file per paper or family, both halves in it."""
