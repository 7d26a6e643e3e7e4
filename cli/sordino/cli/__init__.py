"""The command `sordino`: one module a verb, heavy imports inside the verb."""
