"""Exchange history in: one module per archive, one signature, shared validation."""
