"""Users and their records: Shakespeare's roles, or files of one's own."""
